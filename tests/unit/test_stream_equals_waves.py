"""Users one after the other in a compiled loop, or all users' k-th requests as a batch: the same decisions, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.policy.compile import CompiledPolicy
from simulators.replay import partition as partitions
from simulators.replay.analytic import Support
from simulators.replay.course import Course, follow_log
from simulators.replay.realised import Realised
from simulators.replay.stream import stream_log, stream_on_log, stream_policy
from tests.unit.stream_worlds import Log, a_log, some_policies
from tests.unit.waves import RealisedTrack, WaveCourse, follow_policy
from tests.unit.waves_asked import children, under
from tests.unit.waves_views import on_log

ALWAYS = np.iinfo(np.int64).min
seeds = st.integers(0, 2**32)
often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class _Kept:
    """Everything the waves decided, in the log's order."""

    def __init__(self, log: Log) -> None:
        asked = log.partition.asked
        self.track, self._asked = RealisedTrack(asked), asked
        self.until, self.p_none = np.zeros(len(asked), np.int64), np.zeros(len(asked))
        self.explored, self.p_choice = np.zeros(len(asked), np.bool_), np.zeros(asked.batch.candidates.rows)

    def __call__(self, rows: Any, decided: Any) -> None:
        self.track(rows, decided)
        for name in ("until", "p_none", "explored"):
            getattr(self, name)[rows] = decided.requests[name]
        flat = np.arange(decided.candidates.rows) - decided.offsets[decided.owner]
        self.p_choice[flat + self._asked.batch.offsets[rows][decided.owner]] = decided.candidates["p_choice"]


def _same(one: Any, other: Any, *names: str) -> None:
    for name in names:
        a, b = np.asarray(getattr(one, name)), np.asarray(getattr(other, name))
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


def _same_realised(one: Realised, other: Realised) -> None:
    names = ("rows", "at", "action", "reason", "send_decision", "send_candidate", "candidate_reasons", "carried")
    _same(one, other, *names)


def _check_log(log: Log) -> Any:
    part, kept = log.partition, _Kept(log)
    known = follow_log(part.asked, Course(part.asked, log.behaviour, part.start, log.failed()), kept)
    streamed, knew = stream_log(part.asked, log.behaviour, part.start, log.failed())
    _same_realised(kept.track.result(), streamed)
    _same(kept, streamed, "until", "p_none", "explored", "p_choice")
    np.testing.assert_array_equal(known, knew)
    return known


def _check_policy(log: Log, policy: CompiledPolicy, since: int, known: Any, counts: Any = None) -> Realised:
    part = log.partition
    course, track = WaveCourse(part.asked, [policy], part.start, log.failed()), RealisedTrack(part.asked, counts)
    course.recall_before(part.asked, log.behaviour, since)
    carried = follow_policy(under(part.asked, policy, log.behaviour), course, track, since=since, known=known)
    args = (part.asked, policy, log.behaviour, part.start, log.failed())
    streamed = stream_policy(*args, since=since, known=known, counts=counts)
    _same_realised(track.result(carried), streamed)
    return streamed


@pytest.fixture(autouse=True)
def failures_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions of random logs have no events; their failures stand beside."""
    monkeypatch.setattr(partitions.Partition, "failures", lambda self: self._given if hasattr(self, "_given") else None)


def _check_views(log: Log, policies: Any) -> None:
    waves, streamed = (_with_failures(log) for _ in range(2))
    able = [Support.nothing(log.partition.asked) for _ in range(2)]
    teachers = {"choices": True, "teaching": 1}
    by_waves = on_log(waves, policies, log.behaviour, support=able[0], **teachers)
    by_stream = stream_on_log(streamed, policies, log.behaviour, support=able[1], **teachers)
    for one, other in zip(by_waves, by_stream, strict=True):
        _same(one.own, other.own, "chosen", "send", "unsupported")
        _same(one, other, "by_cell", "choices", "beyond")
    _same(*able, "candidate", "none")


def _with_failures(log: Log) -> Any:
    part = replace(log.partition)
    object.__setattr__(part, "_given", log.failed())
    return part


@often
@given(seeds)
def test_the_log_under_the_policies_that_logged_it(seed: int) -> None:
    _check_log(a_log(seed, policies=1 + seed % 3))


@often
@given(seeds)
def test_another_policys_own_course_from_the_start_and_from_the_middle(seed: int) -> None:
    log = a_log(seed, policies=1 + seed % 2)
    known, at = _check_log(log), log.partition.asked.batch.requests["decided_at"]
    for policy in (*some_policies(Random(seed + 1), 1), log.behaviour[0]):
        for since in (ALWAYS, int(np.median(at)), int(at.max()) + 1):
            _check_policy(log, policy, since, known)


def test_reasons_are_counted_of_whoever_counts() -> None:
    log = a_log(17)
    known, counts = _check_log(log), np.arange(len(log.partition.asked)) % 3 == 0
    done = _check_policy(log, log.behaviour[0], ALWAYS, known, counts)
    every = _check_policy(log, log.behaviour[0], ALWAYS, known)
    assert 0 < done.candidate_reasons.sum() < every.candidate_reasons.sum()


@often
@given(seeds)
def test_probabilities_on_the_logged_histories(seed: int) -> None:
    log = a_log(seed, policies=1 + seed % 2)
    _check_views(log, [log.behaviour[0], *some_policies(Random(seed + 2), 2)])


@pytest.mark.long
def test_a_user_of_ten_thousand_requests_beside_users_of_one() -> None:
    log = a_log(5, users=3, most=10_000)
    counts = np.bincount(log.partition.asked.owner)
    assert counts.max() >= 10_000
    known = _check_log(log)
    _check_policy(log, some_policies(Random(6), 1)[0], ALWAYS, known)


def test_an_empty_log() -> None:
    log = a_log(1)
    nothing = replace(log.partition, asked=log.partition.asked.take(np.empty(0, np.int64)))
    start = partitions.Histories.empty(0)
    empty = partitions.Failures.of(nothing.asked.users, *(one[:0] for one in log.failures))
    streamed, known = stream_log(nothing.asked, log.behaviour, start, empty)
    done = stream_policy(nothing.asked, log.behaviour[0], log.behaviour, start, empty, since=0, known=known)
    assert len(streamed.rows) == len(known) == len(done.rows) == len(done.send_candidate) == 0


def test_the_random_logs_hold_what_they_are_for() -> None:
    logs = [a_log(seed, policies=2) for seed in range(40)]
    asked = [log.partition.asked for log in logs]
    known = [_check_log(log) for log in logs]
    done = [_check_policy(log, log.behaviour[1], ALWAYS, knew) for log, knew in zip(logs, known, strict=True)]
    assert sum(int((children(one) >= 0).sum()) for one in asked) > 20  # deferrals that the log settled
    assert sum(one.carried for one in done) > 20  # and such as it did not
    assert sum(int(one.logged_candidates["ghost"].sum()) for one in asked) > 20
    assert sum(int((one.logged_candidates["slot"] > 0).sum()) for one in asked) > 20  # several sends
    assert sum(int((knew > 0).sum()) for knew in known) > 50  # failures that a decision knew of
    assert any(len(policy.trials.cell_p) for log in logs for policy in log.behaviour)
