"""The choice: batch-size independence, exact probabilities, flips, several sends, several policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.batch import Batch
from serve_app.ledger.columns import Histories
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import Action, MessageClass, Reason
from tests.unit.decision_support import (
    DAY,
    HOUR,
    at,
    batch_of,
    candidate,
    compiled,
    decided,
    entry,
    histories_of,
    request,
)

NOW = at("2026-03-10T12:00:00")
RICH: dict[str, Any] = {
    "caps": [
        {"id": "day", "scope": "global", "limit": 2, "window": {"rolling_hours": 24}},
        {"id": "channel", "scope": "channel", "limit": 1, "window": {"calendar": "day"}},
        {"id": "week", "scope": "campaign", "limit": 1, "window": {"calendar": "week"}},
    ],
    "min_gap": {"minutes": 10},
    "quiet_hours": [{"id": "night", "start": "22:00", "end": "08:00"}],
    "threshold": 0.1,
    "flips": {"probability": 0.3},
    "max_sends_per_decision": 3,
    "deferral": {"spread_minutes": 30},
    "holdouts": [
        {"id": "all", "scope": "global", "percent": 20, "salt": "a"},
        {"id": "some", "scope": "campaign", "campaigns": ["x"], "percent": 50, "salt": "b", "blocking": True},
    ],
    "cells": {
        "epoch_hours": 1000,
        "variants": [
            {"id": "base", "probability": 0.5},
            {"id": "tight", "probability": 0.5, "overrides": {"caps.day.limit": 1, "threshold": 0.4}},
        ],
    },
    "experiments": [
        {"id": "e", "salt": "e", "arms": [
            {"id": "a", "percent": 50}, {"id": "b", "percent": 50, "overrides": {"flips.probability": 0.1}},
        ]},
    ],
}  # fmt: skip


def random_case(n: int, seed: int) -> tuple[Batch, Histories]:
    """n requests of distinct users with up to six candidates and up to six entries."""
    rng = np.random.default_rng(seed)
    requests, rows = [], []
    for row in range(n):
        now = NOW + int(rng.integers(0, DAY))
        candidates = [
            candidate(
                campaign=int(1 + pair // 4), channel=int(pair % 4), message_class=int(rng.integers(0, 3)),
                category=int(rng.integers(0, 3)), priority=int(rng.integers(0, 2)), heads=(rng.random(), 0.0),
            )
            for pair in rng.permutation(32)[: rng.integers(0, 7)]
        ]  # fmt: skip
        ids = int(rng.integers(1, 2**62))
        requests.append(request(candidates, user=row + 1, request_id=ids, decided_at=now, slots=int(rng.integers(1, 4))))
        rows.append(
            [
                entry(
                    now - int(rng.integers(0, 3 * DAY)), campaign=int(rng.integers(1, 9)), channel=int(rng.integers(0, 4)),
                    message_class=int(rng.integers(0, 3)), category=int(rng.integers(0, 3)),
                )
                for _ in range(int(rng.integers(0, 6)))
            ]
        )  # fmt: skip
    return batch_of(requests), histories_of(rows)


def run(policy: Any, batch: Batch, histories: Histories) -> Batch:
    return Decision().run(batch, Context((policy,), {"histories": histories}))


def columns_of(batch: Batch) -> dict[str, bytes]:
    out = {f"request {name}": values.tobytes() for name, values in batch.requests.items()}
    return out | {f"candidate {name}": np.ascontiguousarray(values).tobytes() for name, values in batch.candidates.items()}


@pytest.mark.parametrize("size", [1, 7])
def test_a_decision_is_the_same_bytes_alone_or_among_a_thousand(size: int) -> None:
    policy, (batch, histories) = compiled(**RICH), random_case(1000, 3)
    whole = run(policy, batch, histories)
    parts = []
    for start in range(0, 1000, size):
        rows = np.arange(start, min(start + size, 1000))
        own = [histories.entries[histories.offsets[r] : histories.offsets[r + 1]] for r in rows]
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in own])]).astype(np.int64)
        parts.append(run(policy, batch.take(rows), Histories(np.concatenate(own), offsets)))
    assert columns_of(Batch.concat(parts)) == columns_of(whole)


def test_position_among_the_candidates_does_not_matter() -> None:
    policy, (batch, histories) = compiled(**RICH), random_case(500, 4)
    order = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)])
    forth, back = run(policy, batch, histories), run(policy, batch.reorder(order.astype(np.int64)), histories)
    sent = np.flatnonzero(forth.candidates["slot"] >= 0)
    again = np.sort(order[np.flatnonzero(back.candidates["slot"] >= 0)])
    assert np.array_equal(sent, again)
    assert np.array_equal(forth.requests["action"], back.requests["action"])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["either", "none", "other_passing"]), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_probabilities_of_all_choices_sum_to_one(seed: int, to: str, probability: float) -> None:
    rules = RICH | {"flips": {"probability": probability, "to": to}, "experiments": []}
    out = run(compiled(**rules), *random_case(40, seed))
    p = out.candidates["p_choice"]
    totals = [p[a:b].sum() for a, b in zip(out.offsets[:-1], out.offsets[1:], strict=True)] + out.requests["p_none"]
    assert np.abs(totals - 1.0).max() < 1e-12
    assert p.min(initial=0.0) >= 0.0
    first = np.flatnonzero(out.candidates["slot"] == 0)
    assert (p[first] > 0).all()
    assert (out.requests["p_none"][out.requests["reason"] == Reason.explored_off] > 0).all()
    certain = (
        np.maximum(
            out.requests["p_none"], [p[a:b].max(initial=0) for a, b in zip(out.offsets[:-1], out.offsets[1:], strict=True)]
        )
        == 1
    )
    assert np.array_equal(out.requests["forced"], certain)


@pytest.mark.parametrize("to", ["either", "none", "other_passing"])
def test_flips_happen_as_often_as_their_propensities_say(to: str) -> None:
    n = 20_000
    policy = compiled(flips={"probability": 0.3, "to": to})
    candidates = [candidate(campaign=c, heads=(0.9 - 0.1 * c, 0)) for c in range(1, 5)]
    base = batch_of([request(candidates)])
    batch = base.take(np.zeros(n, np.int64))
    batch.requests["root_id"] = np.arange(1, n + 1).astype(np.uint64)
    out = run(policy, batch, Histories.empty(n))
    p = out.candidates["p_choice"].reshape(n, 4)[0].tolist() + [float(out.requests["p_none"][0])]
    sent = (out.candidates["slot"] == 0).reshape(n, 4)
    seen = [*np.count_nonzero(sent, axis=0).tolist(), int((~sent.any(axis=1)).sum())]
    for count, probability in zip(seen, p, strict=True):
        spread = (n * probability * (1 - probability)) ** 0.5
        assert abs(count - n * probability) <= 4.5 * spread
    assert out.requests["explored"].sum() == n - seen[0]


def test_an_attempt_and_a_root_key_the_noise_and_the_request_does_not() -> None:
    policy = compiled(flips={"probability": 0.5})
    rows = [candidate(), candidate(campaign=2, heads=(0.4, 0))]

    def choices(**columns: Any) -> list[int]:
        asked = [request(rows, user=u, **{"root_id": u, "request_id": 1000 + u} | columns) for u in range(1, 101)]
        return decided(policy, asked).candidates["slot"].tolist()

    assert choices() == choices(request_id=5)
    assert choices() != choices(attempt=1)


def test_a_transactional_message_is_never_flipped_away_nor_flipped_to() -> None:
    policy = compiled(flips={"probability": 1.0, "to": "either"})
    order = candidate(message_class=MessageClass.transactional, campaign=8)
    out = decided(policy, [request([order, candidate()])])
    assert out.candidates["p_choice"].tolist() == [1.0, 0.0]
    assert out.requests["forced"][0]
    lower = compiled(flips={"probability": 1.0, "to": "other_passing"}, order="value")
    out = decided(lower, [request([order | {"heads": (0.1, 0)}, candidate()])])
    assert out.candidates["p_choice"].tolist() == [0.0, 1.0]


def test_several_sends_go_in_priority_order_each_counted_before_the_next() -> None:
    caps = [{"id": "push", "scope": "channel", "only": ["push"], "limit": 1, "window": {"calendar": "day"}}]
    policy = compiled(caps=caps, max_sends_per_decision=5)
    rows = [
        candidate(campaign=1, heads=(0.9, 0)),
        candidate(campaign=2, heads=(0.8, 0)),
        candidate(campaign=3, heads=(0.2, 0), channel=2, priority=5),
        candidate(campaign=3, heads=(0.7, 0), channel=3, priority=5),
        candidate(campaign=4, heads=(0.1, 0), channel=2),
    ]
    out = decided(policy, [request(rows, slots=5)])
    # Priority first; campaign 3 once; push once; then what is left.
    assert out.candidates["slot"].tolist() == [1, -1, -1, 0, 2]
    assert decided(policy, [request(rows, slots=2)]).candidates["slot"].tolist() == [1, -1, -1, 0, -1]
    single = compiled(caps=caps)
    assert decided(single, [request(rows, slots=5)]).candidates["slot"].tolist() == [-1, -1, -1, 0, -1]


def test_a_minimum_gap_holds_between_messages_of_one_decision() -> None:
    policy = compiled(min_gap={"minutes": 5}, max_sends_per_decision=5)
    order = candidate(campaign=7, message_class=MessageClass.transactional, channel=2)
    out = decided(policy, [request([candidate(), candidate(campaign=2), order], slots=5)])
    assert out.candidates["slot"].tolist() == [1, -1, 0]


def test_equal_candidates_are_told_apart_by_identity_and_value_wins_when_asked_to() -> None:
    rows = [candidate(campaign=1, priority=3, heads=(0.1, 0)), candidate(campaign=2, heads=(0.8, 0))]
    assert decided(compiled(), [request(rows)]).candidates["slot"].tolist() == [0, -1]
    assert decided(compiled(order="value"), [request(rows)]).candidates["slot"].tolist() == [-1, 0]


def test_requests_pinned_to_different_policies_are_each_decided_by_their_own() -> None:
    strict, free = compiled(threshold=0.9), compiled()
    asked = [request([candidate()], user=u, policy=u % 2) for u in range(1, 7)]
    batch = batch_of(asked)
    out = Decision().run(batch, Context((strict, free), {"histories": histories_of([[]] * 6)}))
    assert out.requests["action"].tolist() == [Action.send, Action.suppress] * 3
    assert np.array_equal(out.requests["user"], batch.requests["user"])


def test_a_deferred_message_is_not_sent_though_another_gate_would_let_it_pass() -> None:
    policy = compiled(quiet_hours=[{"id": "n", "start": "11:00", "end": "13:00", "channels": ["push"]}])
    out = decided(policy, [request([candidate(heads=(0.9, 0)), candidate(channel=2)], decided_at=NOW)])
    assert out.requests["action"][0] == Action.send
    assert out.candidates["action"].tolist() == [Action.defer, Action.send]
    assert out.candidates["until"].tolist() == [NOW + HOUR, 0]
