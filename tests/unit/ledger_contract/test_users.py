"""A user's state, erasure, bounds, recents and event ids: what `serve_app.ledger.protocol` promises."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.errors import InvalidInput
from serve_app.ledger.columns import UserState
from serve_app.ledger.protocol import Consent, Ledger, LedgerSettings, UserChanges
from serve_app.policy.zones import zone_index
from tests.unit.ledger_support import (
    BODY,
    DAY,
    KEY,
    NOW,
    OTHER_BODY,
    OTHER_KEY,
    Backend,
    commit_one,
    plan,
    reopened,
    status_of,
    u64,
)

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
