"""Small logs written row by row: sends that all were granted, and events, so that a test knows every number beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hindcast.importers.granted import GRANTS_ALL, granted_rows
from serve_app.ids import hash_id
from serve_app.log.filling import fill
from serve_app.log.writer import LogWriter
from serve_app.policies import store_policy
from serve_app.policy.document import canonical_json, parse_policy
from serve_app.policy.zones import zone_index
from serve_app.regions import region_index
from serve_app.vocabulary import Channel, EventType, MessageClass

__all__ = ["DAY", "HOUR", "START", "Event", "Send", "policy_file", "write_log"]

SECOND = 1_000_000
HOUR = 3_600 * SECOND
DAY = 24 * HOUR
START = 20_500 * DAY  # 2026-02-16

Send = tuple[str, int, int]
"""(user, microseconds UTC, number of the campaign); sends of a user in ledger order."""
Event = tuple[str, int, EventType, int | None, float | None]
"""(user, microseconds UTC, type, place of the send it answers or None, amount or None)."""


def write_log(
    data: Path, sends: Sequence[Send], events: Sequence[Event] = (), *, zones: Mapping[str, str] | None = None
) -> Path:
    """A data folder with such a log. zones: of users who do not live by UTC."""
    zones = zones or {}
    n = len(sends)
    ids = np.arange(1, n + 1, dtype=np.uint64)
    requests: dict[str, Any] = {
        "request_id": ids,
        "user": np.array([hash_id(user) for user, _, _ in sends], np.uint64),
        "decided_at": np.array([at for _, at, _ in sends], np.int64),
        "zone": np.array([zone_index(zones.get(user, "UTC")) for user, _, _ in sends], np.int64),
        "region": np.full(n, region_index("US")),
        "reachable": np.full(n, 1 << Channel.push),
    }
    candidates: dict[str, Any] = {
        "campaign": np.array([hash_id(f"c{campaign}") for _, _, campaign in sends], np.uint64),
        "category": np.full(n, hash_id("k"), np.uint64),
        "channel": np.full(n, Channel.push),
        "message_class": np.full(n, MessageClass.advertising),
    }
    with LogWriter(data, groups=1) as writer:
        for table, rows in granted_rows(requests, candidates).items():
            writer.write(table, rows)
        if events:
            writer.write("events", _event_rows(events, ids))
    store_policy(data, GRANTS_ALL)
    return data


def _event_rows(events: Sequence[Event], ids: Any) -> pa.RecordBatch:
    columns = {
        "user": np.array([hash_id(user) for user, *_ in events], np.uint64),
        "ts": np.array([at for _, at, *_ in events], np.int64),
        "ingested_at": np.array([at for _, at, *_ in events], np.int64),
        "event_id": np.arange(1, len(events) + 1, dtype=np.uint64),
        "type": np.array([kind for _, _, kind, *_ in events], np.int8),
        "decision_request_id": pa.array([None if k is None else int(ids[k]) for *_, k, _ in events], pa.uint64()),
        "slot": pa.array([None if k is None else 0 for *_, k, _ in events], pa.int32()),
        "amount": pa.array([amount for *_, amount in events], pa.float64()),
    }
    return fill("events", len(events), columns)


def policy_file(folder: Path, name: str = "new", **settings: Any) -> Path:
    """What was logged is allowed by it, but for `settings`."""
    free = {"ad_consent_required": False, "night_consent_required": False, "ad_label": None}
    base = {"name": name, "other_regions": free, "message_classes": {"advertising": {"bypass_threshold": True}}}
    path = folder / f"{name}.json"
    path.write_bytes(canonical_json(parse_policy(base | settings)))
    return path
