"""What a kill cost: figures over calls that were recorded."""

from __future__ import annotations

from loadtests.chaos_figures import Attempt, Call, Targets, figures_of, untroubled


def call(intended: float, *attempts: Attempt, **more: object) -> Call:
    return Call("related", intended, list(attempts), over=True, **more)  # type: ignore[arg-type]


def good(intended: float, took: float = 0.01) -> Call:
    return call(intended, Attempt(intended, intended + took))


RETRIED = call(10.5, Attempt(10.5, 10.6, "503 not-ready"), Attempt(12.2, 13.0))
GIVEN_UP = call(10.2, Attempt(10.2, 10.3, "ConnectError"), Attempt(12.0, 13.5, "ConnectError"))


def test_a_failed_attempt_counts_for_the_client_only_where_no_later_one_was_answered() -> None:
    found = figures_of("ingress", [good(9.0), RETRIED, good(14.0)], 10.0, 20.0)
    assert (found.calls, found.visible, found.failed_attempts) == (2, 0, {"503 not-ready": 1})
    assert found.recovery_s == 3.0  # the answer that came at 13.0 was held up
    assert Targets().missed(found) == []
    lost = figures_of("ingress", [RETRIED, GIVEN_UP], 10.0, 20.0)
    assert (lost.visible, lost.visible_share, lost.recovery_s) == (1, 0.5, 3.5)
    assert Targets().missed(lost) == ["ingress: 1 of 2 calls failed for the client"]


def test_an_answer_in_foreign_words_is_a_failure_though_a_later_attempt_was_answered() -> None:
    foreign = call(10.1, Attempt(10.1, 10.2, "500 'Internal Server Error'", foreign=True), Attempt(10.3, 10.4))
    found = figures_of("HAProxy", [foreign], 10.0, 20.0)
    assert (found.visible, found.foreign, found.visible_share) == (0, 1, 1.0)
    assert Targets().missed(found)


def test_a_wrong_answer_is_a_failure() -> None:
    found = figures_of("ranking", [call(10.1, Attempt(10.1, 10.2), faults=["an item is shown twice"])], 10.0, 20.0)
    assert found.visible == 1
    assert "ranking: an item is shown twice" in Targets().missed(found)


def test_calls_under_way_at_the_kill_belong_to_it_and_later_ones_to_the_next() -> None:
    across = call(9.9, Attempt(9.9, 10.2, "ReadError"), Attempt(10.4, 10.5))
    found = figures_of("decision", [good(9.5), across, good(11.0), good(20.0)], 10.0, 20.0)
    assert (found.calls, found.failed_attempts, found.recovery_s) == (2, {"ReadError": 1}, 0.2)


def test_answers_that_were_held_up_are_trouble_though_nothing_failed() -> None:
    found = figures_of("features", [good(10.0, took=4.0)], 10.0, 20.0)
    assert (found.failed_attempts, found.recovery_s, found.slowest_s) == ({}, 4.0, 4.0)


def test_all_is_well_when_the_last_calls_were_untroubled_and_none_hangs() -> None:
    calls = [RETRIED, *(good(13.0 + place) for place in range(3))]
    assert untroubled(calls, 10.0, 3)
    assert not untroubled(calls, 10.0, 4)
    assert not untroubled(calls, 14.5, 3)
    assert not untroubled([Call("related", 12.0), *calls], 10.0, 3)
    assert untroubled([*calls, Call("related", 16.0)], 10.0, 3)
