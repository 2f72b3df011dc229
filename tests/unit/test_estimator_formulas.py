"""Values and variances against the formulas written out in numpy."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from simulators.estimators import (
    DM,
    DR,
    IPS,
    LOGGED,
    MIPS,
    RIPS,
    SNDR,
    SNIPS,
    CascadeDR,
    Cells,
    DRos,
    EstimateSettings,
    Grouping,
    Per,
    RejectionReplay,
    Standing,
    SwitchDR,
    WindowedIPS,
    checked_rows,
)
from simulators.estimators.mips import attribute_probability
from simulators.estimators.verdicts import judge
from tests.unit.estimator_support import CELL_P, DAYS, FACTORIES, METRICS, POLICIES, columns, rows_of

FOUND = columns(11, 300)
ROWS = rows_of(FOUND)
USERS = len(np.unique(FOUND["user"]))
N = len(FOUND["user"])
W = FOUND["target"] / FOUND["propensity"][:, None]
Y, SEND, Q, Q_TARGET = FOUND["reward"], FOUND["send"], FOUND["q_logged"], FOUND["q_target"]
C = FOUND["target_send"]


def by_user(values: np.ndarray) -> np.ndarray:
    _, inverse = np.unique(FOUND["user"], return_inverse=True)
    return np.bincount(inverse, values)


def made(kind: Any, **settings: Any) -> Any:
    estimator = kind(POLICIES, METRICS, **settings)
    estimator.update(ROWS)
    return estimator


@pytest.mark.parametrize(("p", "policy"), list(enumerate(POLICIES)))
@pytest.mark.parametrize(("m", "metric"), list(enumerate(METRICS)))
def test_values_are_those_of_the_formulas(p: int, policy: str, m: int, metric: str) -> None:
    w, y, q, q_t, c = W[:, p], Y[:, m], Q[:, m], Q_TARGET[:, p, m], C[:, p]
    snips = (w * y).sum() / (w * SEND).sum()
    residual = (w * SEND * (y - q)).sum() / (w * SEND).sum()
    expected = {
        (IPS, Per.user): (w * y).sum() / USERS,
        (IPS, Per.decision): (w * y).mean(),
        (IPS, Per.send): (w * y).sum() / c.sum(),
        (SNIPS, Per.send): snips,
        (SNIPS, Per.decision): snips * c.mean(),
        (SNIPS, Per.user): snips * c.sum() / USERS,
        (DM, Per.decision): q_t.mean(),
        (DR, Per.decision): (q_t + w * (y - q)).mean(),
        (DR, Per.send): (q_t + w * (y - q)).sum() / c.sum(),
        (SNDR, Per.decision): q_t.mean() + residual * c.mean(),
        (SNDR, Per.send): q_t.sum() / c.sum() + residual,
    }
    for (kind, per), value in expected.items():
        assert made(kind).point(policy, metric, per).value == pytest.approx(value, rel=1e-12), (kind, per)


def test_shrunk_weights_are_those_of_the_formulas() -> None:
    w, y, q, q_t = W[:, 1], Y[:, 0], Q[:, 0], Q_TARGET[:, 1, 0]
    switch = made(SwitchDR, grid=(0.5, 2.0)).at("bold", "click", Per.decision, 2.0)[0]
    assert switch == pytest.approx((q_t + w * (w <= 2) * (y - q)).mean(), rel=1e-12)
    dros = made(DRos, grid=(0.5, 2.0)).at("bold", "click", Per.decision, 0.5)[0]
    assert dros == pytest.approx((q_t + 0.5 * w / (w**2 + 0.5) * (y - q)).mean(), rel=1e-12)


def test_the_variance_is_that_of_users_not_of_rows() -> None:
    influence = by_user(W[:, 0] * Y[:, 0]) / USERS
    value, interval = made(IPS).interval("quiet", "click")
    assert interval.standard_error == pytest.approx(np.sqrt(USERS * influence.var(ddof=1)), rel=1e-10)
    snips = (W[:, 0] * Y[:, 0]).sum() / (W[:, 0] * SEND).sum()
    influence = by_user(W[:, 0] * (Y[:, 0] - snips * SEND)) / (W[:, 0] * SEND).sum()
    value, interval = made(SNIPS).interval("quiet", "click", Per.send)
    assert value == pytest.approx(snips)
    assert interval.standard_error == pytest.approx(np.sqrt(USERS * influence.var(ddof=1)), rel=1e-10)


def test_a_difference_is_paired() -> None:
    influence = by_user((W[:, 0] - W[:, 1]) * Y[:, 1]) / USERS
    value, interval = made(IPS).interval("quiet", "revenue", versus="bold")
    assert value == pytest.approx(influence.sum())
    assert interval.standard_error == pytest.approx(np.sqrt(USERS * influence.var(ddof=1)), rel=1e-9)
    against = made(SNIPS).interval("bold", "click", versus=LOGGED)
    alone = made(SNIPS).point("bold", "click").value - Y[:, 0].sum() / USERS
    assert against[0] == pytest.approx(alone)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_policy_differs_from_itself_by_nothing(name: str) -> None:
    found = columns(12, 80)
    for column in (found["target"], found["target_send"], found["extra"]["marginal_target"]):
        column[:, 1] = column[:, 0]
    found["extra"]["attribute_target"][:, 1] = found["extra"]["attribute_target"][:, 0]
    found["q_target"][:, 1] = found["q_target"][:, 0]
    estimator = FACTORIES[name]()
    estimator.update(rows_of(found))
    value, interval = estimator.interval("quiet", "click", versus="bold")
    if name == "rejection":  # draws of its own for each policy
        assert interval.covers(0.0)
    elif name == "iips":
        assert value == 0.0
    else:
        assert value == 0.0
        assert interval.standard_error < 1e-6


def test_a_log_evaluated_on_itself_gives_what_happened() -> None:
    found = columns(13, 200)
    found["target"] = np.repeat(found["propensity"][:, None], 2, axis=1)
    rows = rows_of(found)
    for kind in (IPS, RIPS, WindowedIPS):
        estimator = kind(POLICIES, METRICS, **({"hours": 24.0} if kind is WindowedIPS else {}))
        estimator.update(rows)
        assert estimator.point("bold", "revenue").value == pytest.approx(estimator.point(LOGGED, "revenue").value, rel=1e-12)


def test_groups_are_the_same_estimate_on_their_rows() -> None:
    estimator = made(SNIPS, grouping=DAYS)
    for group in range(3):
        mine = FOUND["groups"]["day"] == group
        part = SNIPS(POLICIES, METRICS)
        part.update(rows_of(FOUND, np.flatnonzero(mine)))
        assert estimator.point("bold", "click", Per.send, group).value == part.point("bold", "click", Per.send).value
        assert estimator.interval("bold", "click", Per.send, group=group)[1].standard_error == pytest.approx(
            part.interval("bold", "click", Per.send)[1].standard_error, rel=1e-2
        )


def test_a_segment_is_per_user_in_it_and_a_day_per_user_of_the_log() -> None:
    day, segment = made(IPS, grouping=DAYS), made(IPS, grouping=Grouping("day", DAYS.labels, "user"))
    mine = FOUND["groups"]["day"] == 1
    total, inside = (W[mine, 1] * Y[mine, 0]).sum(), len(np.unique(FOUND["user"][mine]))
    assert day.point("bold", "click", group=1).value == pytest.approx(total / USERS)
    assert segment.point("bold", "click", group=1).value == pytest.approx(total / inside)


def test_cells_weigh_whole_epochs_against_the_mixture() -> None:
    key = FOUND["user"].astype(np.float64) * 100 + FOUND["extra"]["epoch"]
    epochs, inverse = np.unique(key, return_inverse=True)
    ratio = np.ones((len(epochs), 3))
    p, cells = FOUND["propensity"], FOUND["extra"]["cell_probability"]
    for row, e in enumerate(inverse):
        ratio[e] *= [FOUND["target"][row, 1] / p[row], cells[row, 0] / p[row], cells[row, 1] / p[row]]
    weight = ratio[:, 0] / (CELL_P[0] * ratio[:, 1] + CELL_P[1] * ratio[:, 2])
    reward = np.bincount(inverse, Y[:, 0])
    found = made(Cells, cell_p=CELL_P)
    assert found.point("bold", "click", Per.decision).value == pytest.approx((weight * reward).sum() / weight.sum())
    mean = found.diagnostics.of(1).mean_weight
    assert mean == pytest.approx(weight.mean())


def test_a_cell_as_target_never_outweighs_its_inverse_probability() -> None:
    found = columns(14, 200, most=40)
    found["extra"]["epoch"] = np.zeros(len(found["user"]), np.int64)
    found["target"] = found["extra"]["cell_probability"][:, [1, 1]]
    estimator = Cells(POLICIES, METRICS, cell_p=CELL_P)
    estimator.update(rows_of(found))
    assert estimator.diagnostics is not None
    assert estimator.diagnostics.of(0).largest_weight <= 1 / CELL_P[1] + 1e-9


def test_the_mean_weight_and_what_no_cell_could_choose_make_one() -> None:
    cells, target = np.array([[0.7, 0.3, 0.0], [0.2, 0.8, 0.0]]), np.array([0.5, 0.4, 0.1])
    epochs = []
    for a, b in product(range(2), repeat=2):  # as often as the mixture of cells takes them, of 200 epochs
        epochs += [(a, b)] * round(100 * (cells[:, a] * cells[:, b]).sum())
    taken = np.array(epochs).ravel()
    rows = checked_rows(
        np.repeat(np.arange(200, dtype=np.uint64), 2), cells[0][taken], target[taken], np.ones(len(taken)),
        extra={"epoch": np.zeros(len(taken), np.int64), "cell_probability": cells[:, taken].T,
               "cell_unsupported": np.full(len(taken), target[2])},
    )  # fmt: skip
    estimator = Cells(["new"], ["click"], cell_p=[0.5, 0.5])
    estimator.update(rows)
    assert estimator.diagnostics is not None
    found = estimator.diagnostics.of(0)
    assert found.unsupported == pytest.approx(1 - 0.9**2)
    assert found.mean_weight == pytest.approx(0.9**2)
    verdict = judge(found, EstimateSettings().verdict)
    assert verdict.standing is Standing.refused
    assert not any("mean weight" in one for one in verdict.reasons)
    assert any("19.00% of the target's choices could not be logged" in one for one in verdict.reasons)


def test_list_estimators_weigh_prefixes() -> None:
    key = FOUND["user"].astype(np.float64) * 100 + FOUND["extra"]["list"]
    weight, before = np.ones(N), np.ones(N)
    for row in range(N):
        before[row] = weight[row - 1] if row and key[row] == key[row - 1] else 1.0
        weight[row] = before[row] * W[row, 1]
    lists = len(np.unique(key))
    assert made(RIPS).point("bold", "click", Per.decision).value == pytest.approx((weight * Y[:, 0]).sum() / lists)
    cascade = weight * (Y[:, 0] - Q[:, 0]) + before * Q_TARGET[:, 1, 0]
    assert made(CascadeDR).point("bold", "click", Per.decision).value == pytest.approx(cascade.sum() / lists)


def test_a_window_holds_the_last_hours_alone() -> None:
    at, user = FOUND["extra"]["at"], FOUND["user"]
    horizon = 20 * 3_600_000_000
    weight = np.array([np.prod(W[(user == user[i]) & (at > at[i] - horizon) & (at <= at[i]), 0]) for i in range(N)])
    found = made(WindowedIPS, hours=20.0)
    assert found.point("quiet", "click", Per.decision).value == pytest.approx((weight * Y[:, 0]).mean())
    assert found.label == "windowed-ips 20 h"


def test_attributes_are_marginalised_over_candidates() -> None:
    offsets = np.array([0, 3, 5])
    attribute = np.array([7, 8, 7, 9, 9], np.uint64)
    found = attribute_probability(
        offsets, attribute, np.array([0, -1]), np.array([0.2, 0.3, 0.4, 0.5, 0.1]), np.array([0.1, 0.4])
    )
    assert found == pytest.approx([0.6, 0.4])
    weight = FOUND["extra"]["attribute_target"][:, 0] / FOUND["extra"]["attribute_propensity"]
    assert made(MIPS).point("quiet", "click", Per.decision).value == pytest.approx((weight * Y[:, 0]).mean())


def test_rejection_keeps_a_sample_of_the_targets_own() -> None:
    rng = np.random.default_rng(0)
    n, k = 40_000, 4
    action = rng.integers(0, k, n)
    click = rng.random(n) < np.array([0.1, 0.2, 0.3, 0.4])[action]
    rows = checked_rows(np.arange(n), np.full(n, 1 / k), (action == 2).astype(float), click.astype(float))
    found = RejectionReplay(["third"], ["click"], bound=k)
    found.update(rows)
    value = found.point("third", "click", Per.decision).value
    assert value == pytest.approx(
        click[action == 2].mean(), rel=1e-12
    )  # uniform logging, deterministic target: every match is kept
    exact = found.exact_interval("third", "click")
    assert exact.covers(0.3)
    assert exact.half_width == pytest.approx(found.interval("third", "click", Per.decision)[1].half_width, rel=0.05)


def test_rows_of_a_sampled_log_count_by_their_inverse_rate() -> None:
    rate = np.where(np.arange(N) % 2 == 0, 0.5, 1.0)
    estimator = SNIPS(POLICIES, METRICS)
    estimator.update(checked_rows(**FOUND, log_rate=rate))
    w = W[:, 0] / rate
    expected = (w * Y[:, 0]).sum() / (w * SEND).sum() * (C[:, 0] / rate).sum() / (1 / rate).sum()
    assert estimator.point("quiet", "click", Per.decision).value == pytest.approx(expected)


def test_a_target_with_cells_of_its_own_is_their_mixture_and_the_log_itself_weighs_one() -> None:
    found = columns(15, 300)
    cells = found["extra"]["cell_probability"]
    found["extra"]["cells of bold"] = np.stack([cells[:, 1], found["target"][:, 1]], axis=1)
    mixed = Cells(POLICIES, METRICS, cell_p=CELL_P, mixture=["quiet"], target_cell_p={"bold": [0.3, 0.7]})
    mixed.update(rows_of(found))
    value, interval = mixed.interval("quiet", "revenue", versus=LOGGED)
    assert (abs(value) < 1e-12, interval.standard_error < 1e-7) == (True, True)
    parts = []
    for target in (cells[:, 1], found["target"][:, 1]):
        one = Cells(["alone"], METRICS, cell_p=CELL_P)
        one.update(rows_of({**found, "target": target, "target_send": found["target_send"][:, :1],
                            "unsupported": found["unsupported"][:, :1], "q_logged": None, "q_target": None}))  # fmt: skip
        assert one.diagnostics is not None
        parts.append(one.diagnostics.of(0).mean_weight)
    assert mixed.diagnostics is not None
    assert mixed.diagnostics.of(1).mean_weight == pytest.approx(0.3 * parts[0] + 0.7 * parts[1])
