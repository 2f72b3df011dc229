"""The log's tables: columns, dtypes, meanings, order.

Times are i64 microseconds since 1970-01-01 UTC. Users, items, campaigns, categories, widgets and reviews are the u64 hashes
of `serve_app.ids`; `users` and `items` are the dictionaries back to text. Enumerations are the stable integers of
`serve_app.vocabulary`. Outside `events` an absent value is the sentinel its batch column has (0 for hashes and times,
-1 for indices), so that a replay reads exactly what the stages wrote; in `events` it is null. (Fill nulls before numpy or
pandas: there a nullable u64 becomes a float and loses bits.)

A decision is (user, request_id, slot): the text form is `serve_app.ids.decision_id_text`.
"""

from __future__ import annotations

from types import MappingProxyType

import pyarrow as pa

from serve_app.log.fields import SCHEMA_VERSION
from serve_app.log.schema_decisions import CANDIDATES, DECISIONS, REQUESTS
from serve_app.log.schema_facts import ENVIRONMENT, EVENTS, ITEMS, LEDGER_SNAPSHOT, USERS, WATERMARK

__all__ = ["PER_USER", "SCHEMA_VERSION", "SORT_KEYS", "TABLES", "empty_table"]

TABLES: MappingProxyType[str, pa.Schema] = MappingProxyType(
    {
        "requests": REQUESTS,
        "candidates": CANDIDATES,
        "decisions": DECISIONS,
        "events": EVENTS,
        "ledger_snapshot": LEDGER_SNAPSHOT,
        "environment": ENVIRONMENT,
        "watermark": WATERMARK,
        "users": USERS,
        "items": ITEMS,
    }
)

# Rows of a file stand in this order: requests, candidates and decisions of a user run in parallel, so a replay merges
# them without a sort.
SORT_KEYS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "requests": ("user_bucket", "user", "order", "ts", "request_id"),
        "candidates": ("user_bucket", "user", "order", "ts", "request_id", "idx"),
        "decisions": ("user_bucket", "user", "order", "ts", "request_id", "slot"),
        "events": ("user_bucket", "user", "ts", "event_id"),
        "ledger_snapshot": ("user_bucket", "user", "as_of"),
        "environment": ("env_seq",),
        "watermark": ("day", "table", "ts"),
        "users": ("user_bucket", "user"),
        "items": ("item",),
    }
)

PER_USER: frozenset[str] = frozenset(name for name, schema in TABLES.items() if "user_bucket" in schema.names)


def empty_table(name: str) -> pa.Table:
    """Zero rows of table `name`."""
    return TABLES[name].empty_table()
