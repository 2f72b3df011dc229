"""The ragged batch: properties of take, select, concat; what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.batch import Batch, Ragged, lengths_to_offsets
from serve_app.errors import InvalidInput

counts = st.lists(st.integers(0, 5), min_size=0, max_size=12)


def make(lengths: list[int]) -> Batch:
    offsets = lengths_to_offsets(lengths)
    n, m = len(lengths), int(offsets[-1])
    recents = Ragged.of([list(range(i % 3)) for i in range(n)], np.int32)
    batch = Batch.of_requests(request_id=np.arange(n, dtype=np.uint64), recents=recents)
    return batch.with_candidates(offsets, item=np.arange(m, dtype=np.int32), heads=np.zeros((m, 2), np.float32))


@given(counts, st.data())
def test_take_keeps_each_request_with_its_own_candidates(lengths: list[int], data: st.DataObject) -> None:
    batch = make(lengths)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=8)) if lengths else []
    out = batch.take(rows)
    assert out.requests["request_id"].tolist() == rows
    for i, row in enumerate(rows):
        assert out.candidates["item"][out.offsets[i] : out.offsets[i + 1]].tolist() == list(
            range(batch.offsets[row], batch.offsets[row + 1])
        )
        assert out.requests["recents"][i].tolist() == batch.requests["recents"][row].tolist()


@given(counts, st.integers(0, 2**32 - 1))
def test_select_keeps_requests_and_order(lengths: list[int], seed: int) -> None:
    batch = make(lengths)
    keep = np.random.default_rng(seed).random(batch.candidates.rows) < 0.5
    out = batch.select(keep)
    assert len(out) == len(batch)
    assert out.candidates["item"].tolist() == np.flatnonzero(keep).tolist()
    assert out.owner.tolist() == batch.owner[keep].tolist()


@given(counts, st.integers(0, 12))
def test_splitting_and_joining_gives_the_batch_back(lengths: list[int], at: int) -> None:
    batch = make(lengths)
    at = min(at, len(lengths))
    parts = [batch.take(np.arange(at)), batch.take(np.arange(at, len(lengths)))]
    joined = Batch.concat(parts)
    assert joined.offsets.tolist() == batch.offsets.tolist()
    assert joined.candidates["item"].tolist() == batch.candidates["item"].tolist()
    assert joined.requests["recents"].values.tolist() == batch.requests["recents"].values.tolist()


def test_a_batch_survives_the_wire() -> None:
    batch = make([2, 0, 3])
    back = pickle.loads(pickle.dumps(batch, 5))
    assert back.candidates["item"].tolist() == batch.candidates["item"].tolist()
    back.requests["user"] = np.zeros(3, np.uint64)  # still checked after the journey
    with pytest.raises(InvalidInput, match="no such column"):
        back.requests["nonsense"] = np.zeros(3)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("nonsense", np.zeros(2), "nonsense: no such column"),
        ("user", np.zeros(2, np.int64), "user: column is int64, declared uint64"),
        ("user", np.zeros(3, np.uint64), "user: column has 3 rows, the batch 2"),
        ("recents", np.zeros(2, np.int32), "recents: column must be ragged"),
        ("user", Ragged.empty(2, np.uint64), "user: column must be flat"),
    ],
)
def test_a_wrong_column_is_refused_by_name(name: str, values: object, message: str) -> None:
    batch = make([1, 1])
    with pytest.raises(InvalidInput, match=message):
        batch.requests[name] = values  # type: ignore[assignment]


def test_a_missing_column_says_so() -> None:
    with pytest.raises(InvalidInput, match="p_none: the batch has no such column"):
        make([1]).requests["p_none"]


def test_offsets_that_do_not_fit_are_refused() -> None:
    batch = make([1, 1])
    with pytest.raises(InvalidInput, match="offsets"):
        Batch(batch.requests, batch.candidates, np.array([0, 1, 1]))
    with pytest.raises(InvalidInput, match="offsets"):
        Ragged(np.zeros(3), np.array([0, 2]))


def test_batches_with_other_columns_do_not_join() -> None:
    one, other = make([1]), make([1])
    other.requests["user"] = np.zeros(1, np.uint64)
    with pytest.raises(InvalidInput, match="user"):
        Batch.concat([one, other])


def test_columns_set_on_a_copy_do_not_reach_the_original() -> None:
    batch = make([2, 0])
    copied = batch.candidates.copy()
    copied["item"] = np.full(2, 7, np.int32)
    copied["value"] = np.zeros(2)
    assert batch.candidates["item"].tolist() == [0, 1]
    assert "value" not in batch.candidates
    assert copied["heads"] is batch.candidates["heads"]
    with pytest.raises(InvalidInput, match="rows"):
        copied["value"] = np.zeros(3)
