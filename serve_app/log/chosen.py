"""Rows of the table `decisions`: one per chosen candidate, and one per request without any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Columns, Ragged, lengths_to_offsets
from serve_app.log.entities import EntityHashes, column_at, entity_columns
from serve_app.log.filling import SENTINELS
from serve_app.log.short import Repeats, Runs, spelled_out
from serve_app.vocabulary import Action, Reason, Surface

__all__ = ["Ledgered", "chosen_candidates", "decision_columns"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]

Ledgered = tuple[I64 | None, Bools | None, Sequence[bytes] | None]
"""commit_version i64[n], granted bool[n] and idempotency keys of the requests."""

_SEND, _SHOW, _NO_ACTION = np.int8(Action.send), np.int8(Action.show), np.int8(Action.none)
_CHOSEN, _NO_REASON = np.int8(Reason.chosen), np.int8(Reason.none)
_NOTIFICATION = np.int8(Surface.notification)
_TOLD = frozenset({"p_none", "forced", "explored"})
_COPIES = ("item", "widget", "review", "campaign", "category", "channel", "message_class", "counts")


def chosen_candidates(batch: Batch) -> Bools:
    """bool[m]: candidates that are in the answer, or whose send was decided."""
    cand = batch.candidates
    chosen = cand["slot"] >= 0 if "slot" in cand else np.zeros(cand.rows, np.bool_)
    if "action" in cand:
        notification, sent = batch.requests["surface"] == _NOTIFICATION, cand["action"] == _SEND
        chosen |= sent if notification.all() else sent & np.repeat(notification, np.diff(batch.offsets))
    return chosen


def decision_columns(
    batch: Batch, chosen: Bools, common: Mapping[str, Array], hashes: EntityHashes, ledger: Ledgered
) -> tuple[int, dict[str, Any]]:
    """Number of rows and columns: one row per chosen candidate, in order of slot, and one per request without any
    (chosen_idx -1)."""
    req = batch.requests
    rows, slots, cand_at = _order(batch, np.flatnonzero(chosen))
    count = len(rows)
    repeats = Repeats.of([count]) if len(batch) == 1 else Repeats.of(np.bincount(rows, minlength=len(batch)))
    surface = req["surface"]
    known = cand_at >= 0
    out: dict[str, Any] = {name: Runs(values, repeats) for name, values in common.items()}
    out |= {"slot": slots, "surface": Runs(surface, repeats)}
    out["chosen_idx"] = np.where(known, cand_at - batch.offsets[rows], -1).astype(np.int32)
    out.update(_copies(batch.candidates, cand_at, known, hashes))
    notification = surface == _NOTIFICATION
    if not notification.any() and bool(known.all()) and not _TOLD.intersection(req):
        out.update(_shown(batch.candidates, cand_at))
    else:
        out.update(_outcomes(batch, rows, cand_at, known, notification[rows]))
    out.update(_ghosts(batch, rows))
    out["read_version"] = out["order"]
    commit_version, granted, keys = ledger
    if commit_version is not None:
        out["commit_version"] = commit_version[rows]
    out["granted"] = _granted(out["action"], None if granted is None else (~notification | granted)[rows])
    if keys is not None:
        own = [keys[row] for row in rows.tolist()]
        out["idempotency_key"] = Ragged(
            np.frombuffer(b"".join(own), np.uint8), lengths_to_offsets([len(one) for one in own])
        )
    return count, out


def _granted(action: Array | Runs, granted: Bools | None) -> Array | Runs:
    """bool[k]: served, and granted where the ledger was asked."""
    if isinstance(action, Runs) and granted is None:
        return Runs((action.values == _SEND) | (action.values == _SHOW), action.repeats)
    done = spelled_out(action)
    served: Bools = (done == _SEND) | (done == _SHOW)
    return served if granted is None else served & granted


def _shown(cand: Columns, cand_at: I64) -> dict[str, Array | Runs]:
    """As `_outcomes`, of lists that were made and nothing else: each row is something shown."""
    rows = len(cand_at)
    return {
        "action": Runs.constant(_SHOW, rows),
        "reason": Runs.constant(_CHOSEN, rows),
        "until": Runs.constant(np.int64(0), rows),
        "p_action": column_at(cand, "p_slot", cand_at, np.nan),
        "p_none": Runs.constant(np.float64(0.0), rows),
    }


def _order(batch: Batch, at: I64) -> tuple[I64, I32, I64]:
    """Request, slot and candidate (-1: none) of each row. at: the chosen candidates."""
    rows = np.searchsorted(batch.offsets, at, side="right") - 1 if len(batch) > 1 else np.zeros(len(at), np.int64)
    slots, cand_at = _slots(batch, at, rows), at
    counts = np.bincount(rows, minlength=len(batch))
    if not counts.all():
        none = np.flatnonzero(counts == 0)
        rows = np.concatenate([rows, none])
        slots = np.concatenate([slots, np.zeros(len(none), np.int32)])
        cand_at = np.concatenate([at, np.full(len(none), -1, np.int64)])
    if len(rows) == 1:
        return rows, slots, cand_at
    order = np.lexsort((slots, rows))
    return rows[order], slots[order], cand_at[order]


def _slots(batch: Batch, at: I64, rows: I64) -> I32:
    """Slot of each chosen candidate; sends without a slot are numbered in candidate order. rows: the request of each."""
    cand = batch.candidates
    given = cand["slot"][at] if "slot" in cand else np.full(len(at), -1, np.int32)
    if len(at) == 0 or (given >= 0).all():
        return given.astype(np.int32, copy=False)
    first = np.searchsorted(rows, rows)
    return np.where(given >= 0, given, np.arange(len(at)) - first).astype(np.int32)


def _copies(cand: Columns, cand_at: I64, known: Bools, hashes: EntityHashes) -> dict[str, Array]:
    """What is repeated of the chosen candidates; absent where none was chosen at all."""
    if not known.any():
        return {}
    places, every = cand_at[known], bool(known.all())
    copies = {name: cand[name][places] for name in _COPIES if name in cand}
    copies |= entity_columns(copies, hashes)
    if every:
        return copies
    out: dict[str, Array] = {}
    for name, values in copies.items():
        out[name] = np.full(len(cand_at), SENTINELS.get(name, 0), values.dtype)
        out[name][known] = values
    return out


def _outcomes(batch: Batch, rows: I64, cand_at: I64, known: Bools, notification: Bools) -> dict[str, Array]:
    """action, reason, until, p_action, p_none, forced, explored of each decision row."""
    req, cand = batch.requests, batch.candidates
    p_none = column_at(req, "p_none", rows, np.nan).astype(np.float64, copy=False)
    p_action = p_none
    if cand.rows:
        # A notification's probability is p_choice; a slate's is p_slot.
        p_choice, p_slot = (column_at(cand, name, cand_at, np.nan) for name in ("p_choice", "p_slot"))
        p_action = np.where(known, np.where(notification, p_choice, p_slot), p_none)
    done = np.where(notification, _SEND, _SHOW)
    return {
        "action": np.where(known, done, column_at(req, "action", rows, _NO_ACTION)).astype(np.int8, copy=False),
        "reason": np.where(known, _CHOSEN, column_at(req, "reason", rows, _NO_REASON)).astype(np.int8, copy=False),
        "until": np.where(known, 0, column_at(req, "until", rows, 0)).astype(np.int64, copy=False),
        "p_action": p_action,
        "p_none": np.where(notification, p_none, 0.0),
        "forced": column_at(req, "forced", rows, False),
        "explored": column_at(req, "explored", rows, False),
    }


def _ghosts(batch: Batch, rows: I64) -> dict[str, Bools]:
    """ghost and ghost_first of the request, marked on its first row only, so that summing rows counts requests."""
    out: dict[str, Bools] = {}
    for name in ("ghost", "ghost_first"):
        if name not in batch.candidates:
            continue
        marked = np.zeros(len(batch), np.bool_)
        marked[batch.owner[batch.candidates[name]]] = True
        first = np.ones(len(rows), np.bool_)
        np.not_equal(rows[1:], rows[:-1], out=first[1:])
        out[name] = marked[rows] & first
    return out
