"""Ledger, log and outbox against each other, user by user.

The ledger was looked at before the log. So what the log holds of later versions is no finding, and what the ledger counted
must by now be in the log, or wait in the ledger to be copied there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.audit.findings import AuditReport
from serve_app.audit.ledger_side import LedgerSide
from serve_app.audit.log_side import LogSide
from serve_app.ids import decision_id_text
from serve_app.ledger.columns import LedgerView
from serve_app.vocabulary import Action, Delivery, EventType, StageBit

__all__ = ["Ours", "check_agreement", "ours_of"]

_FOREIGN = ("", "world")
_GRACE_US = 3_600_000_000
_UNDER_WAY_US = 120_000_000  # a decision may be committed so long after it was admitted


@dataclass(slots=True)
class Ours:
    """bool by row of decisions. served: decided by a server on this ledger (not by the world, nor imported); granted: a send
    that was granted; unledgered: sent while the ledger was away, which it rightly does not know."""

    served: npt.NDArray[np.bool_]
    granted: npt.NDArray[np.bool_]
    unledgered: npt.NDArray[np.bool_]


def ours_of(log: LogSide) -> Ours:
    """Which rows of the log speak of this ledger."""
    row = log.row_of_request()[log.number["decisions"]]
    known = row >= 0
    release = np.full(len(row), "", object)
    release[known] = log.requests["release"][row[known]]
    granted = (log.decisions["action"] == Action.send) & log.decisions["granted"]
    degraded = np.zeros(len(row), np.int64)
    degraded[known] = log.requests["degraded"][row[known]]
    away = (degraded & int(StageBit.ledger) != 0) & (log.decisions["commit_version"] < 0)
    return Ours(~np.isin(release, _FOREIGN), granted, granted & away)


def check_agreement(log: LogSide, side: LedgerSide, low: int, high: int, report: AuditReport, now_us: int) -> None:
    """Users of buckets low..high."""
    ours = ours_of(log)
    rows = np.flatnonzero(ours.served & ours.granted & ~ours.unledgered)
    view = side.views(np.unique(log.decisions["user"][np.flatnonzero(ours.served)]))
    versions = dict(zip(view.users.tolist(), view.versions.tolist(), strict=True))
    logged = {_place(log, row) for row in rows.tolist()}
    _ledgered(log, rows, view, side.taken_at, report)
    _logged(side, logged, low, high, report)
    later = _Later(versions, log)
    _queued(log, rows, side, later, report, range(low, high + 1))
    _ended(log, ours, side, later, report, now_us)


@dataclass(slots=True)
class _Later:
    """Which rows were committed after the ledger was looked at."""

    versions: dict[int, int]
    log: LogSide

    def __call__(self, row: int) -> bool:
        version, user = self.log.decisions["commit_version"][row], self.log.decisions["user"][row]
        return bool(version > self.versions.get(int(user), 0))


def _place(log: LogSide, row: int) -> tuple[int, int, int]:
    columns = log.decisions
    return int(columns["user"][row]), int(columns["request_id"][row]), int(columns["slot"][row])


def _ledgered(log: LogSide, rows: npt.NDArray[np.int64], view: LedgerView, taken_at: int, report: AuditReport) -> None:
    """Granted in the log: counted by the ledger."""
    ends, entries = view.histories.offsets.tolist(), view.histories.entries
    counted: set[tuple[int, int, int]] = set()
    known: dict[int, tuple[int, int]] = {}
    for at, user in enumerate(view.users.tolist()):
        own = entries[ends[at] : ends[at + 1]]
        own = own[own["holdout"] == 0]
        sends = zip(own["request_id"].tolist(), own["slot"].tolist(), strict=True)
        counted |= {(user, request, slot) for request, slot in sends}
        known[user] = int(view.versions[at]), int(view.known_since[at])
    for row in rows.tolist():
        place, wrote, at = _place(log, row), int(log.decisions["commit_version"][row]), int(log.decisions["ts"][row])
        version, since = known[place[0]]
        if place in counted or (wrote <= version and at <= since):
            continue
        if wrote <= version:
            report.add("grant_not_ledgered", decision_id_text(*place))
        elif at <= taken_at - _UNDER_WAY_US:
            report.add("log_ahead_of_ledger", f"{decision_id_text(*place)}: version {wrote}, the ledger has {version}")
        else:
            report.looked_at["sends later than the ledger's picture"] += 1


def _logged(side: LedgerSide, logged: set[tuple[int, int, int]], low: int, high: int, report: AuditReport) -> None:
    """Counted by the ledger: in the log, or waiting to be copied."""
    for view in side.users_between(low, high):
        ends, entries = view.histories.offsets.tolist(), view.histories.entries
        for at, user in enumerate(view.users.tolist()):
            if not low <= user >> 52 <= high:
                continue
            seen: set[tuple[int, int]] = set()
            for entry in entries[ends[at] : ends[at + 1]]:
                if entry["holdout"]:
                    continue
                request, slot = int(entry["request_id"]), int(entry["slot"])
                report.looked_at["sends counted by the ledger"] += 1
                if (request, slot) in seen:
                    report.add("granted_twice", decision_id_text(user, request, slot))
                seen.add((request, slot))
                if (user, request) in side.pending:
                    report.looked_at["of them waiting to be copied into the log"] += 1
                elif (user, request, slot) not in logged:
                    report.add("grant_not_logged", decision_id_text(user, request, slot))


def _queued(
    log: LogSide, rows: npt.NDArray[np.int64], side: LedgerSide, later: _Later, report: AuditReport, buckets: range
) -> None:
    """Grants for the outbox and rows of the outbox."""
    if side.outbox is None:
        return
    number = log.number["candidates"]
    queued = log.candidates["delivery"] == Delivery.outbox
    for_outbox = set(zip(number[queued].tolist(), log.candidates["idx"][queued].tolist(), strict=True))
    final = {
        (user, request, slot)
        for user, request, slot, kind in zip(
            *(log.events[name].tolist() for name in ("user", "decision_request_id", "slot", "type")), strict=True
        )
        if kind in (EventType.delivered, EventType.delivery_failed)
    }
    granted: set[tuple[int, int]] = set()
    for row in rows.tolist():
        place = _place(log, row)
        granted.add(place[:2])
        key = (int(log.number["decisions"][row]), int(log.decisions["chosen_idx"][row]))
        if key in for_outbox and place[:2] not in side.outbox and place not in final and not later(row):
            report.add("grant_without_outbox", decision_id_text(*place))
    for user, request in side.outbox:
        if user >> 52 not in buckets:
            continue
        report.looked_at["outbox rows"] += 1
        if (user, request) not in granted and (user, request) not in side.pending:
            report.add("outbox_without_grant", decision_id_text(user, request, 0))


def _ended(log: LogSide, ours: Ours, side: LedgerSide, later: _Later, report: AuditReport, now_us: int) -> None:
    """Deferrals whose time is over."""
    own = ours.served & (log.decisions["action"] == Action.defer) & (log.decisions["commit_version"] >= 0)
    answered = set(zip(log.requests["user"].tolist(), log.requests["parent_request_id"].tolist(), strict=True))
    for row in np.flatnonzero(own & (log.decisions["until"] < now_us - _GRACE_US)).tolist():
        user, request, _ = _place(log, row)
        report.looked_at["deferrals that are over"] += 1
        if (user, request) not in side.deferrals and (user, request) not in answered and not later(row):
            report.add("deferral_without_end", decision_id_text(user, request, 0))
