"""Catalogue log, records, deferrals, outbox, and the whole: what `serve_app.ledger.protocol` promises."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from serve_app.batch import lengths_to_offsets
from serve_app.errors import LedgerUnavailable
from serve_app.ledger.columns import HISTORY_DTYPE, CommitPlan
from serve_app.ledger.protocol import OUTBOX_BURIED, Ledger, QueueDepths, UserChanges
from tests.unit.ledger_support import DAY, NOW, Backend, commit_one, plan, reopened, status_of, u64

# --- catalogue log and campaigns


def test_the_catalogue_log_is_one_rising_sequence(backend: Backend, ledger: Ledger) -> None:
    assert ledger.catalogue_head() == 0
    assert [ledger.append_catalogue_change("availability", bytes([k])) for k in range(3)] == [1, 2, 3]
    first = ledger.put_campaign("spring", b"one")
    second = ledger.put_campaign("spring", b"two")
    ledger.put_campaign("autumn", b"three")
    assert (first.version, first.seq, second.version, second.seq) == (1, 4, 2, 5)
    assert [(row.campaign_id, row.version, row.document) for row in ledger.get_campaigns()] == [
        ("autumn", 1, b"three"),
        ("spring", 2, b"two"),
    ]
    assert ledger.catalogue_head() == 6
    assert [(change.seq, change.kind, change.payload) for change in ledger.catalogue_changes(2, limit=2)] == [
        (3, "availability", b"\x02"),
        (4, "campaign", b"one"),
    ]
    ledger = reopened(backend, ledger)
    assert ledger.catalogue_head() == 6
    assert ledger.append_catalogue_change("upsert", b"") == 7
    assert ledger.put_campaign("spring", b"three").version == 3
    ledger.close()


# --- records, deferrals, outbox


def test_records_wait_for_compaction_and_stay_findable_after_it(backend: Backend, ledger: Ledger) -> None:
    commit_one(ledger, 1, 11)
    ledger.commit(plan([1, 2], [1, 0], [12, 13]))
    pending = ledger.pending_records(10)
    assert sorted((one.user, one.request_id, one.version, one.record) for one in pending) == [
        (1, 11, 1, b"r11"),
        (1, 12, 2, b"r12"),
        (2, 13, 1, b"r13"),
    ]
    assert [one.version for one in pending if one.user == 1] == [1, 2]
    ledger.ack_records([one.id for one in pending if one.request_id != 13])
    assert [one.request_id for one in ledger.pending_records(10)] == [13]
    ledger.ack_records([one.id for one in ledger.pending_records(10)])
    assert ledger.pending_records(10) == []
    assert ledger.find_decision(1, 11) == b"r11"
    ledger = reopened(backend, ledger)
    assert ledger.pending_records(10) == []
    assert ledger.find_decision(2, 13) == b"r13"
    ledger.close()


def test_pending_records_are_read_a_page_at_a_time(ledger: Ledger) -> None:
    for turn in range(4):
        ledger.commit(plan([1, 2**63, 3], [turn] * 3, [10 * turn, 10 * turn + 1, 10 * turn + 2]))
    whole = ledger.pending_records(100)
    assert len(whole) == 12
    ids = [one.id for one in whole]
    assert ids == sorted(ids)
    ledger.ack_records([ids[4], ids[7]])
    left, after, seen = [one for one in whole if one.id not in (ids[4], ids[7])], -1, []
    while page := ledger.pending_records(3, after):
        after = page[-1].id
        seen.append(page)
    assert [one for page in seen for one in page] == left
    assert [len(page) for page in seen] == [3, 3, 3, 1]


def test_a_deferral_waits_until_its_end_and_goes_with_the_decision_that_answers_it(ledger: Ledger) -> None:
    ledger.commit(plan([1, 2, 3], [0, 0, 0], [11, 12, 13], grants=0, deferred_until=np.array([NOW + 5, NOW + 3, 0])))
    assert ledger.due_deferrals(NOW + 2, 10) == []
    due = ledger.due_deferrals(NOW + 5, 10)
    assert [(one.user, one.request_id, one.until, one.record) for one in due] == [
        (2, 12, NOW + 3, b"r12"),
        (1, 11, NOW + 5, b"r11"),
    ]
    assert len(ledger.due_deferrals(NOW + 5, 1)) == 1
    assert status_of(ledger.commit(plan([2], [9], [22], settles=u64(12)))) == ["conflict"]
    assert len(ledger.due_deferrals(NOW + 5, 10)) == 2
    commit_one(ledger, 2, 22, settles=u64(12))
    assert [one.user for one in ledger.due_deferrals(NOW + 5, 10)] == [1]
    assert (ledger.drop_deferral(1, 11), ledger.drop_deferral(1, 11)) == (True, False)
    assert ledger.due_deferrals(NOW + 5, 10) == []


def test_a_decision_may_settle_one_deferral_and_make_the_next(ledger: Ledger) -> None:
    commit_one(ledger, 1, 11, grants=0, deferred_until=np.array([NOW]))
    commit_one(ledger, 1, 12, grants=0, deferred_until=np.array([NOW + 1]), settles=u64(11))
    assert [one.request_id for one in ledger.due_deferrals(NOW + 9, 10)] == [12]


def test_deferrals_and_outbox_outlive_the_process(backend: Backend, ledger: Ledger) -> None:
    commit_one(ledger, 1, 11, deferred_until=np.array([NOW]), outbox=[b"mail"])
    ledger = reopened(backend, ledger)
    assert [one.record for one in ledger.due_deferrals(NOW, 1)] == [b"r11"]
    assert [one.payload for one in ledger.claim_outbox(NOW, 1, DAY)] == [b"mail"]
    ledger.close()


def test_an_outbox_row_belongs_to_one_worker_until_its_lease_ends(ledger: Ledger) -> None:
    ledger.commit(plan([1, 2, 3], [0, 0, 0], [11, 12, 13], outbox=[b"a", b"", b"c"]))
    first = ledger.claim_outbox(NOW, 1, DAY)
    second = ledger.claim_outbox(NOW, 5, DAY)
    assert sorted(one.payload for one in first + second) == [b"a", b"c"]
    assert ledger.claim_outbox(NOW + DAY - 1, 5, DAY) == []
    assert ledger.ack_outbox([first[0].id]) == 1
    again = ledger.claim_outbox(NOW + DAY, 5, DAY)
    assert [(one.id, one.attempts) for one in again] == [(second[0].id, 2)]
    assert ledger.ack_outbox([first[0].id, second[0].id]) == 1
    assert ledger.claim_outbox(NOW + 9 * DAY, 5, DAY) == []


def test_a_worker_gives_an_outbox_row_back_for_a_later_time_or_for_good(backend: Backend, ledger: Ledger) -> None:
    ledger.commit(plan([1, 2, 1 << 60], [0, 0, 0], [11, 12, 13], outbox=[b"a", b"b", b"c"]))
    taken = {one.payload: one.id for one in ledger.claim_outbox(NOW, 5, DAY)}
    ids = [taken[b"a"], taken[b"c"]]
    assert ledger.postpone_outbox([*ids, 999_999], [NOW + 10, OUTBOX_BURIED, 0], [0, 7, 0]) == 2
    assert ledger.claim_outbox(NOW + 9, 5, DAY) == []
    assert [(one.payload, one.attempts) for one in ledger.claim_outbox(NOW + 10, 5, DAY)] == [(b"a", 1)]
    assert {one.payload for one in ledger.claim_outbox(NOW + 9 * DAY, 5, DAY)} == {b"a", b"b"}
    if backend.persistent:
        ledger = reopened(backend, ledger)
    assert [(one.payload, one.attempts, one.user) for one in ledger.buried_outbox(5)] == [(b"c", 7, 1 << 60)]
    assert ledger.postpone_outbox([taken[b"c"]], [NOW], [0]) == 1
    assert ledger.buried_outbox(5) == []
    assert [(one.payload, one.attempts) for one in ledger.claim_outbox(NOW, 5, DAY)] == [(b"c", 1)]
    ledger.close()


def test_queue_depths_count_what_waits_what_is_due_and_what_is_dead(ledger: Ledger) -> None:
    assert ledger.queue_depths(NOW) == QueueDepths(0, 0, 0, 0, 0)
    until = np.array([NOW, NOW + 5, 0, 0])
    ledger.commit(plan([1, 2, 3, 1 << 60], [0] * 4, [11, 12, 13, 14], deferred_until=until, outbox=[b"", b"", b"a", b"b"]))
    assert ledger.queue_depths(NOW) == QueueDepths(2, 1, 2, 2, 0)
    one, two = ledger.claim_outbox(NOW, 5, DAY)
    assert ledger.queue_depths(NOW) == QueueDepths(2, 1, 2, 0, 0)
    ledger.postpone_outbox([one.id, two.id], [OUTBOX_BURIED, NOW + 5], [1, 1])
    assert ledger.queue_depths(NOW + 5) == QueueDepths(2, 2, 2, 1, 1)


def test_the_id_behind_a_hash_is_kept_until_the_user_is_erased(backend: Backend, ledger: Ledger) -> None:
    ledger.put_user(1, UserChanges(reachable=1, user_id="u-1 나"))
    ledger.put_user(1, UserChanges(reachable=3))
    if backend.persistent:
        ledger = reopened(backend, ledger)
    known = ledger.get_user(1)
    assert known is not None
    assert (known.user_id, known.reachable) == ("u-1 나", 3)
    ledger.delete_user(1)
    ledger.put_user(1, UserChanges(reachable=1))
    known = ledger.get_user(1)
    assert known is not None
    assert known.user_id == ""
    ledger.close()


# --- the whole


def test_a_snapshot_has_every_user_once_in_hash_order(ledger: Ledger) -> None:
    users = [2**64 - 1, 5, 2**63, 9]
    ledger.commit(plan(users, [0] * 4, [1, 2, 3, 4]))
    commit_one(ledger, 5, 8, at=NOW + DAY)
    ledger.delete_user(9)
    views = list(ledger.snapshot(NOW, chunk=2))
    assert [user for view in views for user in view.users.tolist()] == [5, 2**63, 2**64 - 1]
    assert [len(view.histories.entries) for view in views] == [2, 1]
    assert views[0].versions.tolist() == [2, 1]


def test_threads_lose_no_update_and_never_pass_a_cap(ledger: Ledger) -> None:
    users, cap, tries, threads = u64(*range(1, 11)), 12, 25, 6
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(tries):
                view = ledger.read(users)
                counts = np.diff(view.histories.offsets)
                grants = (counts < cap).astype(np.int64)
                requests = u64(*(number * 10_000 + turn * 100 + k for k in range(len(users))))
                entries = np.zeros(int(grants.sum()), HISTORY_DTYPE)
                entries["at"], entries["request_id"] = NOW, requests[grants > 0]
                at, records = np.full(len(users), NOW), [b"r"] * len(users)
                ledger.commit(CommitPlan(users, view.versions, at, entries, lengths_to_offsets(grants), records, requests))
        except Exception as error:  # noqa: BLE001 (shown by the assertion below)
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    view = ledger.read(users)
    assert (np.diff(view.histories.offsets) == cap).all()
    committed = ledger.pending_records(10**6)
    versions = {(one.user, one.version) for one in committed}
    assert len(versions) == len(committed) == int(view.versions.sum())


def test_a_closed_ledger_says_so(backend: Backend) -> None:
    ledger = backend.open()
    ledger.close()
    ledger.close()
    if backend.persistent:
        with pytest.raises(LedgerUnavailable):
            ledger.commit(plan([1], [0], [11]))
