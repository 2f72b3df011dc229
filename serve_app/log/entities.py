"""Rows of a release's tables become hashes on their way into the log, which outlives the release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Columns

__all__ = ["EntityHashes", "column_at", "entity_columns", "rows_to_hashes"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Array = npt.NDArray[Any]

_EMPTY: U64 = np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True)
class EntityHashes:
    """u64 hashes by row index: items and categories of the release, its reviews and widgets. Row -1 becomes 0."""

    items: U64
    reviews: U64 = field(default_factory=lambda: _EMPTY)
    widgets: U64 = field(default_factory=lambda: _EMPTY)
    categories: U64 = field(default_factory=lambda: _EMPTY)


def rows_to_hashes(rows: Array, table: U64) -> U64:
    """u64 of each row index; 0 for -1."""
    known = rows >= 0
    if known.all():
        return table[rows]
    out = np.zeros(len(rows), np.uint64)
    out[known] = table[rows[known]]
    return out


def entity_columns(candidates: Mapping[str, Any], hashes: EntityHashes) -> dict[str, U64]:
    """`item`, `widget` and `review` of candidates as the log has them."""
    tables = {"item": hashes.items, "widget": hashes.widgets, "review": hashes.reviews}
    return {name: rows_to_hashes(candidates[name], table) for name, table in tables.items() if name in candidates}


def column_at(columns: Columns, name: str, rows: I64, default: Any) -> Array:
    """A column's values of `rows`, or `default` in each where there is no such column."""
    if name in columns:
        values: Array = columns[name][rows]
        return values
    return np.full(len(rows), default)
