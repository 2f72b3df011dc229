"""The last look before a queued message is handed over: the same gates, on the user's state and the switches of this moment.

Between grant and delivery users opt out, switches are thrown and nights begin. Asked again are the gates that speak of
those: kill switch, expiry, consent, channel, quiet hours. Caps and gaps are not: the grant has already been counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.ledger.columns import Histories, LedgerView
from serve_app.noise import hash_key, salt_of, uniform
from serve_app.policy.gates import GATES, HistoryView
from serve_app.serving.asking import notification_requests
from serve_app.serving.library import Edition
from serve_app.serving.outbox_rows import QueuedSend
from serve_app.stages.decision.prepare import prepared
from serve_app.vocabulary import GateOutcome, MessageClass, Reason

__all__ = ["ASKED_AGAIN", "Verdict", "last_look"]

I64 = npt.NDArray[np.int64]

ASKED_AGAIN = ("kill_switch", "expired", "consent", "channel", "quiet_hours")
_SPREAD = salt_of("outbox after quiet hours")
_STATE = ("consent_ad_at", "consent_night_at", "customer_until", "reachable", "opted_out")


@dataclass(frozen=True, slots=True)
class Verdict:
    """reason none and hold_until 0: hand it over now. A reason: withdraw it. hold_until: not before then."""

    reason: Reason = Reason.none
    hold_until: int = 0


def last_look(sends: Sequence[QueuedSend], view: LedgerView, edition: Edition, now: int) -> list[Verdict]:
    """The verdict on each send; `view` is the ledger's, one row per send."""
    if not sends:
        return []
    batch = prepared(_batch(sends, view, edition, now), edition.policy)
    nothing = HistoryView.of(Histories.empty(len(sends)))
    words = [GATES[name](batch, nothing, edition.policy, edition.context) for name in ASKED_AGAIN]
    spread = edition.policy.document.deferral.spread_minutes * 60e6
    late = (uniform(hash_key(_SPREAD, batch.requests["request_id"], batch.requests["user"])) * spread).astype(np.int64)
    out = []
    for row, send in enumerate(sends):
        verdict = Verdict()
        for word in words:
            outcome = GateOutcome(int(word.outcome[row]))
            if outcome is GateOutcome.keep:
                continue
            until = int(word.next_free_at[row]) + int(late[row])
            if outcome is GateOutcome.suppress or word.next_free_at[row] <= now:
                verdict = Verdict(Reason(int(word.reason[row])))
            elif send.expires_at and until >= send.expires_at:
                verdict = Verdict(Reason.expired)
            else:
                verdict = Verdict(hold_until=until)
            break
        out.append(verdict)
    return out


def _batch(sends: Sequence[QueuedSend], view: LedgerView, edition: Edition, now: int) -> Batch:
    n = len(sends)
    at = np.full(n, now, np.int64)
    asked = notification_requests(
        edition,
        request_ids=np.array([one.request_id for one in sends], np.uint64),
        users=np.array([one.user for one in sends], np.uint64),
        decided_at=at,
        deadline_at=at,
        slots=np.ones(n, np.int32),
        expires_at=np.array([one.expires_at for one in sends], np.int64),
    )
    requests = asked.requests.copy()
    for name in _STATE:
        requests[name] = getattr(view.state, name)
    for name in ("zone", "region"):
        known = getattr(view.state, name)
        requests[name] = np.where(known >= 0, known, asked.requests[name])
    campaign = np.array([one.campaign for one in sends], np.uint64)
    table = edition.campaigns
    row = table.rows_of(campaign)
    known, place = row >= 0, np.maximum(row, 0)
    granted_as = np.array([MessageClass[one.message_class] for one in sends], np.int8)
    item = edition.view.rows_of(np.array([one.item or 0 for one in sends], np.uint64))
    about = np.array([one.item is not None for one in sends], np.bool_)
    gone = about & ((item < 0) | edition.view.overlay.unavailable[np.maximum(item, 0)])
    return Batch(requests, asked.candidates, asked.offsets, asked.meta).with_candidates(
        np.arange(n + 1, dtype=np.int64),
        item=np.where(about, item, -1).astype(np.int32),
        campaign=campaign,
        channel=np.array([int(one.channel) for one in sends], np.int8),
        message_class=np.where(known, table.message_class[place], granted_as) if len(table) else granted_as,
        category=np.where(known, table.category[place], np.uint64(0)) if len(table) else np.zeros(n, np.uint64),
        labelled=known & table.labelled[place] if len(table) else known,
        campaign_killed=~known | gone | (table.closed[place] if len(table) else known),
    )
