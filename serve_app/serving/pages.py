"""Pages: lists that stand together hold no item twice, and every slot's propensity stays exact.

Lists of a page are made one after the other. Items that stand in an earlier list are excluded before a list's noise is drawn
(and logged as excluded), so its propensities are conditional on the page so far, as a slot's are on its prefix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.serving.library import Edition
from serve_app.stages.extend import extended
from serve_app.vocabulary import DropReason

__all__ = ["unranked", "without_repeats"]

I32 = npt.NDArray[np.int32]
Array = npt.NDArray[Any]


def without_repeats(ranked: Batch, page: I32, edition: Edition) -> Batch:
    """The same lists, made anew where an earlier list of their page holds one of their candidates.

    page i32[n]: number of the page each list stands on (-1: none); lists of a page come in the order they are shown.
    """
    old = ranked.candidates
    columns = {name: old[name].copy() for name in ("slot", "p_slot", "value", "heads", "drop_reason")}
    assert edition.held.ranking is not None
    narrow = edition.held.ranking.read_by_choice(ranked)
    shown: dict[int, Array] = {}
    for rows in _waves(page):
        again = []
        for row in rows:
            span = slice(ranked.offsets[row], ranked.offsets[row + 1])
            before = shown.get(int(page[row]))
            if before is None:
                continue
            repeated = (old["item"][span, None] == before).any(axis=1)
            if repeated.any():
                _exclude(columns, np.flatnonzero(repeated) + span.start)
                again.append(row)
        if again:
            _choose_again(narrow, np.array(again), columns, edition)
        for row in rows:
            span = slice(ranked.offsets[row], ranked.offsets[row + 1])
            own = old["item"][span][columns["slot"][span] >= 0]
            before = shown.get(int(page[row]))
            shown[int(page[row])] = own if before is None else np.concatenate([before, own])
    return extended(ranked, {}, **columns)


def unranked(batch: Batch, page: I32 | None) -> Batch:
    """The fall-back of ranking: retrieval's order of the kept candidates, certain (p = 1), no item twice on a page."""
    rows = batch.candidates.rows
    slot, p_slot = np.full(rows, -1, np.int32), np.full(rows, np.nan)
    kind = "item" if "item" in batch.candidates else "widget" if "widget" in batch.candidates else "review"
    things, kept = batch.candidates[kind], batch.candidates["drop_reason"] == DropReason.kept
    score = batch.candidates["retrieval_score"]
    shown: dict[int, set[int]] = {}
    for row, wanted in enumerate(batch.requests["slots"].tolist()):
        start, stop = int(batch.offsets[row]), int(batch.offsets[row + 1])
        taken = shown.setdefault(int(page[row]), set()) if page is not None and page[row] >= 0 else set()
        order = start + np.lexsort((np.arange(stop - start), -score[start:stop]))
        free = [at for at in order.tolist() if kept[at] and int(things[at]) not in taken][:wanted]
        slot[free], p_slot[free] = np.arange(len(free)), 1.0
        taken |= {int(things[at]) for at in free}
    return extended(batch, {}, slot=slot, p_slot=p_slot, value=np.full(rows, np.nan))


def _exclude(columns: dict[str, Array], at: Array) -> None:
    columns["value"][at], columns["heads"][at], columns["p_slot"][at] = np.nan, np.nan, np.nan
    columns["slot"][at], columns["drop_reason"][at] = -1, DropReason.excluded


def _choose_again(lists: Batch, rows: Array, columns: dict[str, Array], edition: Edition) -> None:
    assert edition.held.ranking is not None
    if len(rows) == 1:  # a page that is alone
        (row,) = rows.tolist()
        flat: Any = slice(int(lists.offsets[row]), int(lists.offsets[row + 1]))
        part = lists.slice(row, row + 1)
    else:
        flat = np.concatenate([np.arange(lists.offsets[row], lists.offsets[row + 1]) for row in rows])
        part = lists.take(rows)
    again = extended(part, {}, value=columns["value"][flat])
    made = edition.held.ranking.explain(again, edition.context, distributions=False)
    columns["slot"][flat], columns["p_slot"][flat] = made.slot, made.p_slot


def _waves(page: I32) -> list[list[int]]:
    """Rows of the first list of every page, then of the second, and so on."""
    seen: dict[int, int] = {}
    waves: list[list[int]] = []
    for row, number in enumerate(page.tolist()):
        if number < 0:
            continue
        place = seen.get(number, 0)
        seen[number] = place + 1
        if place == len(waves):
            waves.append([])
        waves[place].append(row)
    return waves
