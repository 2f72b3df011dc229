"""The audit finds what a racy ledger does wrong, and nothing where nothing is wrong."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from serve_app.ledger.cap_audit import CapRule, find_overgrants
from serve_app.ledger.columns import CommitPlan, CommitResult, HistoryFlag, LedgerView
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Ledger
from tests.unit.ledger_support import DAY, NOW, commit_one, entry, plan, u64

CAP = CapRule("global", 3, DAY)


class RacyLedger(MemoryLedger):
    """Reads, then writes: whatever was read before, the write goes through."""

    def commit(self, plan: CommitPlan) -> CommitResult:
        with self._lock:
            plan.read_versions = self._table.versions(plan.users)
            return super().commit(plan)


def drive(ledger: Ledger, deciders: int = 4) -> list[str]:
    """Threads that all read, meet, and then grant what the cap still allows, again and again."""
    meet = threading.Barrier(deciders)

    def decide(number: int) -> None:
        for turn in range(10):
            view = ledger.read(u64(1, 2, 3))
            meet.wait()
            grants = (np.diff(view.histories.offsets) < CAP.limit).tolist()
            users = [user for user, granted in zip((1, 2, 3), grants, strict=True) if granted]
            versions = [int(version) for version, granted in zip(view.versions, grants, strict=True) if granted]
            ledger.commit(plan(users, versions, [number * 1_000 + turn * 10 + user for user in users], records=[]))
            meet.wait()

    workers = [threading.Thread(target=decide, args=(number,)) for number in range(deciders)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return list(find_overgrants(ledger.snapshot(NOW + DAY), [CAP]))


def test_a_ledger_that_compares_versions_passes() -> None:
    ledger = MemoryLedger()
    assert drive(ledger) == []
    assert np.diff(ledger.read(u64(1, 2, 3)).histories.offsets).tolist() == [3, 3, 3]


def test_a_racy_ledger_is_caught() -> None:
    findings = drive(RacyLedger())
    assert findings
    assert all("global cap of 3 passed" in finding for finding in findings)


def history(*entries: np.ndarray) -> list[LedgerView]:
    ledger = MemoryLedger()
    for number, one in enumerate(entries):
        row = plan([1], [number], [int(one["request_id"][0])])
        row.new_entries = one
        ledger.commit(row)
    return list(ledger.snapshot(NOW + 99 * DAY))


def flagged(at: int, request: int, **fields: int) -> np.ndarray:
    one = entry(at, request)
    for name, value in fields.items():
        one[name] = value
    return one


@pytest.mark.parametrize(
    ("rule", "entries", "findings"),
    [
        (CapRule("global", 1, DAY), [(NOW, {}), (NOW + DAY - 1, {})], 1),
        (CapRule("global", 1, DAY), [(NOW, {}), (NOW + DAY, {})], 0),
        (CapRule("global", 1, DAY), [(NOW, {"flags": HistoryFlag.refunded}), (NOW, {})], 0),
        (CapRule("global", 1, DAY), [(NOW, {"flags": HistoryFlag.uncounted}), (NOW, {})], 0),
        (CapRule("global", 1, DAY), [(NOW, {"holdout": 4}), (NOW, {})], 0),
        (CapRule("global", 1, DAY), [(NOW + 5, {}), (NOW, {})], 1),
        (CapRule("channel", 1, DAY), [(NOW, {"channel": 1}), (NOW, {"channel": 2})], 0),
        (CapRule("channel", 1, DAY), [(NOW, {"channel": 1}), (NOW, {"channel": 1})], 1),
        (CapRule("channel", 0, DAY, only=2), [(NOW, {"channel": 1}), (NOW, {"channel": 2})], 1),
        (CapRule("campaign", 1, None), [(NOW, {"local_day": 5}), (NOW, {"local_day": 6})], 0),
        (CapRule("campaign", 1, None), [(NOW, {"local_day": 5}), (NOW + DAY, {"local_day": 5})], 1),
    ],
)
def test_what_counts_against_a_cap(rule: CapRule, entries: list, findings: int) -> None:
    views = history(*(flagged(at, number + 1, **fields) for number, (at, fields) in enumerate(entries)))
    assert len(list(find_overgrants(views, [rule]))) == findings


def test_the_same_grant_twice_is_found() -> None:
    views = history(entry(NOW, 11), entry(NOW, 12), entry(NOW + 1, 11))
    assert list(find_overgrants(views, [])) == ["user 0000000000000001: request 000000000000000b slot 0 was granted twice"]


def test_a_retried_key_is_no_second_grant() -> None:
    ledger = MemoryLedger()
    for request in (11, 12):
        commit_one(ledger, 1, request, keys=[b"k" * 16], digests=[b"d" * 16])
    assert list(find_overgrants(ledger.snapshot(NOW), [CapRule("global", 1, DAY)])) == []
