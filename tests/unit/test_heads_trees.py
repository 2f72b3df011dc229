"""The flat trees give XGBoost's own bits, or step aside."""

from __future__ import annotations

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import InvalidInput
from serve_app.kernels import kernel
from serve_app.lanes import at_least, put_places, unknown
from serve_app.stages.ranking.predictor import Predictor
from serve_app.stages.ranking.trees import pack_trees


def trained(seed: int, outputs: int = 1, rounds: int = 12, **parameters: object) -> tuple[xgboost.Booster, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=(400, 5)), 1).astype(np.float32)
    x[rng.random(x.shape) < 0.15] = np.nan
    y = (rng.random((400, outputs)) < 1 / (1 + np.exp(-np.nan_to_num(x[:, :1])))).astype(np.float32)
    given_parameters = {"objective": "binary:logistic", "max_depth": 4, "nthread": 1, "seed": seed, **parameters}
    return xgboost.train(given_parameters, xgboost.DMatrix(x, y), rounds), x


@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(0, 8),
    st.sampled_from(["binary:logistic", "reg:squarederror"]),
    st.sampled_from([1, 2, 9]),
)
@settings(max_examples=40, deadline=None)
def test_margins_have_the_bits_of_xgboost(seed: int, outputs: int, depth: int, objective: str, rounds: int) -> None:
    booster, x = trained(seed, outputs, rounds, max_depth=max(depth, 1), objective=objective)
    flat = pack_trees(booster)
    assert flat is not None
    theirs = booster.inplace_predict(x, predict_type="margin").reshape(len(x), -1)
    assert flat.predict(x, margin=True).tobytes() == theirs.tobytes()
    np.testing.assert_allclose(flat.predict(x), booster.inplace_predict(x).reshape(len(x), -1), rtol=3e-7)


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_a_head_that_never_or_always_happened_has_the_bits_of_xgboost(outcome: float) -> None:
    _, x = trained(1)
    data = xgboost.DMatrix(x, np.full(len(x), outcome))
    booster = xgboost.train({"objective": "binary:logistic", "nthread": 1}, data, 3)
    assert Predictor(booster).flat


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 79, 80, 81, 128, 400])
def test_a_rows_bits_do_not_depend_on_how_many_share_the_call(rows: int) -> None:
    booster, x = trained(1)
    predict = Predictor(booster)
    assert predict.flat
    assert predict(x[:rows]).tobytes() == predict(x)[:rows].tobytes()


@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([1, 3, 16, 64, 90]))
@settings(max_examples=25, deadline=None)
def test_rows_together_and_one_by_one_get_the_same_bits(seed: int, depth: int, rows: int) -> None:
    booster, x = trained(seed, 2, 6, max_depth=depth)
    flat = pack_trees(booster)
    assert flat is not None
    each = b"".join(flat.predict(x[row : row + 1], margin=True).tobytes() for row in range(rows))
    assert flat.predict(x[:rows], margin=True).tobytes() == each


def test_lanes_compare_sixty_four_values_a_bit_each() -> None:
    values = np.random.default_rng(0).normal(size=200).astype(np.float32)
    values[[3, 70]], values[[5, 71]] = np.nan, 0.25
    for at in (0, 1, 64, 136):
        part = values[at : at + 64]
        above, lacking = _compared(values, np.uint64(at), np.float32(0.25))
        assert above == sum(1 << i for i, x in enumerate(part) if x >= np.float32(0.25))
        assert lacking == sum(1 << i for i, x in enumerate(part) if np.isnan(x))


def test_places_are_read_from_planes_of_bits() -> None:
    planes, out = np.random.default_rng(1).integers(0, 2**63, 8).astype(np.uint64), np.empty(64, np.uint8)
    for count in (0, 1, 6, 8):
        _placed(planes, np.uint64(count), out)
        bits = [[int(plane) >> row & 1 for plane in planes[:count]] for row in range(64)]
        assert out.tolist() == [int("".join(map(str, one)) or "0", 2) for one in bits]


@kernel
def _compared(values: np.ndarray, at: np.uint64, least: np.float32) -> tuple[int, int]:
    return at_least(values, at, least), unknown(values, at)


@kernel
def _placed(planes: np.ndarray, count: np.uint64, out: np.ndarray) -> None:
    put_places(planes, count, out)


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_depth": 12, "min_child_weight": 0},
        {"booster": "dart"},
        {"objective": "count:poisson"},
        {"outputs": 2, "multi_strategy": "multi_output_tree"},
    ],
    ids=["deep", "dropout", "other objective", "vector leaves"],
)
def test_what_the_flat_trees_do_not_hold_is_predicted_by_xgboost(parameters: dict[str, object]) -> None:
    booster, x = trained(3, **parameters)  # type: ignore[arg-type]
    predict = Predictor(booster)
    assert not predict.flat
    assert predict(x).tobytes() == booster.inplace_predict(x).reshape(len(x), -1).tobytes()


def test_a_model_whose_flat_trees_disagree_is_predicted_by_xgboost(monkeypatch: pytest.MonkeyPatch) -> None:
    booster, x = trained(4)
    packed = pack_trees(booster)
    assert packed is not None
    packed.leaves[3] += 0.25
    monkeypatch.setattr("serve_app.stages.ranking.predictor.pack_trees", lambda _: packed)
    predict = Predictor(booster)
    assert not predict.flat
    assert predict(x).tobytes() == booster.inplace_predict(x).reshape(len(x), -1).tobytes()


@pytest.mark.parametrize("matrix", [np.zeros((2, 4), np.float32), np.zeros((2, 5)), np.zeros(5, np.float32)])
def test_another_shape_or_dtype_is_refused(matrix: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match="features"):
        Predictor(trained(5)[0])(matrix)
