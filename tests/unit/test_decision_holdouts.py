"""Holdouts: exact shares, independence, ghosts on their own shadow history, blocking, first triggers."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from serve_app.ids import hash_id
from serve_app.policy.assign import assign
from serve_app.policy.holdouts import held_out_by
from serve_app.vocabulary import Action, MessageClass, Reason
from tests.unit.decision_support import DAY, HOUR, at, candidate, compiled, decided, entry, request

NOW = at("2026-03-10T12:00:00")
GLOBAL = {"id": "g", "scope": "global", "percent": 100, "salt": "g"}
SPRING = {"id": "s", "scope": "campaign", "campaigns": ["spring"], "percent": 100, "salt": "s"}
CAP = {"id": "c", "scope": "global", "limit": 1, "window": {"rolling_hours": 24}}
spring = candidate(campaign=hash_id("spring"), heads=(0.9, 0))
other = candidate(campaign=hash_id("other"), heads=(0.5, 0))


def held(policy: Any, users: np.ndarray[Any, Any], campaign: int = 1) -> np.ndarray[Any, Any]:
    n = len(users)
    by, _ = held_out_by(
        policy.holdouts, np.arange(n + 1), users, np.full(n, NOW), np.full(n, campaign, np.uint64), np.full(n, 2, np.int8)
    )
    return by >= 0


@pytest.mark.parametrize("percent", [0.0, 0.01, 2.5, 33.33, 100.0])
def test_the_share_held_out_is_the_percent_stated(percent: float) -> None:
    users = np.arange(1, 1_000_001).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    share = held(compiled(holdouts=[GLOBAL | {"percent": percent}]), users).mean()
    p = percent / 100
    assert abs(share - p) <= 4.5 * (p * (1 - p) / len(users)) ** 0.5


def test_assignments_are_independent_of_each_other() -> None:
    users = np.arange(1, 200_001).astype(np.uint64)
    policy = compiled(
        experiments=[
            {"id": e, "salt": e, "arms": [{"id": "a", "percent": 50}, {"id": "b", "percent": 50}]} for e in ("e1", "e2")
        ],
        cells={"epoch_hours": 24, "variants": [{"id": "a", "probability": 0.5}, {"id": "b", "probability": 0.5}]},
    )
    own = assign(policy.trials, users, np.full(len(users), NOW))
    later = assign(policy.trials, users, np.full(len(users), NOW + DAY))
    marks = {
        "holdout 1": held(compiled(holdouts=[GLOBAL | {"percent": 30}]), users),
        "holdout 2": held(compiled(holdouts=[GLOBAL | {"percent": 30, "salt": "other"}]), users),
        "experiment 1": own.arms & np.uint64(15), "experiment 2": own.arms >> np.uint64(4), "cell": own.cell,
        "cell a day later": later.cell,
    }  # fmt: skip
    for a, b in combinations(marks, 2):
        table = np.histogram2d(marks[a].astype(float), marks[b].astype(float), bins=2)[0]
        assert chi2_contingency(table).pvalue > 1e-4, f"{a} and {b}"


def test_assignment_is_stable_and_recorded_with_its_probability() -> None:
    cells = {"epoch_hours": 24, "variants": [{"id": "a", "probability": 0.25}, {"id": "b", "probability": 0.75}]}
    policy = compiled(cells=cells)
    users = np.arange(1, 40_001).astype(np.uint64)
    own = assign(policy.trials, users, np.full(len(users), NOW))
    again = assign(policy.trials, users[::-1].copy(), np.full(len(users), NOW + 1))
    assert np.array_equal(own.cell, again.cell[::-1])
    assert set(np.unique(own.p_cell[own.cell == 0])) == {0.25}
    assert abs((own.cell == 0).mean() - 0.25) < 0.01


def test_a_winner_that_is_held_out_becomes_a_ghost_and_the_choice_is_rerun_without_it() -> None:
    out = decided(compiled(holdouts=[SPRING]), [request([spring, other])])
    rows = out.candidates
    assert rows["ghost"].tolist() == [True, False]
    assert rows["slot"].tolist() == [-1, 0]
    assert Reason(rows["reason"][0]) == Reason.campaign_holdout
    assert rows["holdout"].tolist() == [0, -1]
    assert rows["p_choice"].tolist() == [0.0, 1.0]
    assert rows["p_shadow"].tolist() == [1.0, 0.0]


def test_a_held_out_candidate_that_would_not_have_won_is_no_ghost() -> None:
    out = decided(compiled(holdouts=[SPRING]), [request([spring | {"heads": (0.1, 0)}, other])])
    assert not out.candidates["ghost"].any()
    assert Reason(out.candidates["reason"][0]) == Reason.preempted


def test_ghosts_count_in_their_shadow_history_alone() -> None:
    policy = compiled(holdouts=[SPRING], caps=[CAP])
    key = int(policy.holdouts.keys[0])
    past = [entry(NOW - HOUR, holdout=key)]
    out = decided(policy, [request([spring, other], decided_at=NOW)], [past])
    # On the shadow history the cap is used up by the ghost: no second ghost. The facts have room.
    assert not out.candidates["ghost"].any()
    assert Reason(out.candidates["reason"][0]) == Reason.frequency_capped
    assert out.candidates["slot"].tolist() == [-1, 0]
    # Factual sends count in both.
    sent = [entry(NOW - HOUR)]
    out = decided(policy, [request([spring, other], decided_at=NOW)], [sent])
    assert Reason(out.candidates["reason"][0]) == Reason.frequency_capped
    assert out.candidates["slot"].tolist() == [-1, -1]


def test_a_blocking_holdout_sends_nothing_in_the_ghosts_place() -> None:
    out = decided(compiled(holdouts=[SPRING | {"blocking": True}]), [request([spring, other])])
    assert out.requests["action"][0] == Action.suppress
    assert Reason(out.requests["reason"][0]) == Reason.campaign_holdout
    assert out.requests["p_none"][0] == 1.0
    assert out.candidates["slot"].tolist() == [-1, -1]
    assert out.candidates["ghost"].tolist() == [True, False]
    assert Reason(out.candidates["reason"][1]) == Reason.campaign_holdout


def test_a_blocking_holdout_keeps_a_later_place_empty_and_leaves_the_first_alone() -> None:
    rows = [other | {"heads": (0.9, 0)}, spring | {"heads": (0.5, 0)}, candidate(campaign=3, heads=(0.1, 0))]
    blocking, plain = (compiled(holdouts=[SPRING | {"blocking": b}], max_sends_per_decision=2) for b in (True, False))
    assert decided(plain, [request(rows, slots=2)]).candidates["slot"].tolist() == [0, -1, 1]
    out = decided(blocking, [request(rows, slots=2)])
    assert out.candidates["slot"].tolist() == [0, -1, -1]
    assert out.candidates["ghost"].tolist() == [False, True, False]
    assert out.candidates["p_choice"].tolist() == [1.0, 0.0, 0.0]


def test_blocking_and_flips_give_exact_probabilities() -> None:
    n = 20_000
    policy = compiled(holdouts=[SPRING | {"blocking": True}], flips={"probability": 0.4})
    asked = [request([spring, other], request_id=i, user=i) for i in range(1, n + 1)]
    out = decided(policy, asked)
    # The shadow picks spring with .6: blocked. Else the facts pick `other` with .6 and nothing with .4.
    assert abs(out.candidates["p_choice"][1] - 0.4 * 0.6) < 1e-12
    assert abs(out.requests["p_none"][0] - (0.6 + 0.4 * 0.4)) < 1e-12
    seen = (out.candidates["slot"].reshape(n, 2)[:, 1] == 0).mean()
    assert abs(seen - 0.24) < 4.5 * (0.24 * 0.76 / n) ** 0.5


def test_the_first_would_send_is_marked_in_both_arms() -> None:
    policy = compiled(holdouts=[GLOBAL | {"percent": 50}])
    asked = [request([candidate()], user=u, decided_at=NOW) for u in range(1, 201)]
    first = decided(policy, asked)
    assert first.candidates["ghost_first"].all()
    assert 60 < first.candidates["ghost"].sum() < 140
    key = int(policy.holdouts.keys[0])
    history = [[entry(NOW - HOUR, holdout=key if ghost else 0, campaign=1)] for ghost in first.candidates["ghost"].tolist()]
    assert not decided(policy, asked, history).candidates["ghost_first"].any()


def test_what_was_sent_before_the_holdout_began_is_no_trigger() -> None:
    policy = compiled(holdouts=[GLOBAL | {"percent": 0, "starts_at": "2026-03-10T00:00:00+09:00"}])
    before = decided(policy, [request([candidate()], decided_at=NOW)], [[entry(NOW - DAY)]])
    assert before.candidates["ghost_first"].tolist() == [True]


def test_classes_the_holdout_does_not_name_and_dates_outside_are_free() -> None:
    free = compiled(holdouts=[GLOBAL])
    order = candidate(message_class=MessageClass.transactional)
    assert decided(free, [request([order])]).requests["action"][0] == Action.send
    over = compiled(holdouts=[GLOBAL | {"ends_at": "2026-03-10T12:00:00+09:00"}])
    assert decided(over, [request([candidate()], decided_at=NOW)]).requests["action"][0] == Action.send
    assert decided(over, [request([candidate()], decided_at=NOW - 1)]).requests["action"][0] == Action.suppress


def test_several_ghosts_of_one_decision_are_each_counted_before_the_next() -> None:
    caps = [CAP | {"limit": 2}]
    policy = compiled(holdouts=[GLOBAL], caps=caps, max_sends_per_decision=5)
    rows = [candidate(campaign=c) for c in range(1, 5)]
    out = decided(policy, [request(rows, slots=5)])
    assert out.candidates["ghost"].sum() == 2


def test_a_withheld_message_is_deferred_like_any_other_and_becomes_a_ghost_when_its_time_comes() -> None:
    night = {"id": "n", "start": "22:00", "end": "08:00"}
    policy = compiled(holdouts=[GLOBAL], quiet_hours=[night])
    late, morning = at("2026-03-10T23:00:00"), at("2026-03-11T08:00:00")
    out = decided(policy, [request([candidate()], decided_at=late)])
    assert out.requests["action"][0] == Action.defer
    assert not out.candidates["ghost"].any()
    assert decided(policy, [request([candidate()], decided_at=morning, attempt=1)]).candidates["ghost"].all()


def test_where_the_shadow_sent_already_nothing_of_its_holdout_is_deferred() -> None:
    night = {"id": "n", "start": "22:00", "end": "08:00", "channels": ["push"]}
    rows = [candidate(), candidate(channel=2)]
    late = at("2026-03-10T23:00:00")
    out = decided(compiled(holdouts=[GLOBAL], quiet_hours=[night]), [request(rows, decided_at=late)])
    assert out.candidates["ghost"].tolist() == [False, True]
    assert out.requests["action"][0] == Action.suppress
    assert Reason(out.requests["reason"][0]) == Reason.global_holdout
