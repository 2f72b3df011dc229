"""From choices to outcomes: action and reason of every candidate and of the request, probabilities, until."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import inlined, kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.stages.decision.rounds import Sends
from serve_app.stages.decision.shadows import Shadows
from serve_app.stages.decision.words import Verdicts
from serve_app.vocabulary import Action, Reason

__all__ = ["settle", "settle_one"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_SEND, _SUPPRESS, _DEFER, _NONE = int(Action.send), int(Action.suppress), int(Action.defer), int(Action.none)
_CHOSEN, _PREEMPTED, _EXPLORED = int(Reason.chosen), int(Reason.preempted), int(Reason.explored_off)


@inlined
def _has_ghost(start: int, end: int, h: int, holdout: I16, ghost: Bool) -> bool:
    """Did holdout h withhold a send of this request already?"""
    found = False
    for c in range(start, end):
        found = found or (h >= 0 and ghost[c] and holdout[c] == h)
    return found


@inlined
def settle_one(
    begin: int, end: int, best: int, explored: bool, blocked_by: int, slot: I32, passed: Bool, first: I8, holdout: I16,
    ghost: Bool, base: int, holdout_reasons: I8, reason: I8, action: I8, until: I64, silenced_by: I16,
) -> tuple[int, int, int]:  # fmt: skip
    """Scalar, inside kernels: (action, reason, until) of a request with candidates begin..end, and theirs, in place. base:
    where the policy's holdouts begin among `holdout_reasons`."""
    sent, furthest, soonest, haunted = False, -1, -1, -1
    for c in range(begin, end):
        silenced_by[c] = -1
        if slot[c] >= 0:
            action[c], reason[c], until[c] = _SEND, _CHOSEN, 0
            sent = True
        elif ghost[c]:
            action[c], reason[c], silenced_by[c] = _SUPPRESS, holdout_reasons[base + holdout[c]], holdout[c]
            haunted = c if haunted < 0 else haunted
        elif passed[c]:
            action[c] = _SUPPRESS
            reason[c] = _EXPLORED if explored and c == best else _PREEMPTED
            if blocked_by >= 0 and c == best:
                reason[c], silenced_by[c] = holdout_reasons[base + blocked_by], blocked_by
        elif action[c] == _DEFER and (soonest < 0 or until[c] < until[soonest]):
            # A withheld message is deferred like any other, so that it can become a ghost when its time comes.
            soonest = soonest if _has_ghost(begin, end, holdout[c], holdout, ghost) else c
        if not sent and (furthest < 0 or first[c] > first[furthest]):
            furthest = c
    if sent:
        return _SEND, 0, 0
    if blocked_by >= 0:
        return _SUPPRESS, holdout_reasons[base + blocked_by], 0
    if explored:
        return _SUPPRESS, _EXPLORED, 0
    if soonest >= 0:
        return _DEFER, reason[soonest], until[soonest]
    if haunted >= 0:
        return _SUPPRESS, reason[haunted], 0
    if furthest >= 0:
        return _SUPPRESS, reason[furthest], 0
    return _NONE, 0, 0


@kernel
def _settle(
    offsets: I64, slot: I32, best: I64, explored: Bool, passed: Bool, first: I8, holdout: I16, ghost: Bool,
    blocked_by: I16, holdout_reasons: I8, reason: I8, action: I8, until: I64, silenced_by: I16,
    r_action: I8, r_reason: I8, r_until: I64,
) -> None:  # fmt: skip
    for r in range(len(best)):
        r_action[r], r_reason[r], r_until[r] = settle_one(
            offsets[r], offsets[r + 1], best[r], explored[r], blocked_by[r], slot, passed, first, holdout, ghost, 0,
            holdout_reasons, reason, action, until, silenced_by,
        )  # fmt: skip


@kernel
def _scale(offsets: I64, p_choice: F64, p_open: F64, p_none: F64, forced: Bool) -> None:
    """Multiply in the probability that no blocking holdout silences the request, and mark what is certain."""
    for r in range(len(p_none)):
        if p_open[r] != 1.0:
            p_none[r] = 1.0 - p_open[r] * (1.0 - p_none[r])
        forced[r] = p_none[r] == 1.0
        for c in range(offsets[r], offsets[r + 1]):
            p_choice[c] *= p_open[r]
            forced[r] = forced[r] or p_choice[c] == 1.0


def settle(batch: Batch, policy: CompiledPolicy, verdicts: Verdicts, sends: Sends, shadows: Shadows) -> Bool:
    """Set the outcome columns of requests and candidates; returns bool[m], who is sent.

    A request is `send` with reason none; otherwise its reason is, in this order: the blocking holdout, the flip, the
    deferral that ends soonest, the holdout of its ghost, that of the candidate that got furthest through the gates.
    """
    n, m = len(batch), batch.candidates.rows
    first, requests, rows = sends.first, batch.requests, batch.candidates
    silent = shadows.blocked_by >= 0
    slot = sends.slot
    if silent.any():
        slot = np.where(np.repeat(silent, np.diff(batch.offsets)), np.int32(-1), slot)
    silenced_by = np.empty(m, np.int16)
    r_action, r_reason, r_until = np.empty(n, np.int8), np.empty(n, np.int8), np.empty(n, np.int64)
    explored = first.explored & ~silent
    _settle(
        batch.offsets, slot, first.best, explored, verdicts.passed, verdicts.first, shadows.holdout, shadows.ghost,
        shadows.blocked_by, policy.holdouts.reasons, verdicts.reason, verdicts.action, verdicts.until, silenced_by,
        r_action, r_reason, r_until,
    )  # fmt: skip
    forced = np.empty(n, np.bool_)
    _scale(batch.offsets, first.p_choice, shadows.p_open, first.p_none, forced)
    requests["p_none"], requests["explored"] = first.p_none, explored
    requests["forced"] = forced
    requests["action"], requests["reason"], requests["until"] = r_action, r_reason, r_until
    rows["slot"], rows["p_choice"], rows["p_shadow"] = slot, first.p_choice, shadows.p_shadow
    rows["reason"], rows["action"], rows["until"] = verdicts.reason, verdicts.action, verdicts.until
    rows["ghost"], rows["holdout"] = shadows.ghost, silenced_by
    return slot >= 0
