"""Rows of the log from finished batches."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from serve_app.batch import Batch, Ragged, lengths_to_offsets
from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS
from serve_app.errors import InvalidInput
from serve_app.ids import bucket_of
from serve_app.log.rows import EntityHashes, assignments, fill, logged_in_full, rows_from_batch
from serve_app.log.schema import SCHEMA_VERSION, TABLES
from serve_app.vocabulary import Action, Reason, Surface

ITEMS = np.arange(100, 200, dtype=np.uint64)


def _rows(batch: Batch, **more: object) -> dict[str, pa.RecordBatch]:
    arguments = {
        "hashes": EntityHashes(items=ITEMS),
        "policy_revision": "p1",
        "release": "r1",
        "fingerprint": "f",
        "salt": 7,
        "code_version": "c",
        **more,
    }
    return rows_from_batch(batch, **arguments)  # type: ignore[arg-type]


def _slates(requests: int, candidates: int, *, log_rate: float = 1.0) -> Batch:
    """Every request shows its candidates 2 and 0, in slots 0 and 1."""
    batch = Batch.of_requests(
        request_id=np.arange(1, requests + 1, dtype=np.uint64),
        user=np.arange(requests, dtype=np.uint64) << np.uint64(52),
        surface=np.full(requests, Surface.related, np.int8),
        decided_at=np.arange(requests, dtype=np.int64),
        log_rate=np.full(requests, log_rate),
        recents=Ragged.of([[0, 1]] * requests, np.int32),
    )
    offsets = lengths_to_offsets([candidates] * requests)
    idx = np.tile(np.arange(candidates), requests)
    slot = np.select([idx == 2, idx == 0], [0, 1], -1).astype(np.int32)
    batch = batch.with_candidates(
        offsets,
        item=idx.astype(np.int32),
        slot=slot,
        p_slot=np.where(slot >= 0, 0.25, np.nan),
        heads=np.arange(2 * requests * candidates, dtype=np.float32).reshape(-1, 2),
    )
    batch.meta["heads"] = ("p_click", "p_convert")
    return batch


def _notifications() -> Batch:
    """Three requests: one sends its second candidate, one defers, one has no candidates at all."""
    batch = Batch.of_requests(
        request_id=np.array([11, 12, 13], np.uint64),
        user=np.array([1, 2, 3], np.uint64),
        surface=np.full(3, Surface.notification, np.int8),
        decided_at=np.full(3, 1000, np.int64),
        read_version=np.array([4, 5, 6], np.int64),
        log_rate=np.zeros(3),
        p_none=np.array([0.1, 1.0, 1.0]),
        action=np.array([Action.send, Action.defer, Action.none], np.int8),
        reason=np.array([Reason.chosen, Reason.quiet_hours, Reason.not_scored], np.int8),
        until=np.array([0, 9999, 0], np.int64),
    )
    return batch.with_candidates(
        np.array([0, 2, 3, 3]),
        campaign=np.array([71, 72, 71], np.uint64),
        action=np.array([Action.suppress, Action.send, Action.defer], np.int8),
        p_choice=np.array([0.2, 0.7, 0.0]),
        counts=np.array([0, 3, 0], np.uint32),
        ghost=np.array([True, False, False]),
    )


def test_a_slate_has_one_decision_per_slot_in_slot_order() -> None:
    decisions = _rows(_slates(3, 5))["decisions"].to_pydict()
    assert decisions["slot"] == [0, 1] * 3
    assert decisions["chosen_idx"] == [2, 0] * 3
    assert decisions["item"] == [102, 100] * 3
    assert decisions["p_action"] == [0.25] * 6
    assert decisions["action"] == [Action.show] * 6
    assert decisions["granted"] == [True] * 6


def test_tables_have_exactly_the_schema_and_the_bucket_of_the_user() -> None:
    for name, rows in _rows(_slates(4, 5)).items():
        assert rows.schema.equals(TABLES[name])
        rows.validate(full=True)
        users = rows["user"].to_numpy()
        np.testing.assert_array_equal(rows["user_bucket"].to_numpy(), bucket_of(users))
        assert set(rows["schema_version"].to_pylist()) == {SCHEMA_VERSION}


def test_row_indices_become_hashes() -> None:
    rows = _rows(_slates(1, 5))
    assert rows["requests"]["recents"].to_pylist() == [[100, 101]]
    assert rows["candidates"]["item"].to_pylist() == [100, 101, 102, 103, 104]


def test_head_scores_keep_their_bits_and_their_names() -> None:
    rows = _rows(_slates(2, 3))
    flat = rows["candidates"]["heads"].values.to_numpy()
    np.testing.assert_array_equal(flat.view(np.uint32), np.arange(12, dtype=np.float32).view(np.uint32))
    assert rows["requests"]["head_names"].to_pylist() == ["p_click,p_convert"] * 2


def test_requests_outside_the_sample_keep_their_chosen_candidates_only() -> None:
    rows = _rows(_slates(400, 5, log_rate=0.5))
    full = rows["requests"]["full"].to_numpy(zero_copy_only=False)
    assert 120 < full.sum() < 280
    np.testing.assert_array_equal(full, logged_in_full(np.arange(1, 401, dtype=np.uint64), np.full(400, 0.5)))
    logged = np.bincount(rows["candidates"]["request_id"].to_numpy().astype(int), minlength=401)[1:]
    np.testing.assert_array_equal(logged, np.where(full, 5, 2))
    outside = rows["candidates"].filter(pa.array(~np.repeat(full, logged)))
    assert set(outside["idx"].to_pylist()) == {0, 2}
    assert len(rows["decisions"]) == 800
    assert rows["requests"]["candidate_count"].to_pylist() == [5] * 400


def test_notifications_log_every_candidate_whatever_the_rate() -> None:
    rows = _rows(_notifications())
    assert len(rows["candidates"]) == 3
    assert rows["requests"]["log_rate"].to_pylist() == [1.0] * 3


def test_a_notification_without_a_grant_is_one_decision_row_with_its_reason() -> None:
    decisions = _rows(_notifications(), commit_version=np.array([5, 6, -1]))["decisions"].to_pydict()
    assert decisions["chosen_idx"] == [1, -1, -1]
    assert decisions["action"] == [Action.send, Action.defer, Action.none]
    assert decisions["reason"] == [Reason.chosen, Reason.quiet_hours, Reason.not_scored]
    assert decisions["until"] == [0, 9999, 0]
    assert decisions["p_action"] == [0.7, 1.0, 1.0]
    assert decisions["campaign"] == [72, 0, 0]
    assert decisions["counts"] == [3, 0, 0]
    assert decisions["ghost"] == [True, False, False]
    assert decisions["read_version"] == [4, 5, 6]
    assert decisions["commit_version"] == [5, 6, -1]


def test_a_send_the_ledger_refused_is_not_granted() -> None:
    decisions = _rows(_notifications(), granted=np.array([False, False, False]))["decisions"]
    assert decisions["granted"].to_pylist() == [False] * 3


def test_one_request_gives_the_same_rows_as_a_batch() -> None:
    batch = _slates(6, 5)
    together = _rows(batch)
    alone = [_rows(batch.take([row])) for row in range(6)]
    for name, rows in together.items():
        joined = [row for one in alone for row in one[name].to_pylist()]
        assert repr(joined) == repr(rows.to_pylist())  # repr, because NaN != NaN


def test_an_empty_batch_gives_empty_tables() -> None:
    rows = _rows(_slates(0, 5))
    assert [len(one) for one in rows.values()] == [0, 0, 0]


def test_assignments_are_lists_of_id_arm_probability() -> None:
    column = assignments(np.array([1, 2], np.uint64), np.array([[0, 1], [1, 0]], np.int16), np.array([0.5, 0.1]))
    assert column.to_pylist()[1] == [{"id": 1, "arm": 1, "p": 0.5}, {"id": 2, "arm": 0, "p": 0.1}]
    assert _rows(_slates(2, 3), arms=column)["requests"]["arms"].to_pylist() == column.to_pylist()


def test_the_batch_s_arms_are_logged_as_bits() -> None:
    batch = _slates(2, 3)
    batch.requests["arms"] = np.array([0x21, 0x12], np.uint64)
    assert _rows(batch)["requests"]["arm_bits"].to_pylist() == [0x21, 0x12]


def test_every_scalar_column_of_the_batch_is_logged_or_named_here() -> None:
    """A stage's new input must reach the log, or a replay cannot repeat the decision."""
    not_inputs = {
        "deadline_at",
        "policy",
        "user_row",
        "read_version",
        "p_none",
        "explored",
        "forced",
        "action",
        "reason",
        "until",
    }
    renamed = {"arms": "arm_bits"}
    logged = set(TABLES["requests"].names)
    assert {name for name in REQUEST_COLUMNS if renamed.get(name, name) not in logged} <= not_inputs
    elsewhere = {"source_scores", "counts"}
    assert {name for name in CANDIDATE_COLUMNS if name not in TABLES["candidates"].names} <= elsewhere


def test_an_unknown_column_is_an_error_that_names_it() -> None:
    with pytest.raises(InvalidInput, match="colour"):
        fill("events", 1, {"user": np.zeros(1, np.uint64), "colour": np.zeros(1)})


def test_absent_event_columns_are_null_and_absent_decision_columns_are_sentinels() -> None:
    event = fill("events", 1, {"user": np.array([3], np.uint64), "event_id": np.array([9], np.uint64)}).to_pylist()[0]
    assert event["decision_request_id"] is None
    assert event["currency"] is None
    decision = fill("decisions", 1, {"user": np.array([3], np.uint64)}).to_pylist()[0]
    assert decision["chosen_idx"] == -1
    assert decision["channel"] == -1
