"""Examples, sequences and sessions: what a request may know, what counts as an answer, and what it is judged by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from serve_app.batch import Ragged
from serve_app.release.build.baselines import CoOccurrence, popularity_lists
from serve_app.release.build.figures import auc, calibration_error, clustered_mean, list_figures, top_lists
from serve_app.release.build.interactions import Interactions, Sessions
from serve_app.release.build.next_items import next_items
from serve_app.release.build.sequences import UserSequences
from serve_app.release.build.settings import BuildSettings
from serve_app.release.build.spans import Spans
from serve_app.vocabulary import EventType, Surface
from tests.unit.test_build_features import HORIZON, ITEMS, USERS, random_log


def in_sessions(log: Interactions) -> Interactions:
    return Interactions.join([log])


def test_sessions_are_whole_in_order_of_their_start_and_without_repeats() -> None:
    log = in_sessions(random_log(1, late=False))
    sessions = Sessions.of(log)
    starts = sessions.at[sessions.offsets[:-1]]
    assert (np.diff(starts) >= 0).all()
    for s in range(len(sessions)):
        own = slice(sessions.offsets[s], sessions.offsets[s + 1])
        assert (np.diff(sessions.at[own]) >= 0).all()
        assert (np.diff(sessions.items[own]) != 0).all()
    shown = np.isin(log.kind, (EventType.view, EventType.click, EventType.add_to_cart, EventType.conversion))
    assert len(sessions) == len(np.unique(log.session[shown]))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_a_history_is_what_was_known_before_newest_last(seed: int, limit: int) -> None:
    log = in_sessions(random_log(seed, count=60))
    draw = np.random.default_rng(seed)
    users = draw.integers(-1, USERS, 20).astype(np.int32)
    when = draw.integers(0, HORIZON, 20)
    sequences = UserSequences.build(log, USERS)
    found, at = sequences.shown.last(users, when, limit, False)
    distinct, _ = sequences.bought.last(users, when, limit, True)
    for i in range(len(users)):
        own = np.flatnonzero((log.user == users[i]) & (log.known_at < when[i]) & (users[i] >= 0))
        known = own[np.lexsort((own, log.position[own], log.at[own], log.known_at[own]))]
        seen = [int(log.item[row]) for row in known if log.kind[row] not in (EventType.seen, EventType.delivered)]
        collapsed = [item for place, item in enumerate(seen) if place == len(seen) - 1 or seen[place + 1] != item]
        assert found[i].tolist() == collapsed[-limit:]
        bought = [int(log.item[row]) for row in known if log.kind[row] == EventType.conversion]
        last = [item for place, item in enumerate(bought) if item not in bought[place + 1 :]]
        assert distinct[i].tolist() == last[-limit:]
    assert (at < np.repeat(when, found.lengths)).all()


@pytest.mark.parametrize("surface", [Surface.related, Surface.gateway])
def test_an_example_asks_with_the_past_and_is_answered_by_the_future(surface: Surface) -> None:
    sessions = Sessions.of(in_sessions(random_log(4, late=False)))
    examples = next_items(surface, sessions, 0, HORIZON, limit=1000, seed=1)
    assert len(examples) > 10
    for i in range(len(examples)):
        own = slice(sessions.offsets[examples.session[i]], sessions.offsets[examples.session[i] + 1])
        items, prefix = sessions.items[own], examples.prefix[i]
        assert items[: len(prefix)].tolist() == prefix.tolist()
        assert sorted(examples.relevant[i].tolist()) == sorted(set(items[len(prefix) :].tolist()) - set(prefix.tolist()))
        if surface == Surface.related:
            assert examples.anchor[i] == prefix[-1]
    assert (examples.prefix_at <= np.repeat(examples.at, examples.prefix.lengths)).all()


def test_examples_stay_inside_their_span_and_their_number() -> None:
    sessions = Sessions.of(in_sessions(random_log(4, late=False)))
    examples = next_items(Surface.gateway, sessions, HORIZON // 3, HORIZON // 2, limit=5, seed=1)
    assert 0 < len(examples) <= 5
    assert ((examples.at >= HORIZON // 3) & (examples.at < HORIZON // 2)).all()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_figures_agree_with_independent_ones(seed: int) -> None:
    draw = np.random.default_rng(seed)
    score, label = np.round(draw.random(60), 1), draw.random(60) < 0.3
    label[:2] = True, False
    assert auc(score, label) == pytest.approx(roc_auc_score(label, score))
    items = draw.permutation(12).astype(np.int32)
    relevant = draw.permutation(12)[: draw.integers(1, 12)].astype(np.int32)
    found = list_figures(items[None, :], Ragged(relevant, np.array([0, len(relevant)])))
    truth = np.isin(items, relevant)
    assert found["ndcg"][0] == pytest.approx(ndcg_score(truth[None, :].astype(float), -np.arange(12.0)[None, :]))
    assert found["recall"][0] == 1.0
    assert found["mrr"][0] == pytest.approx(1 / (1 + np.flatnonzero(truth)[0]))


def test_top_lists_take_the_best_kept_ties_by_row_and_pad() -> None:
    items = np.array([4, 2, 9, 7, 1], np.int32)
    score = np.array([0.5, 0.5, 0.9, 0.1, 0.2])
    kept = np.array([True, True, False, True, True])
    lists = top_lists(items, score, np.array([0, 4, 4, 5]), kept, 3)
    assert lists.tolist() == [[2, 4, 7], [-1, -1, -1], [1, -1, -1]]


def test_an_interval_counts_users_not_rows() -> None:
    values = np.repeat(np.random.default_rng(1).random(50), 20)
    users = np.repeat(np.arange(50), 20).astype(np.int32)
    alone = clustered_mean(values, np.full(len(users), -1, np.int32))
    together = clustered_mean(values, users)
    width: npt.NDArray[np.float64] = np.array([(one.high or 0) - (one.low or 0) for one in (alone, together)])
    assert together.value == alone.value
    assert width[1] == pytest.approx(width[0] * np.sqrt(20), rel=1e-6)


def test_calibration_error_is_zero_for_the_truth_and_the_gap_for_a_constant_lie() -> None:
    p = np.tile([0.0, 1.0], 50)
    assert calibration_error(p, p > 0.5) == 0.0
    assert calibration_error(np.full(100, 0.9), np.arange(100) < 40) == pytest.approx(0.5)


def test_co_occurrence_counts_sessions_that_hold_both() -> None:
    held = [[0, 1, 2], [0, 1, 1], [3, 4], [0, 2, 5]]
    flat = np.concatenate([np.array(one) for one in held]).astype(np.int32)
    offsets = np.r_[0, np.cumsum([len(one) for one in held])]
    zeros = np.zeros(len(flat), np.int64)
    sessions = Sessions(flat, offsets, np.ones(len(flat), np.float32), zeros, zeros, np.zeros(4, np.int32))
    seeds, none = Ragged.of([[0], [0]], np.int32), Ragged.of([[], [1]], np.int32)
    assert CoOccurrence(sessions, ITEMS).lists(seeds, none, 3).tolist() == [[1, 2, 5], [2, 5, -1]]
    assert popularity_lists(sessions, ITEMS, none, 2)[1].tolist() == [0, 2]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_the_three_spans_follow_one_another_inside_the_log(seed: int) -> None:
    log = random_log(seed, count=50)
    spans = Spans.of(log, BuildSettings())
    assert log.at.min() == spans.begin < spans.examples_from < spans.measured_from < spans.end == log.known_at.max() + 1
