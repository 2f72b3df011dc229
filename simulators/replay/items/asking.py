"""Logged requests for lists as a release's stages read them: hashes become its rows again."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import Batch, Ragged, lengths_to_offsets
from serve_app.log.places import region_indices, zone_indices
from serve_app.release.rows import CatalogueRows
from simulators.replay.items.logged import Lists, gathered

__all__ = ["asked_again"]

Array = npt.NDArray[Any]

_NO_ITEMS_CATEGORY = -2
"""A limit to categories nobody carries is no limit to none."""


def asked_again(lists: Lists, rows: CatalogueRows) -> Batch:
    """n requests without candidates, pinned to policy 0. lists: read with `asked`. What was seen, bought or excluded and is
    not in the release is passed over; what had become unavailable then is excluded."""
    table = lists.asked
    assert table is not None, "read with asked=True"
    n, flat = len(lists), lists.requests
    recents, ages = _known(table["recents"], rows, beside=table["recents_age_s"])
    barred = _known(_joined(table["excluded"], table["withdrawn"]), rows)[0]
    return Batch.of_requests(
        request_id=flat["request_id"],
        surface=np.full(n, lists.surface, np.int8),
        decided_at=flat["decided_at"],
        policy=np.zeros(n, np.int16),
        user=lists.logged_user,
        user_row=np.where(lists.logged_user == 0, -1, rows.user_rows(lists.logged_user)).astype(np.int32),
        zone=zone_indices(table["zone"]),
        region=region_indices(table["region"]),
        anchor=_row_of(gathered(table, "anchor"), rows),
        recents=recents,
        recents_age_s=ages,
        bought=_known(table["bought"], rows)[0],
        excluded=barred,
        categories=_categories(table["categories"], rows),
        width=gathered(table, "width"),
        slots=flat["slots"],
        context_hour=gathered(table, "context_hour"),
        context_device=gathered(table, "context_device"),
        cold=gathered(table, "cold"),
        degraded=np.zeros(n, np.uint8),
    )


def _row_of(hashes: Array, rows: CatalogueRows) -> npt.NDArray[np.int32]:
    return np.where(hashes == 0, -1, rows.item_rows(hashes)).astype(np.int32)


def _flat(column: pa.ChunkedArray) -> tuple[Array, Array]:
    lists = column.combine_chunks()
    return lists.flatten().to_numpy(zero_copy_only=False), np.diff(lists.offsets.to_numpy())


def _joined(one: pa.ChunkedArray, other: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each row's two lists, one after the other."""
    (left, lengths), (right, others) = _flat(one), _flat(other)
    owner = np.concatenate([np.repeat(np.arange(len(lengths)), lengths), np.repeat(np.arange(len(others)), others)])
    values = np.concatenate([left, right])[np.argsort(owner, kind="stable")]
    offsets = lengths_to_offsets(lengths + others).astype(np.int32)
    return pa.chunked_array([pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.uint64()))])


def _known(column: pa.ChunkedArray, rows: CatalogueRows, beside: pa.ChunkedArray | None = None) -> tuple[Ragged, Ragged]:
    """(item rows, what stands beside them) of what the release knows."""
    hashes, lengths = _flat(column)
    found = _row_of(hashes, rows)
    kept, owner = found >= 0, np.repeat(np.arange(len(lengths)), lengths)
    offsets = lengths_to_offsets(np.bincount(owner[kept], minlength=len(lengths)))
    values = np.zeros(len(found), np.float32) if beside is None else _flat(beside)[0].astype(np.float32)
    return Ragged(found[kept], offsets), Ragged(values[kept], offsets)


def _categories(column: pa.ChunkedArray, rows: CatalogueRows) -> Ragged:
    hashes, lengths = _flat(column)
    index = {int(one): place for place, one in enumerate(rows.category_hashes.tolist())}
    values = np.array([index.get(int(one), _NO_ITEMS_CATEGORY) for one in hashes.tolist()], np.int32)
    return Ragged(values, lengths_to_offsets(lengths))
