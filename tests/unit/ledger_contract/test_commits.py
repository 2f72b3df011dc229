"""Reading, committing, idempotent keys, refunds: what `serve_app.ledger.protocol` promises."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.errors import InvalidInput
from serve_app.ledger.columns import HISTORY_DTYPE, NEVER_KNOWN, CommitPlan, HistoryFlag
from serve_app.ledger.protocol import Ledger, LedgerSettings
from tests.unit.ledger_support import (
    BODY,
    DAY,
    KEY,
    NOW,
    OTHER_BODY,
    OTHER_KEY,
    Backend,
    commit_one,
    entry,
    plan,
    reopened,
    status_of,
    u64,
)

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
    assert status_of(commit_one(ledger, 1, 13, at=NOW + DAY, keys=[KEY], digests=[BODY])) == ["duplicate"]
    assert status_of(commit_one(ledger, 1, 15, at=NOW + DAY + 1, keys=[KEY], digests=[OTHER_BODY])) == ["committed"]
    ledger.close()


def test_a_commit_dated_days_ahead_frees_no_key(ledger: Ledger) -> None:
    commit_one(ledger, 1, 11, keys=[KEY], digests=[BODY])
    commit_one(ledger, 2, 12, at=NOW + 30 * DAY)
    again = ledger.commit(plan([1], [1], [13], keys=[KEY], digests=[BODY]))
    assert (status_of(again), again.stored) == (["duplicate"], [b"r11"])


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
