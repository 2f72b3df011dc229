"""Batches between processes: the same columns, bit for bit, as kernels want them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.batch import Batch, Columns, Ragged, lengths_to_offsets
from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS, ColumnSpec

WIDE = frozenset({"features", "feature_status", "source_scores", "scores"})


def _column(spec: ColumnSpec, rows: int, width: int, rng: np.random.Generator) -> np.ndarray | Ragged:
    def values(*shape: int) -> np.ndarray:
        raw = rng.integers(0, 256, (*shape, spec.dtype.itemsize), np.uint8)
        return (raw & 1).view(bool)[..., 0] if spec.dtype == bool else raw.view(spec.dtype)[..., 0]

    if spec.ragged:
        lengths = rng.integers(0, 4, rows)
        return Ragged(values(int(lengths.sum())), lengths_to_offsets(lengths))
    return values(rows, width) if width else values(rows)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = draw(st.lists(st.integers(0, 5), max_size=4))

    def columns(specs: dict[str, ColumnSpec], rows: int) -> Columns:
        names = draw(st.lists(st.sampled_from(sorted(specs)), unique=True, max_size=12))
        return Columns(rows, specs, {n: _column(specs[n], rows, 3 if n in WIDE else 0, rng) for n in names})

    offsets = lengths_to_offsets(counts)
    return Batch(
        columns(REQUEST_COLUMNS, len(counts)),  # type: ignore[arg-type]
        columns(CANDIDATE_COLUMNS, int(offsets[-1])),  # type: ignore[arg-type]
        offsets,
        {"release": "r"},
    )


@given(batches())
def test_a_batch_arrives_as_it_left(sent: Batch) -> None:
    came = pickle.loads(pickle.dumps(sent, 5))
    assert came.meta == sent.meta
    assert came.offsets.tolist() == sent.offsets.tolist()
    for theirs, ours in ((came.requests, sent.requests), (came.candidates, sent.candidates)):
        assert (list(theirs), theirs.rows) == (list(ours), ours.rows)
        for name in ours:
            one, other = theirs[name], ours[name]
            if isinstance(other, Ragged):
                assert one.offsets.tolist() == other.offsets.tolist()
                one, other = one.values, other.values
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
            assert one.flags.carray


@pytest.mark.parametrize("rows", [1, 6])
def test_strided_columns_travel_too(rows: int) -> None:
    every = np.arange(4 * rows, dtype=np.float32).reshape(4, rows)
    columns = Columns(rows, CANDIDATE_COLUMNS, {"features": every.T, "item": np.arange(2 * rows, dtype=np.int32)[::2]})
    batch = Batch(Columns(1, REQUEST_COLUMNS), columns, np.array([0, rows]))
    came = pickle.loads(pickle.dumps(batch, 5))
    assert np.array_equal(came.candidates["features"], every.T)
    assert came.candidates["item"].tolist() == list(range(0, 2 * rows, 2))


@pytest.mark.parametrize("protocol", [4, 5])
def test_large_columns_arrive_whatever_holds_the_pickle(protocol: int) -> None:
    rows = 3_000
    scores = np.arange(rows * 5, dtype=np.float32).reshape(rows, 5)
    fixed = np.broadcast_to(np.float64(0.5), rows)  # nobody may write to it, nor does it lie in a row
    columns = Columns(
        rows,
        CANDIDATE_COLUMNS,
        {
            "item": np.arange(rows, dtype=np.int32),
            "retrieval_score": fixed,
            "source_scores": scores,
            "slot": scores[:, 0].astype(np.int32),
        },
    )
    batch = Batch(Columns(1, REQUEST_COLUMNS), columns, np.array([0, rows]))
    came = pickle.loads(pickle.dumps(batch, protocol))
    for name, values in columns.items():
        assert np.array_equal(came.candidates[name], values)
        assert came.candidates[name].dtype is CANDIDATE_COLUMNS[name].dtype
        assert came.candidates[name].flags.carray
    came.candidates["source_scores"][:] = 0
    assert scores.any()
