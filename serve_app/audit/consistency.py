"""The log by itself: every decision once, with its request and all its candidates, probabilities that sum to one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.audit.findings import AuditReport
from serve_app.audit.log_side import LogSide
from serve_app.ids import decision_id_text
from serve_app.log.once import groups_of

__all__ = ["check_log_side"]

I64 = npt.NDArray[np.int64]
_TOLERANCE = 1e-6
_KEY_HORIZON_US = 2 * 86_400_000_000


def check_log_side(log: LogSide, report: AuditReport, key_horizon_us: int = _KEY_HORIZON_US) -> None:
    """All checks of one group of buckets."""
    _once(log, report)
    _together(log, report)
    _propensities(log, report)
    _keys(log, report, key_horizon_us)
    _versions(log, report)


def _id(log: LogSide, row: int, table: str = "decisions") -> str:
    columns = getattr(log, table)
    slot = int(columns["slot"][row]) if "slot" in columns else 0
    return decision_id_text(int(columns["user"][row]), int(columns["request_id"][row]), slot)


def _tell(report: AuditReport, kind: str, log: LogSide, rows: I64, table: str = "decisions", why: str = "") -> None:
    if len(rows):
        for row in rows[:5].tolist():
            report.add(kind, _id(log, row, table) + why)
        if len(rows) > 5:
            report.counts[kind] += len(rows) - 5


def _repeats(*keys: npt.NDArray[np.generic]) -> I64:
    """Rows whose keys an earlier row has."""
    number = groups_of(keys)[0]
    order = np.argsort(number, kind="stable")
    again = np.zeros(len(number), np.bool_)
    again[order[1:]] = number[order][1:] == number[order][:-1]
    return np.flatnonzero(again)


def _once(log: LogSide, report: AuditReport) -> None:
    _tell(report, "decision_twice", log, _repeats(log.number["decisions"], log.decisions["slot"]))
    _tell(report, "decision_twice", log, _repeats(log.number["requests"]), "requests", " (its request)")


def _together(log: LogSide, report: AuditReport) -> None:
    requests, decisions, candidates = (log.number[name] for name in ("requests", "decisions", "candidates"))
    _tell(report, "decision_without_request", log, np.flatnonzero(~np.isin(decisions, requests)))
    _tell(report, "request_without_decision", log, np.flatnonzero(~np.isin(requests, decisions)), "requests")
    held = np.bincount(candidates, minlength=len(log.row_of_request()))[requests]
    lost = log.requests["full"] & (held < log.requests["candidate_count"])
    _tell(report, "candidates_lost", log, np.flatnonzero(lost), "requests")


def _propensities(log: LogSide, report: AuditReport) -> None:
    """p_none and every candidate's p_choice, where the decision said them at all."""
    total = np.zeros(len(log.row_of_request()))
    np.add.at(total, log.number["candidates"], np.nan_to_num(log.candidates["p_choice"]))
    first = np.flatnonzero(log.decisions["slot"] == 0)
    whole = total[log.number["decisions"][first]] + log.decisions["p_none"][first]
    row = log.row_of_request()[log.number["decisions"][first]]
    said = np.isfinite(log.decisions["p_none"][first]) & (row >= 0)
    said[said] &= log.requests["full"][row[said]]
    wrong = first[said & (np.abs(whole - 1.0) > _TOLERANCE)]
    sums = dict(zip(first.tolist(), whole.tolist(), strict=True))
    for at in wrong.tolist():
        report.add("propensities", f"{_id(log, at)}: they sum to {sums[at]:.6f}")


def _keys(log: LogSide, report: AuditReport, horizon_us: int) -> None:
    """One key, two committed decisions within the horizon."""
    keyed = np.flatnonzero((log.decisions["commit_version"] >= 0) & (log.decisions["slot"] == 0))
    seen: dict[tuple[int, bytes], int] = {}
    for row in keyed[np.argsort(log.decisions["ts"][keyed], kind="stable")].tolist():
        key = (int(log.decisions["user"][row]), log.decisions["idempotency_key"][row])
        if not key[1]:
            continue
        before = seen.get(key)
        if before is not None and log.decisions["ts"][row] - log.decisions["ts"][before] < horizon_us:
            report.add("key_twice", f"{_id(log, before)} and {_id(log, row)}")
        seen[key] = row


def _versions(log: LogSide, report: AuditReport) -> None:
    """Commits of one user write versions of their own, each one above the one read."""
    rows = np.flatnonzero((log.decisions["commit_version"] >= 0) & (log.decisions["slot"] == 0))
    wrote, read = log.decisions["commit_version"][rows], log.decisions["read_version"][rows]
    for row in rows[wrote != read + 1].tolist():
        pair = log.decisions["read_version"][row], log.decisions["commit_version"][row]
        report.add("version_backwards", f"{_id(log, row)}: read {pair[0]}, wrote {pair[1]}")
    again = _repeats(log.decisions["user"][rows], wrote)
    for row in rows[again].tolist():
        report.add("version_twice", f"{_id(log, row)}: version {log.decisions['commit_version'][row]}")
