"""Training rows from logged lists: what was shown in which slot, and whether it was clicked or bought.

The request is put to the serving stages again, as of its time; of the candidates, those that had been shown are the rows. A
shown item that retrieval would not give today's request is left out: serving never scores such a one. The slot is kept, so
that position bias can be taken out (trained with it, served at a constant).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Ragged, lengths_to_offsets
from serve_app.noise import hash_key
from serve_app.release.build.next_items import NextItems
from serve_app.release.build.outcomes import Outcomes
from serve_app.release.build.training import ExampleRows, History, as_of_features
from serve_app.stages.features import FeaturePlan
from serve_app.stages.retrieval.stage import Retrieval
from serve_app.stages.stage import Context
from serve_app.vocabulary import Surface

__all__ = ["shown_lists", "shown_rows"]

I64 = npt.NDArray[np.int64]

_CHUNK = 400


def shown_lists(outcomes: Outcomes, surface: Surface, begin: int, end: int, *, limit: int, seed: int) -> Outcomes:
    """Slots of at most `limit` lists of `surface` answered in [begin, end), drawn by a seeded hash; rows by request."""
    rows = outcomes.take((outcomes.surface == surface) & (outcomes.at >= begin) & (outcomes.at < end))
    key = hash_key(seed, rows.user, rows.request_id) if len(rows) else np.empty(0, np.uint64)
    chosen = np.unique(key)[:limit]
    keep = np.flatnonzero(np.isin(key, chosen))
    return rows.take(keep[np.lexsort((rows.slot[keep], key[keep], rows.at[keep]))])


def shown_rows(
    shown: Outcomes, surface: Surface, retrieval: Retrieval, plan: FeaturePlan, history: History, width: int
) -> ExampleRows:
    """One row a shown item that retrieval gives: features as of the request, clicked and bought as attributed, its slot."""
    new = np.r_[True, (shown.request_id[1:] != shown.request_id[:-1]) | (shown.user[1:] != shown.user[:-1])]
    lists = Ragged(np.arange(len(shown)), lengths_to_offsets(np.diff(np.r_[np.flatnonzero(new), len(shown)])))
    parts: list[ExampleRows] = []
    for start in range(0, len(lists), _CHUNK):
        chosen = lists.take(np.arange(start, min(start + _CHUNK, len(lists))))
        parts.append(_chunk(shown.take(chosen.values), chosen.offsets, start, surface, retrieval, plan, history, width))
    return ExampleRows.join(parts)


def _chunk(
    shown: Outcomes, offsets: I64, first: int, surface: Surface, retrieval: Retrieval, plan: FeaturePlan, history: History,
    width: int,
) -> ExampleRows:  # fmt: skip
    head = offsets[:-1]
    n = len(head)
    nothing = Ragged.empty(n, np.int32)
    asked = NextItems(
        surface=surface,
        user=history.rows.user_rows(shown.user[head]),
        at=shown.at[head],
        anchor=history.rows.item_rows(shown.anchor[head]),
        prefix=nothing,
        prefix_at=np.empty(0, np.int64),
        relevant=nothing,
        bought=np.empty(0, np.bool_),
        session=shown.request_id[head].view(np.int64),
    )
    batch = retrieval.run(asked.requests(history.people, history.sequences, width), Context())
    row = _shown_row(batch, np.repeat(np.arange(n), np.diff(offsets)), history.rows.item_rows(shown.item))
    batch, row = batch.select(row >= 0), row[row >= 0]
    batch = as_of_features(batch, plan, history)
    return ExampleRows(
        names=plan.names,
        features=batch.candidates["features"],
        clicked=shown.clicked[row],
        bought=shown.converted[row],
        weight=np.ones(len(row), np.float32),
        request=batch.owner + first,
        group=shown.user[row],
        slot=shown.slot[row],
    )


def _shown_row(batch: Batch, owner: I64, item: npt.NDArray[np.int32]) -> I64:
    """Per candidate the row of `owner`, `item` (shown slots) that is the same item in the same request; -1: not shown."""
    wanted = (owner << np.int64(32)) | item
    order = np.argsort(wanted, kind="stable")
    key = (batch.owner << np.int64(32)) | batch.candidates["item"]
    at = order[np.searchsorted(wanted, key, sorter=order).clip(0, max(len(wanted) - 1, 0))]
    return np.where(wanted[at] == key, at, -1)
