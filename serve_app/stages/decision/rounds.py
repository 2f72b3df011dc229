"""Several sends in one decision: one after the other in priority order, each counted before the next is looked for.

Flips concern the first send alone: the later ones follow from it with certainty, so that the first choice's probability
is that of the whole outcome, and `p_choice` with `p_none` describe it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.ledger.columns import HISTORY_DTYPE
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates import HistoryView
from serve_app.policy.gates.result import THIS_DECISION, column
from serve_app.policy.tables import MAX_SENDS
from serve_app.policy.zones import local_day
from serve_app.stages.decision.choose import Choice, choose
from serve_app.stages.decision.words import Words, evaluate_history_gates
from serve_app.stages.stage import Context

__all__ = ["Sends", "sends_of"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Sends:
    """The first choice, and slot i32[m]: place among the sends of the request, -1: not sent."""

    first: Choice
    slot: I32


def sends_of(
    batch: Batch, histories: HistoryView, words: Words, allowed: Bool, identity: U64, policy: CompiledPolicy,
    context: Context, *, salt: int = 0, fewer: I64 | None = None,
) -> Sends:  # fmt: skip
    """Choose as many as the request's `slots` and the policy allow, among `allowed` (bool[m]) candidates that all `words`
    let pass. `salt` names the shadow this happens in, 0: the facts. fewer i64[n]: later sends that are to be missing."""
    first = choose(batch, allowed & words.passed(), identity, policy, salt=salt)
    slot = np.full(batch.candidates.rows, -1, np.int32)
    sent = np.flatnonzero(first.winner >= 0)
    slot[first.winner[sent]] = 0
    most = np.minimum(batch.requests["slots"], policy.settings.scalars[batch.requests["variant"], MAX_SENDS])
    most = most if fewer is None else most - fewer
    rows = sent[most[sent] > 1]
    seen, last, place = histories, first.winner, 1
    while len(rows):
        rows, last, seen = _next(batch, rows, seen, last, slot, place, words, allowed, identity, policy, context)
        place += 1
        rows = rows[most[rows] > place]
    return Sends(first, slot)


def _next(
    batch: Batch, rows: I64, seen: HistoryView, last: I64, slot: I32, place: int, words: Words, allowed: Bool,
    identity: U64, policy: CompiledPolicy, context: Context,
) -> tuple[I64, I64, HistoryView]:  # fmt: skip
    """One more round for `rows`: the requests that sent again, their newest send by request, and the histories with it."""
    part = batch.take(rows)
    own = np.flatnonzero(np.repeat(_mask(len(batch), rows), np.diff(batch.offsets)))
    view = seen.take(rows).with_entries(_counted(batch, rows, last[rows]))
    again = words.take(own)
    evaluate_history_gates(again, part, view, policy, context)
    open_ = allowed[own] & (slot[own] < 0) & again.passed()
    choice = choose(part, open_, identity[own], policy, flipping=False)
    won = np.flatnonzero(choice.winner >= 0)
    slot[own[choice.winner[won]]] = place
    newest = np.full(len(batch), -1, np.int64)
    newest[rows[won]] = own[choice.winner[won]]
    return rows[won], newest, _spread(view, rows, len(batch), seen)


def _mask(rows: int, chosen: I64) -> Bool:
    mask = np.zeros(rows, np.bool_)
    mask[chosen] = True
    return mask


def _spread(view: HistoryView, rows: I64, n: int, seen: HistoryView) -> HistoryView:
    """The histories of `rows` put back to their places among n requests (the others need theirs no more)."""
    lengths = np.zeros(n, np.int64)
    lengths[rows] = np.diff(view.offsets)
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return HistoryView(view.entries, offsets, seen.shadow)


def _counted(batch: Batch, rows: I64, winners: I64) -> npt.NDArray[np.void]:
    """Working history entries of sends just decided."""
    entries = np.zeros(len(rows), HISTORY_DTYPE)
    candidates, requests = batch.candidates, batch.requests
    entries["at"] = requests["decided_at"][rows]
    for name in ("campaign", "category", "channel", "message_class"):
        entries[name] = candidates[name][winners]
    entries["local_day"] = local_day(column(requests, "decided_at")[rows], requests["zone"][rows])
    entries["flags"] = THIS_DECISION
    return entries
