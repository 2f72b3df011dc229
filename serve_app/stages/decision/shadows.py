"""Holdouts, applied last: what each holdout withheld, decided on its own shadow history.

A held-out candidate goes through every gate and the choice on the shadow history of its holdout: factual sends and that
holdout's ghosts. If it wins there it is a ghost: a would-have-sent, counted in the shadow history only. Real sends are then
chosen among the candidates nobody withholds, on the factual history alone. Where a `blocking` holdout's shadow put a
withheld message first, the request sends nothing; where it put one among the later sends, one send fewer is made.

Shadow choices draw noise of their own (salted by the holdout's key), independent of the factual choice, so that the
probability of every real outcome is a product: p(no blocking shadow wins) times p(factual choice).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates import HistoryView
from serve_app.policy.gates.result import column
from serve_app.policy.holdouts import covers, held_out_by, is_held
from serve_app.stages.decision.rounds import sends_of
from serve_app.stages.decision.words import Words, evaluate_history_gates
from serve_app.stages.stage import Context

__all__ = ["Shadows", "first_covered", "withheld"]

I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Shadows:
    """holdout i16[m]: which one withholds a candidate (-1: none); ghost bool[m]: it would have been sent; p_shadow f64[m];
    blocked_by i16[n]: blocking holdout that silences the request (-1: none); p_open f64[n]: probability that none does;
    fewer i64[n]: later sends that blocking holdouts keep empty."""

    holdout: I16
    ghost: Bool
    p_shadow: F64
    blocked_by: I16
    p_open: F64
    fewer: I64


def withheld(
    batch: Batch, histories: HistoryView, words: Words, identity: U64, policy: CompiledPolicy, context: Context
) -> Shadows:
    """Run each holdout's shadow for the requests it touches. Withheld candidates' `words` become those on their shadow."""
    n, m = len(batch), batch.candidates.rows
    requests, rows = batch.requests, batch.candidates
    holdout, count = held_out_by(
        policy.holdouts, batch.offsets, column(requests, "user"), column(requests, "decided_at"), column(rows, "campaign"),
        column(rows, "message_class"),
    )  # fmt: skip
    out = Shadows(holdout, np.zeros(m, np.bool_), np.zeros(m), np.full(n, -1, np.int16), np.ones(n), np.zeros(n, np.int64))
    if count:
        for h in np.unique(holdout[holdout >= 0]).tolist():
            _shadow(h, out, batch, histories, words, identity, policy, context)
    return out


def _shadow(
    h: int, out: Shadows, batch: Batch, histories: HistoryView, words: Words, identity: U64, policy: CompiledPolicy,
    context: Context,
) -> None:  # fmt: skip
    key = int(policy.holdouts.keys[h])
    touched = np.zeros(len(batch), np.bool_)
    touched[batch.owner[out.holdout == h]] = True
    requests = np.flatnonzero(touched)
    own = np.flatnonzero(np.repeat(touched, np.diff(batch.offsets)))
    part, view = batch.take(requests), histories.take(requests, shadow=key)
    seen = words.take(own)
    evaluate_history_gates(seen, part, view, policy, context)
    mine = out.holdout[own] == h
    sends = sends_of(part, view, seen, mine | (out.holdout[own] < 0), identity[own], policy, context, salt=key)
    words.put(own[mine], seen, np.flatnonzero(mine))
    out.ghost[own[mine]] = sends.slot[mine] >= 0
    out.p_shadow[own[mine]] = sends.first.p_choice[mine]
    if policy.holdouts.blocking[h]:
        _block(h, out, part, requests, mine, sends.first.winner, sends.first.p_choice)
        later = np.zeros(len(part), np.int64)
        _count_by_request(part.offsets, mine & (sends.slot > 0), later)
        out.fewer[requests] += later


def _block(h: int, out: Shadows, part: Batch, requests: I64, mine: Bool, winner: I64, p_choice: F64) -> None:
    won = np.flatnonzero(winner >= 0)
    silenced = requests[won[mine[winner[won]]]]
    out.blocked_by[silenced] = np.where(out.blocked_by[silenced] < 0, h, out.blocked_by[silenced])
    p_withheld = np.zeros(len(part))
    _add_by_request(part.offsets, np.where(mine, p_choice, 0.0), p_withheld)
    out.p_open[requests] *= 1.0 - p_withheld


@kernel
def _add_by_request(offsets: I64, values: F64, out: F64) -> None:
    for r in range(len(out)):
        for c in range(offsets[r], offsets[r + 1]):
            out[r] += values[c]


@kernel
def _count_by_request(offsets: I64, marks: Bool, out: I64) -> None:
    for r in range(len(out)):
        for c in range(offsets[r], offsets[r + 1]):
            out[r] += 1 if marks[c] else 0


@kernel
def _first_covered(
    offsets: I64, users: U64, at: I64, campaign: U64, kind: I8, chosen: Bool, ghost: Bool, holdout: I16,
    history: I64, times: I64, campaigns: U64, kinds: I8, holdouts: U64,
    keys: U64, salts: U64, share: F64, classes: I64, dates: I64, limited_to: U64, limits: I64, out: Bool,
) -> None:  # fmt: skip
    for r in range(len(users)):
        for h in range(len(keys)):
            first = -1
            for c in range(offsets[r], offsets[r + 1]):
                would = chosen[c] or (ghost[c] and holdout[c] == h)
                if would and first < 0 and covers(h, at[r], campaign[c], kind[c], classes, dates, limited_to, limits):
                    first = c
            if first < 0 or (chosen[first] and is_held(h, users[r], salts, share)):
                continue
            earlier = False
            for e in range(history[r], history[r + 1]):
                if (holdouts[e] == 0 or holdouts[e] == keys[h]) and covers(
                    h, times[e], campaigns[e], kinds[e], classes, dates, limited_to, limits
                ):
                    earlier = True
                    break
            if not earlier:
                out[first] = True


def first_covered(batch: Batch, histories: HistoryView, policy: CompiledPolicy, chosen: Bool, shadows: Shadows) -> Bool:
    """bool[m]: the user's first would-send under some holdout, in both arms: the trigger of its analysis.

    First as far as the history reaches: where entries are kept for 40 days, a user may be marked again after 40 days
    without one.
    """
    out = np.zeros(batch.candidates.rows, np.bool_)
    own, entries = policy.holdouts, histories.entries
    if len(own):
        _first_covered(
            batch.offsets, column(batch.requests, "user"), column(batch.requests, "decided_at"),
            column(batch.candidates, "campaign"), column(batch.candidates, "message_class"), chosen, shadows.ghost,
            shadows.holdout, histories.offsets,
            entries["at"], entries["campaign"], entries["message_class"], entries["holdout"], own.keys, own.salts, own.share,
            own.classes, own.dates, own.campaigns, own.offsets, out,
        )  # fmt: skip
    return out
