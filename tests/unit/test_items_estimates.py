"""RIPS and cascade-DR on the world's lists, against the true clicks of a target, known from the world."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.noise import hash_key
from serve_app.policy.document import canonical_json
from serve_app.vocabulary import Surface
from simulators.estimators import Per
from simulators.replay.items.estimates import looked_at, new_suites, slot_columns, update_suites
from simulators.replay.items.making import Made, as_logged, under
from simulators.replay.items.outcomes import features_of, fitted, remaining
from simulators.replay.items.rewards import slot_rewards
from simulators.replay.items.shard import people_of
from simulators.replay.items.spec import compiled_for
from simulators.replay.spec import Target
from simulators.world.responses import examination
from simulators.world.settings import ResponseSettings
from tests.unit.items_support import events_of, full_world, lists_of, logging_policy, other, relevance_of

SEEDS = (3, 4, 5)
DAY = 86_400_000_000


def true_clicks(made: Made, relevance: np.ndarray, draws: int = 60) -> float:
    """Mean true clicks of a list: slot looked at, thing liked; over fresh draws of every list."""
    total = 0.0
    for number in range(draws):
        slot = made.with_noise(hash_key(number, made.given.request_id)).select().slot
        shown = slot >= 0
        total += float((examination(slot[shown], ResponseSettings()) * relevance[shown]).sum())
    return total / draws / (len(made.given.offsets) - 1)


@pytest.fixture(scope="module", params=SEEDS)
def judged(request: pytest.FixtureRequest) -> tuple[dict[str, tuple[float, float]], float, float]:
    """({estimator: (estimate, standard error)}, truth of the target, clicks of the log) per list."""
    data = full_world(request.param)
    document, events = logging_policy(data), events_of(data)
    target = other(document, "gateway", temperature=0.065)
    suites = new_suites(["new"], 0)
    truths, weights, columns = [], [], []
    for part in lists_of(data, Surface.gateway):
        lists = part.take(~people_of(part, events))
        policies = [
            compiled_for(Target("p", canonical_json(one).decode()), "gateway", lists.head_names)
            for one in (document, target)
        ]
        logged, new = as_logged(lists, policies[:1]), under(lists, policies[1])
        truths.append(true_clicks(new, relevance_of(data, lists)))
        weights.append(len(lists))
        reward, shown = slot_rewards(lists, events, DAY), lists.shown()
        slot = lists.candidates["slot"][shown].astype(np.int64)
        heads, users = lists.head_names, lists.user[lists.owner[shown]]
        model = fitted(users, features_of(lists, shown, slot, heads), remaining(reward, lists.owner[shown]), heads)
        looked = looked_at(lists, logged, [logged, new], model, heads)
        columns.append(slot_columns(lists, looked, reward, (logged, [logged, new], 0)))
    for one in columns:
        update_suites(suites, [one])
    found = {}
    for label in ("rips", "cascade-dr"):
        value, interval = suites["slots"][label].interval("new", "clicks", Per.decision)
        found[label] = value, interval.standard_error
    logged_clicks = suites["slots"]["rips"].point("logged", "clicks", Per.decision).value
    return found, float(np.average(truths, weights=weights)), logged_clicks


@pytest.mark.parametrize("estimator", ["rips", "cascade-dr"])
def test_the_true_clicks_of_the_target_lie_within_the_interval(
    judged: tuple[dict[str, tuple[float, float]], float, float], estimator: str
) -> None:
    found, truth, logged = judged
    value, error = found[estimator]
    assert abs(value - truth) < 2.8 * error, (value, truth, error)
    assert error < 0.1 * logged, "an interval that wide would cover anything"


def test_the_target_is_better_than_the_log_and_the_model_helps(
    judged: tuple[dict[str, tuple[float, float]], float, float],
) -> None:
    found, truth, logged = judged
    assert truth > logged
    assert found["cascade-dr"][1] < 1.05 * found["rips"][1]
