"""A stage adds columns; it never touches its input. This is how."""

from __future__ import annotations

from typing import Any

from serve_app.batch import Array, Batch, Columns, Ragged
from serve_app.columns import CANDIDATE_COLUMNS

__all__ = ["extended"]


def extended(batch: Batch, meta: dict[str, Any], **columns: Array | Ragged) -> Batch:
    """The same batch with candidate columns set or replaced and `meta` merged in; arrays are shared, nothing is copied."""
    candidates = Columns(batch.candidates.rows, CANDIDATE_COLUMNS, columns)
    candidates._data = {**batch.candidates._data, **candidates._data}  # the old ones were checked when first set
    return Batch(batch.requests, candidates, batch.offsets, {**batch.meta, **meta})
