"""After a run: was what the clients were told true? Looks at the ledger and the journal, after the server has ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.ledger.cap_audit import CapRule, find_overgrants
from serve_app.ledger.columns import Histories, HistoryFlag, LedgerView
from serve_app.ledger.opening import open_ledger
from serve_app.ledger.protocol import Ledger
from serve_app.log.journal import read_journal
from serve_app.vocabulary import MessageClass

__all__ = ["check"]

HOUR = 3_600_000_000
_SHOWN = 20
# The widest of each cap over the policy's cells (loadtests.decide_data.full_policy).
_RULES = (CapRule("global", 5, 24 * HOUR), CapRule("campaign", 2, 168 * HOUR))


def check(data: Path, began: int, answered: dict[str, int], *, redis_url: str | None = None) -> dict[str, Any]:
    """Findings in words: caps passed, grants the ledger lacks, decisions the log lacks. began: time of the first request;
    answered: rows answered with 200, and how many of those said `send`."""
    backend: Any = "redis" if redis_url else "sqlite"
    ledger = open_ledger(data, backend=backend, redis_url=redis_url, read_only=not redis_url, durability="process")
    try:
        granted, findings = _grants(ledger, began)
    finally:
        ledger.close()
    logged = _logged(data, began)
    if granted != answered["send"]:
        findings.append(f"{answered['send']} sends were answered, the ledger holds {granted}")
    if logged != answered["rows"]:
        findings.append(f"{answered['rows']} rows were answered, the log holds {logged}")
    return {
        "answered": answered["rows"],
        "sends": answered["send"],
        "granted": granted,
        "logged": logged,
        "findings": findings,
    }


def _grants(ledger: Ledger, began: int) -> tuple[int, list[str]]:
    granted, findings = 0, []
    for view in ledger.snapshot(2**62):
        entries = view.histories.entries
        granted += int(((entries["at"] >= began) & (entries["holdout"] == 0)).sum())
        findings += list(find_overgrants([_touched(view, began)], _RULES))[:_SHOWN]
    return granted, findings[:_SHOWN]


def _touched(view: LedgerView, began: int) -> LedgerView:
    """The users who got something in the run: the others cannot be over a cap because of it."""
    new = np.r_[0, np.cumsum(view.histories.entries["at"] >= began)]
    rows = np.flatnonzero(new[view.histories.offsets[1:]] > new[view.histories.offsets[:-1]])
    lengths = np.diff(view.histories.offsets)[rows]
    offsets = np.r_[0, np.cumsum(lengths)]
    flat = np.arange(offsets[-1]) + np.repeat(view.histories.offsets[rows] - offsets[:-1], lengths)
    entries = view.histories.entries[flat]
    # Transactional messages consume no cap of the policy.
    spared = entries["message_class"] == MessageClass.transactional
    entries["flags"] |= np.where(spared, np.uint8(HistoryFlag.uncounted), np.uint8(0))
    kept = Histories(entries, offsets)
    return LedgerView(view.users[rows], view.versions[rows], view.state, kept, view.known_since[rows])


def _logged(data: Path, began: int) -> int:
    """Notification requests in the journal since `began`."""
    batches: Iterator[Any] = iter(read_journal(data, {}, tables=["requests"]).rows.get("requests", []))
    return sum(int(np.count_nonzero(batch["ts"].to_numpy() >= began)) for batch in batches)
