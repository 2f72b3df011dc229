"""Rows that an older version wrote, as this version reads them.

Every schema version back to the first is read: files and journal frames keep the version they were written with, and are
brought up to date on the way in; compaction writes what it rewrites in the new version.

1 -> 2: `requests.zone` and `requests.region` were indices of the writing process (positions among the sorted IANA names of
its tzdata; letters in base 26); they become names. `ledger_snapshot` gains `taken_at` and `known_since`, `requests`
`refunds_read`.
"""

from __future__ import annotations

from functools import cache

import pyarrow as pa

from serve_app.log.filling import named, sentinels
from serve_app.log.schema import SCHEMA_VERSION, TABLES
from serve_app.policy.zones import zone_name
from serve_app.regions import region_name

__all__ = ["READABLE", "brought_up", "schema_as_of"]

READABLE = (1, 2)
"""Schema versions this code reads."""

_ADDED_IN_2 = {"ledger_snapshot": ("taken_at", "known_since"), "requests": ("refunds_read",)}
_NAMED_IN_2 = {"requests": {"zone": zone_name, "region": region_name}}


@cache
def schema_as_of(table: str, version: int) -> pa.Schema:
    """Columns of `table` (names and types, no metadata) as `version` wrote them."""
    fields = [one.remove_metadata() for one in TABLES[table]]
    if version < 2:
        numbered = _NAMED_IN_2.get(table, {})
        fields = [pa.field(one.name, pa.int16(), nullable=False) if one.name in numbered else one for one in fields]
        fields = [one for one in fields if one.name not in _ADDED_IN_2.get(table, ())]
    return pa.schema(fields)


def brought_up(table: str, rows: pa.Table, version: int, columns: list[str]) -> pa.Table:
    """`columns` of rows that `version` wrote, in today's types; columns it did not know get their sentinel."""
    if version == SCHEMA_VERSION:
        return rows.select(columns)
    arrays = []
    for name in columns:
        spec = TABLES[table].field(name)
        if name not in rows.column_names:
            array = rows["as_of"] if name == "taken_at" and "as_of" in rows.column_names else sentinels(spec, len(rows))
        elif name in _NAMED_IN_2.get(table, {}):
            array = named(rows[name].to_numpy(), _NAMED_IN_2[table][name])
        elif name == "schema_version":
            array = pa.repeat(pa.scalar(SCHEMA_VERSION, spec.type), len(rows))
        else:
            array = rows[name]
        arrays.append(array)
    return pa.table(arrays, schema=pa.schema([TABLES[table].field(name).remove_metadata() for name in columns]))
