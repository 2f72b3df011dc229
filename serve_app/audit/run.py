"""The audit of a data folder: range of buckets by range of buckets, so that memory is that of one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serve_app.audit.agreement import check_agreement, ours_of
from serve_app.audit.consistency import check_log_side
from serve_app.audit.counting import Use, over_cap, too_soon
from serve_app.audit.findings import AuditReport
from serve_app.audit.lawfulness import Granted, unlawful
from serve_app.audit.ledger_side import LedgerSide
from serve_app.audit.log_side import LogSide, log_side
from serve_app.audit.policy_rules import Policies
from serve_app.ids import BUCKETS, decision_id_text
from serve_app.vocabulary import EventType

__all__ = ["audit"]

_GROUPS = 4


def audit(
    data: Path,
    side: LedgerSide | None,
    *,
    now_us: int,
    groups: int = _GROUPS,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> AuditReport:
    """Check ledger, log and outbox against each other and every granted send against the policy that decided it.

    side: the ledger's account, taken before; None: there is no ledger, so only the log is checked. now_us: clock, for
    deferrals that are over. progress(ranges done, of)."""
    report, policies = AuditReport(), Policies(data)
    if side is None:
        report.notes.append("there is no ledger yet: the log was checked by itself")
    else:
        for text in side.damage:
            report.add("ledger_damaged", text)
        if side.outbox is None:
            report.notes.append("the outbox of this backend cannot be listed: it was not checked")
    width = BUCKETS // groups
    for place in range(groups):
        low, high = place * width, (place + 1) * width - 1
        log = log_side(data, low, high)
        report.looked_at["decisions"] += len(log.decisions["user"])
        check_log_side(log, report)
        if side is not None:
            check_agreement(log, side, low, high, report, now_us)
        _check_sends(log, policies, report)
        progress(place + 1, groups)
    return report


def _check_sends(log: LogSide, policies: Policies, report: AuditReport) -> None:
    """Caps, gaps, hours, consents of every granted send."""
    ours = ours_of(log)
    rows = np.flatnonzero(ours.granted)
    request = log.row_of_request()[log.number["decisions"][rows]]
    rows, request = rows[request >= 0], request[request >= 0]
    report.looked_at["granted sends"] += len(rows)
    report.looked_at["of them sent while the ledger was away"] += int(ours.unledgered.sum())
    chosen = _chosen_candidates(log, rows)
    by_user: defaultdict[int, list[int]] = defaultdict(list)
    order = np.lexsort((log.decisions["slot"][rows], log.decisions["ts"][rows], log.decisions["commit_version"][rows]))
    for at in order.tolist():
        if not ours.unledgered[rows[at]]:
            by_user[int(log.decisions["user"][rows[at]])].append(at)
        served = bool(ours.served[rows[at]])
        _check_law(log, int(rows[at]), int(request[at]), int(chosen[at]), policies, report, served=served)
    failed = _failed(log)
    for user, own in by_user.items():
        uses = [_use(log, int(rows[at]), int(request[at]), failed) for at in own]
        for place, at in enumerate(own):
            document = policies.document(*_pins(log, int(request[at])))
            if document is None:
                continue
            one = uses[place]
            name = decision_id_text(user, one.request_id, one.slot)
            for text in over_cap(uses, place, document):
                report.add("over_cap", f"{name}: {text}")
            for text in too_soon(uses, place, document):
                report.add("min_gap", f"{name}: {text}")


def _pins(log: LogSide, request: int) -> tuple[str, int, int]:
    own = log.requests
    return str(own["policy_revision"][request]), int(own["arm_bits"][request]), int(own["cell"][request])


def _failed(log: LogSide) -> set[tuple[int, int, int]]:
    failed = log.events["type"] == EventType.delivery_failed
    columns = (log.events[name][failed].tolist() for name in ("user", "decision_request_id", "slot"))
    return set(zip(*columns, strict=True))


def _use(log: LogSide, row: int, request: int, failed: set[tuple[int, int, int]]) -> Use:
    own = {name: int(log.decisions[name][row]) for name in ("slot", "request_id", "campaign", "category", "channel")}
    place = int(log.decisions["user"][row]), own["request_id"], own["slot"]
    return Use(
        at=int(log.decisions["ts"][row]),
        version=int(log.decisions["commit_version"][row]),
        message_class=int(log.decisions["message_class"][row]),
        zone=str(log.requests["zone"][request]) or "UTC",
        refunded=place in failed,
        **own,
    )


def _chosen_candidates(log: LogSide, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """i64[n]: the row of `candidates` each decision row chose; -1: not in the log."""
    where = {
        pair: at
        for at, pair in enumerate(zip(log.number["candidates"].tolist(), log.candidates["idx"].tolist(), strict=True))
    }
    wanted = zip(log.number["decisions"][rows].tolist(), log.decisions["chosen_idx"][rows].tolist(), strict=True)
    return np.array([where.get(pair, -1) for pair in wanted], np.int64)


def _check_law(
    log: LogSide, row: int, request: int, candidate: int, policies: Policies, report: AuditReport, *, served: bool
) -> None:
    own = log.requests
    name = decision_id_text(*(int(log.decisions[key][row]) for key in ("user", "request_id", "slot")))
    document = policies.document(*_pins(log, request))
    if document is None:
        revision = own["policy_revision"][request] or "unnamed"
        if served:
            report.add("policy_unknown", f"{name}: policy {revision}")
        else:
            report.looked_at["imported sends whose policy is not known"] += 1
        return
    ends = [int(own["expires_at"][request]), int(log.candidates["expires_at"][candidate]) if candidate >= 0 else 0]
    state = ("consent_ad_at", "consent_night_at", "customer_until", "reachable", "opted_out")
    one = Granted(
        at=int(log.decisions["ts"][row]),
        channel=int(log.decisions["channel"][row]),
        message_class=int(log.decisions["message_class"][row]),
        labelled=bool(log.candidates["labelled"][candidate]) if candidate >= 0 else True,
        expires_at=min((end for end in ends if end), default=0),
        zone=str(own["zone"][request]) or "UTC",
        region=str(own["region"][request]),
        **{key: int(own[key][request]) for key in state},
    )
    for kind, text in unlawful(one, document):
        report.add(kind, f"{name}: {text}")
