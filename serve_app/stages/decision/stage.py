"""The Decision stage: which notification, if any, each request may send, and every gate's word on every candidate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.errors import InvalidInput
from serve_app.ledger.columns import Histories
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates import GATE_NAMES, HistoryView
from serve_app.policy.gates.caps import cap_membership
from serve_app.stages.decision.closed import close
from serve_app.stages.decision.outcome import settle
from serve_app.stages.decision.prepare import identities, prepared
from serve_app.stages.decision.rounds import sends_of
from serve_app.stages.decision.shadows import first_covered, withheld
from serve_app.stages.decision.words import evaluate, verdicts
from serve_app.stages.stage import Context
from serve_app.vocabulary import Reason

__all__ = ["Decision"]

I64 = npt.NDArray[np.int64]

_EVERY_GATE = np.uint32((1 << len(GATE_NAMES)) - 1)


class Decision:
    """Stateless. Needs the request columns request_id, user, decided_at (others: see `prepare`), the candidate columns
    campaign, channel, message_class, heads with `meta["heads"]`, and `context.parts["histories"]` (Histories aligned with
    the batch), and where candidates have items `context.parts["item_hashes"]` (u64 by item row).
    Sets the decision columns of serve_app.columns; `meta["gates"]` names the gates.

    `p_choice` and `p_none` are the probabilities of the first choice given arms, cell, holdouts and history; they sum to 1
    per request. A user must stand in a batch once (`serve_app.decide` splits repeated users into waves).
    """

    name = "decision"

    def run(self, batch: Batch, context: Context) -> Batch:
        """Decide every request. Requests of several policies are decided policy by policy, in place."""
        histories = context.parts.get("histories")
        if not isinstance(histories, Histories) or len(histories.offsets) != len(batch) + 1:
            raise InvalidInput("the decision needs histories aligned with its requests", field="context.parts.histories")
        view = HistoryView.of(histories)
        return _by_policy(batch, context, lambda part, rows, policy: self._decide(part, _of(view, rows), policy, context))

    def closed(self, batch: Batch, context: Context, reason: Reason) -> Batch:
        """The same batch with nothing sent for `reason` (fail closed), no gate asked."""
        return _by_policy(batch, context, lambda part, _, policy: close(prepared(part, policy), reason))

    @staticmethod
    def _decide(batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context) -> Batch:
        batch = prepared(batch, policy)
        identity = identities(batch, context.parts.get("item_hashes"))
        words = evaluate(batch, histories, policy, context)
        shadows = withheld(batch, histories, words, identity, policy, context)
        allowed = shadows.holdout < 0
        sends = sends_of(batch, histories, words, allowed, identity, policy, context, fewer=shadows.fewer)
        sent = settle(batch, policy, verdicts(batch, words, policy), sends, shadows)
        rows = batch.candidates
        rows["ghost_first"] = first_covered(batch, histories, policy, sent, shadows)
        rows["counts"] = cap_membership(batch, policy)
        rows["gates_evaluated"] = np.full(rows.rows, _EVERY_GATE)
        rows["gate_outcome"], rows["gate_reason"] = words.outcome.T, words.reason.T
        rows["used"], rows["limit"], rows["next_free_at"] = words.used.T, words.limit.T, words.next_free_at.T
        meta = {**batch.meta, "gates": GATE_NAMES}
        return Batch(batch.requests, rows, batch.offsets, meta)


def _of(view: HistoryView, rows: I64 | None) -> HistoryView:
    return view if rows is None else view.take(rows)


def _by_policy(batch: Batch, context: Context, decide: Callable[[Batch, I64 | None, CompiledPolicy], Batch]) -> Batch:
    """Decide the requests of each policy together and put them back in order. rows None: the whole batch."""
    if not context.policies:
        raise InvalidInput("the decision needs a compiled policy", field="context.policies")
    used = _policies_used(batch, len(context.policies))
    if len(used) == 1:
        return decide(batch, None, context.policies[used[0]])
    places = [np.flatnonzero(batch.requests["policy"] == policy) for policy in used]
    parts = [decide(batch.take(rows), rows, context.policies[p]) for rows, p in zip(places, used, strict=True)]
    back = np.empty(len(batch), np.int64)
    back[np.concatenate(places)] = np.arange(len(batch))
    return Batch.concat(parts).take(back)


def _policies_used(batch: Batch, known: int) -> list[int]:
    if "policy" not in batch.requests or not len(batch):
        return [0]
    index = batch.requests["policy"]
    lowest, highest = int(index.min()), int(index.max())
    if lowest < 0 or highest >= known:
        raise InvalidInput(
            f"a request is pinned to policy {highest if highest >= known else lowest} of {known}", field="policy"
        )
    return [lowest] if lowest == highest else np.unique(index).tolist()
