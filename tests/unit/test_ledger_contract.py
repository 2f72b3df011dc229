"""One contract, every backend: what `serve_app.ledger.protocol` promises."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serve_app.batch import lengths_to_offsets
from serve_app.errors import InvalidInput, LedgerUnavailable
from serve_app.ledger.protocol import (
    HISTORY_DTYPE,
    NEVER_KNOWN,
    OUTBOX_BURIED,
    CommitPlan,
    CommitStatus,
    Consent,
    HistoryFlag,
    Ledger,
    LedgerSettings,
    QueueDepths,
    UserChanges,
    UserState,
)
from serve_app.policy.zones import zone_index
from tests.unit.ledger_support import (
    DAY,
    NOW,
    Backend,
    commit_one,
    entry,
    memory_backend,
    plan,
    redis_backend,
    redis_cluster_backend,
    sqlite_backend,
    u64,
)

KEY, OTHER_KEY = b"k" * 16, b"o" * 16
BODY, OTHER_BODY = b"b" * 16, b"c" * 16


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with redis_backend(tmp_path_factory.mktemp("redis")) as backend:
        yield backend


@pytest.fixture(scope="module")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with redis_cluster_backend(tmp_path_factory.mktemp("cluster")) as backend:
        yield backend


@pytest.fixture(params=["memory", "sqlite", "redis", "redis-cluster"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return memory_backend()
    if request.param == "sqlite":
        return sqlite_backend(tmp_path)
    shared: Backend = request.getfixturevalue("redis_server" if request.param == "redis" else "redis_cluster")
    shared.empty()
    return shared


@pytest.fixture
def ledger(backend: Backend) -> Iterator[Ledger]:
    opened = backend.open()
    yield opened
    opened.close()


def reopened(backend: Backend, ledger: Ledger, settings: LedgerSettings | None = None) -> Ledger:
    if not backend.persistent:
        pytest.skip("the memory ledger ends with its process")
    ledger.close()
    return backend.open(settings)


def status_of(result) -> list[str]:
    return [CommitStatus(value).name for value in result.status]


# --- reading and committing


def test_a_user_nobody_has_written_reads_as_unknown_without_consent(ledger: Ledger) -> None:
    view = ledger.read(u64(1, 2, 1))
    assert view.versions.tolist() == [0, 0, 0]
    assert view.state.zone.tolist() == view.state.region.tolist() == [-1, -1, -1]
    assert not view.state.reachable.any()
    assert not view.state.consent_ad_at.any()
    assert len(view.histories.entries) == 0
    assert view.histories.offsets.tolist() == [0, 0, 0, 0]
    assert (view.known_since == NEVER_KNOWN).all()


def test_reading_nobody_gives_empty_columns(ledger: Ledger) -> None:
    view = ledger.read(u64())
    assert len(view.versions) == len(view.state.zone) == 0
    assert view.histories.offsets.tolist() == [0]


def test_a_commit_appends_history_and_raises_the_version(ledger: Ledger) -> None:
    result = ledger.commit(plan([1, 2], [0, 0], [11, 12], grants=2))
    assert status_of(result) == ["committed", "committed"]
    assert result.versions.tolist() == [1, 1]
    view = ledger.read(u64(2, 1, 3))
    assert view.versions.tolist() == [1, 1, 0]
    assert view.histories.offsets.tolist() == [0, 2, 4, 4]
    assert view.histories.entries["request_id"].tolist() == [12, 12, 11, 11]
    assert view.histories.entries["slot"].tolist() == [0, 1, 0, 1]


def test_every_field_of_an_entry_comes_back(ledger: Ledger) -> None:
    one = np.zeros(1, HISTORY_DTYPE)
    values = (NOW, 2**64 - 1, 2**63, 5, 2**64 - 2, -3, 32_000, 5, 2, 3)
    one[0] = values
    ledger.commit(CommitPlan(u64(2**64 - 1), np.zeros(1, np.int64), np.full(1, NOW), one, np.array([0, 1]), [b""], u64(9)))
    assert ledger.read(u64(2**64 - 1)).histories.entries[0].item() == values


def test_a_commit_without_entries_still_raises_the_version(ledger: Ledger) -> None:
    assert ledger.commit(plan([1], [0], [11], grants=0)).versions.tolist() == [1]
    assert ledger.read(u64(1)).versions.tolist() == [1]


def test_a_commit_on_an_old_version_is_refused_and_changes_nothing(ledger: Ledger) -> None:
    commit_one(ledger, 1, 11)
    result = ledger.commit(plan([1, 2], [0, 0], [21, 22]))
    assert status_of(result) == ["conflict", "committed"]
    assert result.versions.tolist() == [1, 1]
    assert ledger.read(u64(1)).histories.entries["request_id"].tolist() == [11]
    assert ledger.find_decision(1, 21) is None
    assert ledger.find_decision(2, 22) == b"r22"


def test_a_commit_on_a_version_nobody_wrote_is_refused(ledger: Ledger) -> None:
    result = ledger.commit(plan([1], [4], [11]))
    assert status_of(result) == ["conflict"]
    assert ledger.read(u64(1)).versions.tolist() == [0]


def test_a_refused_row_leaves_no_deferral_no_outbox_row_and_no_key(ledger: Ledger) -> None:
    commit_one(ledger, 1, 11)
    columns = {"deferred_until": np.array([NOW]), "outbox": [b"x"], "keys": [KEY], "digests": [BODY]}
    assert status_of(ledger.commit(plan([1], [0], [21], **columns))) == ["conflict"]
    assert ledger.due_deferrals(NOW, 10) == []
    assert ledger.claim_outbox(NOW, 10, DAY) == []
    assert status_of(commit_one(ledger, 1, 22, keys=[KEY], digests=[OTHER_BODY])) == ["committed"]


MALFORMED = {
    "users": ({"users": u64(1, 1)}, "stands twice"),
    "read_versions": ({"read_versions": np.zeros(1, np.int64)}, "has 1 rows, the plan 2"),
    "request_ids": ({"request_ids": u64(1)}, "has 1 rows, the plan 2"),
    "records": ({"records": [b"x"]}, "has 1 rows, the plan 2"),
    "outbox": ({"outbox": [b"x"]}, "has 1 rows, the plan 2"),
    "new_entries": ({"new_entries": np.zeros(2, np.dtype([("at", "i8")]))}, "must be HISTORY_DTYPE"),
    "new_offsets": ({"new_offsets": np.array([0, 2, 1])}, "must rise from 0"),
    "keys": ({"keys": [b"short", b""], "digests": [b"", b""]}, "16 bytes"),
}


@pytest.mark.parametrize("field", MALFORMED)
def test_a_malformed_plan_names_the_field(ledger: Ledger, field: str) -> None:
    changes, text = MALFORMED[field]
    good = plan([1, 2], [0, 0], [11, 12])
    bad = CommitPlan(**{name: changes.get(name, getattr(good, name)) for name in CommitPlan.__dataclass_fields__})
    with pytest.raises(InvalidInput, match=text) as caught:
        ledger.commit(bad)
    assert caught.value.field == field
    assert ledger.read(u64(1)).versions.tolist() == [0]


# --- idempotency


def test_the_same_key_and_body_answer_with_the_first_record(ledger: Ledger) -> None:
    commit_one(ledger, 1, 11, keys=[KEY], digests=[BODY])
    result = commit_one(ledger, 1, 12, keys=[KEY], digests=[BODY])
    assert status_of(result) == ["duplicate"]
    assert result.stored == [b"r11"]
    assert result.versions.tolist() == [1]
    assert ledger.find_decision(1, 12) is None


def test_a_duplicate_is_seen_before_a_version_conflict(ledger: Ledger) -> None:
    commit_one(ledger, 1, 11, keys=[KEY], digests=[BODY])
    assert status_of(ledger.commit(plan([1], [0], [12], keys=[KEY], digests=[BODY]))) == ["duplicate"]


def test_the_same_key_with_another_body_is_refused(ledger: Ledger) -> None:
    commit_one(ledger, 1, 11, keys=[KEY], digests=[BODY])
    result = commit_one(ledger, 1, 12, keys=[KEY], digests=[OTHER_BODY])
    assert status_of(result) == ["key_reused"]
    assert result.stored == [b""]


def test_rows_of_a_batch_are_judged_one_by_one(ledger: Ledger) -> None:
    commit_one(ledger, 1, 11, keys=[KEY], digests=[BODY])
    commit_one(ledger, 2, 12, keys=[OTHER_KEY], digests=[BODY])
    keys, digests = [KEY, OTHER_KEY, b"", b"n" * 16], [BODY, OTHER_BODY, b"", BODY]
    result = ledger.commit(plan([1, 2, 3, 4], [1, 1, 0, 9], [21, 22, 23, 24], keys=keys, digests=digests))
    assert status_of(result) == ["duplicate", "key_reused", "committed", "conflict"]


def test_a_key_older_than_the_horizon_is_free_again(backend: Backend) -> None:
    if backend.name.startswith("redis"):
        pytest.skip("Redis expires keys by its own clock")
    ledger = backend.open(LedgerSettings(key_horizon_us=DAY))
    commit_one(ledger, 1, 11, keys=[KEY], digests=[BODY])
    commit_one(ledger, 2, 12, at=NOW + DAY)
    assert status_of(commit_one(ledger, 1, 13, keys=[KEY], digests=[BODY])) == ["duplicate"]
    commit_one(ledger, 2, 14, at=NOW + DAY + 1)
    assert status_of(commit_one(ledger, 1, 15, keys=[KEY], digests=[OTHER_BODY])) == ["committed"]
    ledger.close()


def test_keys_outlive_the_process(backend: Backend, ledger: Ledger) -> None:
    commit_one(ledger, 1, 11, keys=[KEY], digests=[BODY])
    ledger = reopened(backend, ledger)
    result = commit_one(ledger, 1, 12, keys=[KEY], digests=[BODY])
    assert (status_of(result), result.stored) == (["duplicate"], [b"r11"])
    ledger.close()


# --- refunds


def test_a_refund_flags_the_use_once_and_raises_the_version(ledger: Ledger) -> None:
    commit_one(ledger, 1, 11, grants=2)
    assert ledger.refund(1, 11, 1) is True
    assert ledger.refund(1, 11, 1) is False
    view = ledger.read(u64(1))
    assert view.versions.tolist() == [2]
    assert view.histories.entries["flags"].tolist() == [0, int(HistoryFlag.refunded)]
    assert status_of(ledger.commit(plan([1], [1], [12]))) == ["conflict"]


def test_a_refund_of_nothing_changes_nothing(ledger: Ledger) -> None:
    commit_one(ledger, 1, 11)
    assert ledger.refund(1, 99, 0) is ledger.refund(1, 11, 1) is ledger.refund(2, 11, 0) is False
    assert ledger.read(u64(1, 2)).versions.tolist() == [1, 0]


def test_a_ghost_is_never_refunded(ledger: Ledger) -> None:
    ghost = entry(NOW, 11, holdout=5)
    ledger.commit(CommitPlan(u64(1), np.zeros(1, np.int64), np.full(1, NOW), ghost, np.array([0, 1]), [b""], u64(11)))
    assert ledger.refund(1, 11, 0) is False


# --- user state

CHANGES = UserChanges(
    consent_ad=Consent(NOW, NOW + 5, "form 7, checkbox 2"),
    customer_until=NOW + DAY,
    reachable=0b10011,
    opted_out=0b100,
    zone="Asia/Seoul",
    region="KR",
)


def test_a_users_state_comes_back_with_names_and_proofs(ledger: Ledger) -> None:
    assert ledger.put_user(1, CHANGES) == 1
    record = ledger.get_user(1)
    assert record is not None
    assert (record.consent_ad, record.consent_night) == (CHANGES.consent_ad, Consent(0))
    assert (record.zone, record.region, record.reachable, record.opted_out) == ("Asia/Seoul", "KR", 0b10011, 0b100)
    state = ledger.read(u64(1)).state
    assert state.zone.tolist() == [zone_index("Asia/Seoul")]
    assert (state.consent_ad_at[0], state.customer_until[0]) == (NOW, NOW + DAY)
    assert (state.reachable[0], state.opted_out[0]) == (0b10011, 0b100)


def test_fields_left_out_stay_as_they_are(ledger: Ledger) -> None:
    ledger.put_user(1, CHANGES)
    assert ledger.put_user(1, UserChanges(opted_out=0, consent_night=Consent(NOW, NOW, "sms"))) == 2
    record = ledger.get_user(1)
    assert record is not None
    assert (record.zone, record.opted_out, record.consent_ad) == ("Asia/Seoul", 0, CHANGES.consent_ad)
    assert record.consent_night == Consent(NOW, NOW, "sms")


def test_an_opt_out_defeats_a_decision_that_read_before_it(ledger: Ledger) -> None:
    ledger.put_user(1, CHANGES)
    view = ledger.read(u64(1))
    ledger.put_user(1, UserChanges(opted_out=0xFFFF))
    assert status_of(ledger.commit(plan([1], view.versions.tolist(), [11]))) == ["conflict"]
    assert len(ledger.read(u64(1)).histories.entries) == 0


def test_a_value_out_of_range_names_the_field_and_changes_nothing(ledger: Ledger) -> None:
    with pytest.raises(InvalidInput) as caught:
        ledger.put_user(1, UserChanges(reachable=1 << 16, opted_out=1))
    assert caught.value.field == "reachable"
    assert ledger.get_user(1) is None
    assert ledger.read(u64(1)).versions.tolist() == [0]


def test_a_zone_this_process_does_not_know_is_kept_and_reads_as_unknown(backend: Backend, ledger: Ledger) -> None:
    ledger.put_user(1, UserChanges(zone="Luna/Tranquility", region="KR"))
    assert ledger.read(u64(1)).state.zone.tolist() == [-1]
    commit_one(ledger, 1, 11)
    ledger.put_user(1, UserChanges(reachable=1))
    if backend.persistent:
        ledger = reopened(backend, ledger)
    record = ledger.get_user(1)
    assert record is not None
    assert (record.zone, record.region) == ("Luna/Tranquility", "KR")
    assert ledger.read(u64(1)).state.zone.tolist() == [-1]
    ledger.close()


def test_bulk_state_replaces_all_fields(ledger: Ledger) -> None:
    ledger.put_user(1, CHANGES)
    state = UserState.unknown(2)
    state.zone[:] = [zone_index("Europe/Oslo"), -1]
    state.reachable[:] = [1, 2]
    assert ledger.put_users(u64(1, 2), state).tolist() == [2, 1]
    first = ledger.get_user(1)
    assert first is not None
    assert (first.zone, first.consent_ad, first.opted_out, first.reachable) == ("Europe/Oslo", Consent(0), 0, 1)
    with pytest.raises(InvalidInput):
        ledger.put_users(u64(1, 1), UserState.unknown(2))


def test_state_and_history_outlive_the_process(backend: Backend, ledger: Ledger) -> None:
    ledger.put_user(1, CHANGES)
    commit_one(ledger, 1, 11)
    commit_one(ledger, 2, 12)
    ledger.refund(2, 12, 0)
    before = ledger.read(u64(1, 2))
    ledger = reopened(backend, ledger)
    after = ledger.read(u64(1, 2))
    assert after.versions.tolist() == before.versions.tolist() == [2, 2]
    assert after.histories.entries.tolist() == before.histories.entries.tolist()
    assert after.state.zone.tolist() == before.state.zone.tolist()
    ledger.close()


# --- erasure


def test_deleting_erases_everything_of_the_user_and_nobody_elses(ledger: Ledger) -> None:
    columns = {
        "deferred_until": np.array([NOW, NOW]),
        "outbox": [b"x", b"y"],
        "keys": [KEY, OTHER_KEY],
        "digests": [BODY, BODY],
    }
    ledger.put_user(1, CHANGES)
    ledger.commit(plan([1, 2], [1, 0], [11, 12], **columns))
    ledger.record_events(u64(1, 2), u64(5, 6), np.full(2, NOW))
    assert ledger.delete_user(1) is True
    assert ledger.get_user(1) is None
    view = ledger.read(u64(1, 2))
    assert view.histories.offsets.tolist() == [0, 0, 1]
    assert view.state.reachable.tolist() == [0, 0]
    assert (ledger.find_decision(1, 11), ledger.find_decision(2, 12)) == (None, b"r12")
    assert ledger.recents(u64(1, 2)).items.tolist() == [6]
    assert [one.user for one in ledger.due_deferrals(NOW, 10)] == [2]
    assert [one.payload for one in ledger.claim_outbox(NOW, 10, DAY)] == [b"y"]
    assert [one.user for one in ledger.pending_records(10)] == [2]
    assert ledger.delete_user(1) is ledger.delete_user(77) is False


def test_an_erased_key_may_be_used_again(ledger: Ledger) -> None:
    commit_one(ledger, 1, 11, keys=[KEY], digests=[BODY])
    ledger.delete_user(1)
    assert status_of(commit_one(ledger, 1, 12, keys=[KEY], digests=[OTHER_BODY])) == ["committed"]


def test_no_decision_that_read_before_a_deletion_commits_after_it(ledger: Ledger) -> None:
    commit_one(ledger, 1, 11)
    version = int(ledger.read(u64(1)).versions[0])
    ledger.delete_user(1)
    assert status_of(ledger.commit(plan([1], [version], [12]))) == ["conflict"]
    assert ledger.read(u64(1)).versions.tolist() == [version + 1]


def test_an_erased_user_stays_erased_in_the_next_process(backend: Backend, ledger: Ledger) -> None:
    commit_one(ledger, 1, 11)
    ledger.record_events(u64(1), u64(5), np.full(1, NOW))
    ledger.delete_user(1)
    ledger = reopened(backend, ledger)
    assert ledger.get_user(1) is None
    assert len(ledger.read(u64(1)).histories.entries) == len(ledger.recents(u64(1)).items) == 0
    assert ledger.find_decision(1, 11) is None
    commit_one(ledger, 1, 12)
    assert ledger.read(u64(1)).histories.entries["request_id"].tolist() == [12]
    ledger.close()


# --- bounds


def test_history_older_than_the_horizon_is_dropped_and_said_so(backend: Backend) -> None:
    ledger = backend.open(LedgerSettings(history_horizon_us=10 * DAY))
    for day in range(0, 20, 4):
        commit_one(ledger, 1, 100 + day, at=NOW + day * DAY)
    view = ledger.read(u64(1))
    assert view.histories.entries["request_id"].tolist() == [108, 112, 116]
    assert view.known_since.tolist() == [NOW + 4 * DAY]
    ledger.close()


def test_a_longer_horizon_keeps_more_and_outlives_the_process(backend: Backend) -> None:
    settings = LedgerSettings(history_horizon_us=2 * DAY)
    ledger = backend.open(settings)
    ledger.set_history_horizon(90 * DAY)
    ledger.set_history_horizon(DAY)
    commit_one(ledger, 1, 11)
    if backend.persistent:
        ledger = reopened(backend, ledger, settings)
    commit_one(ledger, 1, 12, at=NOW + 80 * DAY)
    assert ledger.read(u64(1)).histories.entries["request_id"].tolist() == [11, 12]
    ledger.close()


def test_ten_thousand_entries_in_one_user_are_read_and_kept(ledger: Ledger) -> None:
    for start in range(0, 10_000, 2_500):
        result = ledger.commit(plan([1], [start // 2_500], [start], grants=2_500))
        assert status_of(result) == ["committed"]
    commit_one(ledger, 2, 9)
    view = ledger.read(u64(2, 1))
    assert np.diff(view.histories.offsets).tolist() == [1, 10_000]
    assert view.histories.entries["slot"][1:].tolist() == list(range(2_500)) * 4


def test_more_entries_than_the_bound_drop_the_oldest_and_say_so(backend: Backend) -> None:
    ledger = backend.open(LedgerSettings(history_max_entries=5))
    for k in range(8):
        commit_one(ledger, 1, k, at=NOW + k)
    view = ledger.read(u64(1))
    assert view.histories.entries["request_id"].tolist() == [3, 4, 5, 6, 7]
    assert view.known_since.tolist() == [NOW + 2]
    ledger.close()


# --- recents and event ids


def test_recents_are_the_newest_few_in_order(backend: Backend) -> None:
    ledger = backend.open(LedgerSettings(recents_max=3))
    ledger.record_events(u64(1, 2, 1, 1), u64(10, 20, 11, 12), NOW + np.arange(4))
    ledger.record_events(u64(1), u64(13), np.array([NOW + 9]))
    recents = ledger.recents(u64(2, 1, 3, 1))
    assert recents.offsets.tolist() == [0, 1, 4, 4, 7]
    assert recents.items.tolist() == [20, 11, 12, 13, 11, 12, 13]
    assert recents.at.tolist()[:4] == [NOW + 1, NOW + 2, NOW + 3, NOW + 9]
    assert ledger.read(u64(1)).versions.tolist() == [0]
    assert ledger.get_user(1) is None
    if backend.persistent:
        ledger = reopened(backend, ledger, LedgerSettings(recents_max=3))
        assert ledger.recents(u64(1)).items.tolist() == [11, 12, 13]
    ledger.close()


def test_an_event_id_is_new_once(backend: Backend, ledger: Ledger) -> None:
    assert ledger.dedupe_events(u64(1, 2, 1, 0), NOW).tolist() == [True, True, False, True]
    assert ledger.dedupe_events(u64(2, 3, 0), NOW).tolist() == [False, True, False]
    assert ledger.dedupe_events(u64(9), NOW, mark=False).tolist() == [True]
    assert ledger.dedupe_events(u64(9), NOW).tolist() == [True]
    ledger = reopened(backend, ledger)
    assert ledger.dedupe_events(u64(1, 9, 10), NOW, mark=False).tolist() == [False, False, True]
    ledger.close()


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
