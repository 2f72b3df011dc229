"""The choice among candidates that may be sent: the best one, or with a known probability something else (a flip).

With flip probability e and k things to flip to, the best candidate has probability 1 - e and each of the k has e / k.
Things to flip to are the other eligible candidates of the classes the policy names, and `none`. The noise is a hash of
(root, attempt, salt, candidate identity): no position in the batch enters it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import inlined, kernel
from serve_app.noise import absorb, unit_interval
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.result import column
from serve_app.policy.tables import CLASS_PRIORITY, FLIP_CLASSES, FLIP_NONE, FLIP_OTHERS, ORDER_BY_VALUE

__all__ = ["Choice", "best_of", "choose", "choose_one"]

I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_FLIP_OR_NOT = np.uint64(0x666C6970)
_WHICH = np.uint64(0x7768696368)
_NONE_IDENTITY = np.uint64(0)


@dataclass(slots=True)
class Choice:
    """Per request: best and winner i64[n] candidate rows (-1: none), explored bool[n], p_none f64[n]; per
    candidate p_choice f64[m]. p_choice of a request's candidates and p_none sum to 1."""

    best: I64
    winner: I64
    explored: Bool
    p_none: F64
    p_choice: F64


@inlined
def _is_better(
    c: int, best: int, by_value: bool, priority: I16, kind: I8, v: int, classes: I64, value: F64, identity: U64
) -> bool:
    """Does c go before best? By priority unless the policy says value, by value, then by identity."""
    if not by_value:
        mine = priority[c] + classes[v, max(kind[c], 0), CLASS_PRIORITY]
        theirs = priority[best] + classes[v, max(kind[best], 0), CLASS_PRIORITY]
        if mine != theirs:
            return mine > theirs
    a = -np.inf if np.isnan(value[c]) else value[c]
    b = -np.inf if np.isnan(value[best]) else value[best]
    if a != b:
        return a > b
    return identity[c] < identity[best]


@inlined
def _flippable(kind: int, v: int, scalars: I64) -> bool:
    return kind >= 0 and (scalars[v, FLIP_CLASSES] >> kind) & 1 == 1


@inlined
def flip_targets(
    begin: int, end: int, best: int, v: int, eligible: Bool, kind: I8, scalars: I64, flip: F64
) -> tuple[int, bool]:
    """Scalar, inside kernels: how many other candidates, and whether `none` too, the choice of `best` may be flipped to."""
    if best < 0 or flip[v] == 0.0 or not _flippable(kind[best], v, scalars):
        return 0, False
    others = 0
    if scalars[v, FLIP_OTHERS]:
        for c in range(begin, end):
            if eligible[c] and c != best and _flippable(kind[c], v, scalars):
                others += 1
    return others, scalars[v, FLIP_NONE] == 1


@inlined
def best_of(
    begin: int, end: int, v: int, eligible: Bool, priority: I16, kind: I8, value: F64, identity: U64, classes: I64,
    scalars: I64,
) -> int:  # fmt: skip
    """Scalar, inside kernels: the candidate among begin..end that goes before all other eligible ones; -1: none is."""
    best = -1
    for c in range(begin, end):
        if eligible[c] and (
            best < 0 or _is_better(c, best, scalars[v, ORDER_BY_VALUE] == 1, priority, kind, v, classes, value, identity)
        ):
            best = c
    return best


@inlined
def choose_one(
    begin: int, end: int, best: int, root: np.uint64, attempt: int, v: int, eligible: Bool, kind: I8, identity: U64,
    scalars: I64, flip: F64, flipping: bool, salt: np.uint64, p_choice: F64,
) -> tuple[int, bool, float]:  # fmt: skip
    """Scalar, inside kernels: (winner, whether a flip made it so, probability of none) among begin..end, of which `best`
    goes first; sets their p_choice. identity: needed where there is more than one eligible candidate."""
    for c in range(begin, end):
        p_choice[c] = 0.0
    if best < 0:
        return -1, False, 1.0
    p_choice[best] = 1.0
    others, or_none = flip_targets(begin, end, best, v, eligible, kind, scalars, flip) if flipping else (0, False)
    targets = others + (1 if or_none else 0)
    if targets == 0:
        return best, False, 0.0
    each = flip[v] / targets
    p_choice[best] = 1.0 - flip[v]
    if others:
        for c in range(begin, end):
            if eligible[c] and c != best and _flippable(kind[c], v, scalars):
                p_choice[c] = each
    p_none = each if or_none else 0.0
    key = absorb(absorb(salt, root), np.uint64(np.int64(attempt)))
    if not unit_interval(absorb(key, _FLIP_OR_NOT)) < flip[v]:
        return best, False, p_none
    race = absorb(key, _WHICH)
    chosen, highest, found = -1, np.uint64(0), False
    if or_none:
        highest, found = absorb(race, _NONE_IDENTITY), True
    if others:
        for c in range(begin, end):
            if eligible[c] and c != best and _flippable(kind[c], v, scalars):
                drawn = absorb(race, identity[c])
                if not found or drawn > highest:
                    chosen, highest, found = c, drawn, True
    return chosen, True, p_none


@kernel
def _choose(
    offsets: I64, root: U64, attempt: I16, variant: I16, eligible: Bool, priority: I16, kind: I8, value: F64, identity: U64,
    classes: I64, scalars: I64, flip: F64, flipping: bool, salt: np.uint64,
    best: I64, winner: I64, explored: Bool, p_none: F64, p_choice: F64,
) -> None:  # fmt: skip
    for r in range(len(root)):
        begin, end, v = offsets[r], offsets[r + 1], variant[r]
        best[r] = best_of(begin, end, v, eligible, priority, kind, value, identity, classes, scalars)
        winner[r], explored[r], p_none[r] = choose_one(
            begin, end, best[r], root[r], attempt[r], v, eligible, kind, identity, scalars, flip, flipping, salt, p_choice
        )


def choose(
    batch: Batch, eligible: Bool, identity: U64, policy: CompiledPolicy, *, flipping: bool = True, salt: int = 0
) -> Choice:
    """One choice per request among `eligible` (bool[m]). `salt` sets this draw's noise apart (a shadow's key)."""
    n, m = len(batch), batch.candidates.rows
    out = Choice(np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.bool_), np.empty(n), np.empty(m))
    key = policy.rules.flip_salt if salt == 0 else absorb(policy.rules.flip_salt, np.uint64(salt))
    requests, rows, settings = batch.requests, batch.candidates, policy.settings
    _choose(
        batch.offsets, column(requests, "root_id"), column(requests, "attempt"), column(requests, "variant"), eligible,
        column(rows, "priority"), column(rows, "message_class"), column(rows, "value"), identity, settings.classes,
        settings.scalars, settings.flip_probability, flipping, np.uint64(key), out.best, out.winner, out.explored,
        out.p_none, out.p_choice,
    )  # fmt: skip
    return out
