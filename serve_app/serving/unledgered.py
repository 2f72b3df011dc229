"""Messages that do not wait for the ledger: transactional ones, while it is down, where the policy lets them.

Only rows of which no commit was attempted are sent so. Nothing can be read or written then: the message is sent at least
once (a repeated key sends again), consumes no cap, needs a caller who delivers it (the outbox lies in the ledger), and is
taken to reach the user on every channel, because opt-outs of that minute cannot be known. Answer, log (`degraded: ledger`,
no version read) and metrics say so. All other gates hold, and every other message stays closed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.decide import DecidedBatch, DecideStatus
from serve_app.ledger.columns import Histories
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates import GATE_NAMES
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import Action, Channel, Delivery, GateOutcome, MessageClass, Reason, StageBit

__all__ = ["may_send_unledgered", "send_unledgered"]

Bools = npt.NDArray[np.bool_]
_EVERY_CHANNEL = np.uint16(sum(1 << channel for channel in Channel))
_SWITCH = GATE_NAMES.index("kill_switch")


def _classes(policy: CompiledPolicy) -> Bools:
    """bool[variants, classes]: which classes each variant of the policy lets go unledgered."""
    names = [one.name for one in sorted(MessageClass)]
    return np.array([[getattr(v.message_classes, name).unledgered for name in names] for v in policy.variants], np.bool_)


def may_send_unledgered(policy: CompiledPolicy) -> bool:
    """Whether any class of any variant may."""
    return bool(_classes(policy).any())


def send_unledgered(
    decided: DecidedBatch, stage: Decision, context: Context, item_hashes: npt.NDArray[np.uint64]
) -> DecidedBatch:
    """Decide the rows that the ledger's absence closed once more, without it; those that send become `unledgered`.
    item_hashes: u64 by item row."""
    rows = np.flatnonzero(decided.status == DecideStatus.ledger_unavailable)
    (policy,) = context.policies
    if not len(rows) or not may_send_unledgered(policy):
        return decided
    closed = decided.batch.take(rows)
    eligible = _eligible(closed, policy)
    parts = {**context.parts, "histories": Histories.empty(len(rows)), "item_hashes": item_hashes}
    out = stage.run(_asked(closed, eligible), replace(context, parts=parts))
    out = _restored(out, closed, eligible)
    sent = np.flatnonzero(out.requests["action"] == Action.send)
    if not len(sent):
        return decided
    status, granted = decided.status.copy(), decided.granted.copy()
    status[rows[sent]], granted[rows[sent]] = DecideStatus.unledgered, True
    return DecidedBatch(
        _put(decided.batch, out.take(sent), rows[sent]), status, granted, decided.versions, decided.stored, decided.conflicts
    )


def _eligible(batch: Batch, policy: CompiledPolicy) -> Bools:
    kind, own = batch.candidates["message_class"], batch.candidates["delivery"]
    allowed: Bools = _classes(policy)[batch.requests["variant"][batch.owner], np.maximum(kind, 0)]
    return allowed & (kind >= 0) & (own == Delivery.caller)


def _asked(closed: Batch, eligible: Bools) -> Batch:
    """The rows with what is assumed of their users, everything that must not go switched off."""
    n = len(closed)
    requests = closed.requests.copy()
    requests["reachable"] = np.full(n, _EVERY_CHANNEL)
    requests["opted_out"] = np.zeros(n, np.uint16)
    requests["degraded"] = closed.requests["degraded"] | np.uint8(StageBit.ledger)
    candidates = closed.candidates.copy()
    candidates["campaign_killed"] = closed.candidates["campaign_killed"] | ~eligible
    return Batch(requests, candidates, closed.offsets, closed.meta)


def _restored(out: Batch, closed: Batch, eligible: Bools) -> Batch:
    """Say of the others why they did not go: not a switch of their own, but the ledger."""
    killed = closed.candidates["campaign_killed"]
    others = ~eligible & ~killed
    candidates = out.candidates
    candidates["campaign_killed"] = killed
    candidates["reason"] = np.where(others, np.int8(Reason.ledger_unavailable), candidates["reason"])
    word = candidates["gate_reason"].copy()
    mine = others & (candidates["gate_outcome"][:, _SWITCH] == GateOutcome.suppress)
    word[mine, _SWITCH] = Reason.ledger_unavailable
    candidates["gate_reason"] = word
    return Batch(out.requests, candidates, out.offsets, out.meta)


def _put(batch: Batch, rows: Batch, places: npt.NDArray[np.int64]) -> Batch:
    """`batch` with `rows` at `places`."""
    others = np.setdiff1d(np.arange(len(batch)), places)
    joined = rows if not len(others) else Batch.concat([batch.take(others), rows])
    back = np.empty(len(batch), np.int64)
    back[np.concatenate([others, places])] = np.arange(len(batch))
    return joined.take(back)
