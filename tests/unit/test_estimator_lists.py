"""List estimators on the real selector: each is right in the world that its assumption describes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest

from serve_app.errors import InvalidInput
from serve_app.stages.ranking.selector import SelectorInput, select
from serve_app.stages.ranking.settings import ListSettings
from simulators.estimators import IIPS, RIPS, CascadeDR, Interval, Per, Rows, checked_rows
from simulators.estimators.iips import simulated_marginals

LISTS, CANDIDATES, SLOTS, DRAWS = 1500, 6, 3, 150
LOGGED = ListSettings((), temperature=0.5, salt=1, mmr_lambda=0.8)
TARGET = ListSettings((), temperature=0.25, salt=2, mmr_lambda=1.0)
APPEAL = np.linspace(0.15, 0.7, CANDIDATES)
METRICS = ["alone", "cascade"]


def asked(seed: int) -> SelectorInput:
    n = LISTS * CANDIDATES
    item = np.tile(np.arange(CANDIDATES), LISTS)
    return SelectorInput(
        offsets=np.arange(0, n + 1, CANDIDATES), request_id=np.arange(LISTS, dtype=np.uint64) + np.uint64(seed * LISTS),
        slots=np.full(LISTS, SLOTS, np.int32), setting=np.zeros(LISTS, np.int32), identity=item.astype(np.uint64),
        category=(item % 2 + 1).astype(np.uint64), value=np.tile(APPEAL[::-1], LISTS), allowed=np.ones(n, np.bool_),
    )  # fmt: skip


def expected_rewards(slot: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """f64[n, 2] by candidate: clicks that depend on the slot's own item alone; clicks of people who read on until one."""
    out = np.zeros((len(slot), 2))
    reading = np.ones(LISTS)
    appeal = np.tile(APPEAL, LISTS)
    for k in range(SLOTS):
        rows = np.flatnonzero(slot == k)
        out[rows, 0] = appeal[rows] / (1 + k)
        out[rows, 1] = reading[rows // CANDIDATES] * appeal[rows]
        reading[rows // CANDIDATES] *= 1 - appeal[rows]
    return out


@dataclass(frozen=True)
class World:
    rows: Rows
    truth: npt.NDArray[np.float64]  # per list


@pytest.fixture(scope="module")
def world() -> World:
    given = asked(1)
    made = select(given, [LOGGED])
    followed = select(given, [TARGET], follow=made.slot, distributions=True)
    shown = np.flatnonzero(made.slot >= 0)
    shown = shown[np.lexsort((made.slot[shown], shown // CANDIDATES))]
    slot = made.slot[shown]
    rng = np.random.default_rng(0)
    appeal = np.tile(APPEAL, LISTS)[shown]
    alone = rng.random(len(shown)) < appeal / (1 + slot)
    would = (rng.random(len(shown)) < appeal).reshape(LISTS, SLOTS)
    first = would & (np.cumsum(would, axis=1) == 1)
    q, q_target = model(followed.distributions or [], shown, slot)

    def marginals(settings: ListSettings) -> npt.NDArray[np.float64]:
        return simulated_marginals(lambda i: select(asked(100 + i), [settings]).slot, shown, slot, DRAWS)

    reward = np.stack([alone, first.ravel()], axis=1).astype(np.float64)
    rows = checked_rows(
        shown // CANDIDATES, made.p_slot[shown], followed.p_slot[shown], reward,
        q_logged=q, q_target=q_target[:, None, :],
        extra={"list": shown // CANDIDATES, "marginal_propensity": marginals(LOGGED), "marginal_target": marginals(TARGET)},
        on_bad="error",
    )  # fmt: skip
    means = [expected_rewards(select(asked(1000 + i), [TARGET]).slot).sum(axis=0) / LISTS for i in range(60)]
    return World(rows, np.mean(means, axis=0))


def model(
    distributions: list[npt.NDArray[np.float64]], shown: npt.NDArray[np.int64], slot: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Reward of a slot and all below it, given the items above: f64[n, 2] of the item shown and over the target's choices.
    Rough: what comes below is taken for an average item."""
    average = APPEAL.mean()
    appeal = np.tile(APPEAL, LISTS)[shown].reshape(LISTS, SLOTS)
    above = np.concatenate([np.ones((LISTS, 1)), np.cumprod(1 - appeal, axis=1)[:, :-1]], axis=1).ravel()
    below = np.array([sum(average / (1 + j) for j in range(k + 1, SLOTS)) for k in range(SLOTS)])[slot]
    none = (1 - average) ** (SLOTS - 1 - slot)
    of_target = np.concatenate([(table * APPEAL).sum(axis=1) for table in distributions])
    made = [np.stack([a / (1 + slot) + below, above * (1 - (1 - a) * none)], axis=1) for a in (appeal.ravel(), of_target)]
    return made[0], made[1]


def found(world: World, kind: type[RIPS] | type[CascadeDR] | type[IIPS], metric: str) -> tuple[float, Interval]:
    settings = {"draws": DRAWS} if kind is IIPS else {}
    estimator = kind(["target"], METRICS, **settings)  # type: ignore[arg-type]
    estimator.update(world.rows)
    return estimator.interval("target", metric, Per.decision, level=0.999)


@pytest.mark.parametrize(
    ("kind", "metric"), [(RIPS, "alone"), (RIPS, "cascade"), (CascadeDR, "alone"), (CascadeDR, "cascade"), (IIPS, "alone")]
)
def test_each_is_right_under_its_assumption(world: World, kind: type[RIPS], metric: str) -> None:
    value, interval = found(world, kind, metric)
    assert interval.covers(world.truth[METRICS.index(metric)]), (value, world.truth)
    assert interval.half_width < 0.3 * value


def test_the_target_differs_from_the_log(world: World) -> None:
    for metric in METRICS:
        estimator = RIPS(["target"], METRICS)
        estimator.update(world.rows)
        assert not estimator.interval("target", metric, Per.decision, versus="logged")[1].covers(0.0)


def test_a_model_makes_the_interval_no_wider(world: World) -> None:
    assert found(world, CascadeDR, "cascade")[1].half_width < found(world, RIPS, "cascade")[1].half_width


def test_few_drawings_widen_the_interval(world: World) -> None:
    widths = []
    for draws in (5, DRAWS):
        estimator = IIPS(["target"], METRICS, draws=draws)
        estimator.update(world.rows)
        widths.append(estimator.interval("target", "alone", Per.decision)[1].half_width)
    assert widths[0] > widths[1]


def test_lists_that_are_torn_apart_are_an_error(world: World) -> None:
    torn = replace(
        world.rows, extra={**world.rows.extra, "list": np.arange(len(world.rows)) % 2}, user=np.zeros_like(world.rows.user)
    )
    with pytest.raises(InvalidInput, match="not adjacent"):
        RIPS(["target"], METRICS).update(torn)
