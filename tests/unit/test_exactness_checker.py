"""The checker under test: a ledger that does not compare is caught, and so is every defect planted in an exact run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import find, settings
from hypothesis import strategies as st

from tests.chaos.exactness_checker import Evidence, Lost, findings
from tests.chaos.exactness_rules import CLASSES, rules_of
from tests.chaos.fire_server import policy_document
from tests.unit.decision_support import SECOND, at
from tests.unit.exactness_support import Job, Stage, memory_stage, row_of, run_interleaved

NOW = at("2026-03-10T12:00:00")


def many_shells(stage: Stage, *, shells: int = 4, batches: int = 3) -> Evidence:
    """Shells that decide on the same two users, in turns; a key in every third row."""
    made = []
    for shell in range(shells):
        jobs = []
        for batch in range(batches):
            number = 100 * shell + 10 * batch
            moment = NOW + batch * 4 * SECOND + (shell - 1) * SECOND
            rows = [row_of(user, number + user, moment, campaigns=(1, 2, 3, 4), slots=2) for user in (5, 6)]
            policy = "first" if (shell + batch) % 2 else "second"
            jobs.append(Job(rows, [f"k{number}" if number % 3 == 0 else "", ""], policy))
        made.append(stage.shell(*jobs))
    run_interleaved(made, [])
    return stage.evidence(made)


def test_an_exact_run_has_no_findings_and_does_grant() -> None:
    evidence = many_shells(memory_stage())
    assert findings(evidence) == []
    assert sum(len(one.sends) for one in evidence.answers) >= 6


def test_a_ledger_that_reads_then_writes_is_caught() -> None:
    found = findings(many_shells(memory_stage(racy=True)))
    assert any("was passed" in finding for finding in found)
    assert any("was decided on version" in finding for finding in found)


def test_some_order_of_two_racing_shells_goes_over_a_cap_and_the_checker_sees_it() -> None:
    def over(order: list[int]) -> bool:
        stage = memory_stage(racy=True)
        shells = [stage.shell(Job([row_of(5, number, NOW)], [""], "second")) for number in (101, 102, 103)]
        run_interleaved(shells, order)
        return any("cap all of 2" in finding for finding in findings(stage.evidence(shells)))

    order = find(st.lists(st.integers(0, 2), max_size=12), over, settings=settings(deadline=None))
    assert over(order)


def first_sent(evidence: Evidence) -> tuple[int, int]:
    """(user, request) of some decision that sent."""
    return next((one.user, one.request_id) for one in evidence.answers if one.sends)


def a_grant_removed(evidence: Evidence) -> None:
    user, request = first_sent(evidence)
    person = evidence.people[user]
    person.uses = [use for use in person.uses if use.request_id != request]


def a_grant_duplicated(evidence: Evidence) -> None:
    user, _ = first_sent(evidence)
    evidence.people[user].uses.append(evidence.people[user].uses[-1])


def a_grant_over_the_cap(evidence: Evidence) -> None:
    """Three more decisions of their own, each recorded, answered and logged: only the caps can tell."""
    user, _ = first_sent(evidence)
    person = evidence.people[user]
    kept, use = [one for one in person.kept if one.sends][-1], person.uses[-1]
    answer = next(one for one in evidence.answers if one.request_id == kept.request_id)
    for extra in range(1, 4):
        request, version = 9_000 + extra, person.version + 1
        send = kept.sends[0]
        person.kept.append(
            replace(kept, request_id=request, version=version, read_version=version - 1, decided_at=use.at, sends=(send,))
        )
        person.uses.append(replace(use, request_id=request, slot=send.slot, campaign=send.campaign, channel=send.channel))
        person.version = version
        evidence.answers.append(replace(answer, request_id=request, key="", sends=(send,)))
        logged = next(one for one in evidence.logged if one.request_id == kept.request_id)
        evidence.logged.append(replace(logged, request_id=request, slot=send.slot, commit_version=version, key=b""))


def a_key_granted_twice(evidence: Evidence) -> None:
    sent = [one for one in evidence.answers if one.sends]
    one, other = next((a, b) for a in sent for b in sent if a.user == b.user and a.request_id != b.request_id)
    for answer in (one, other):
        evidence.answers.append(replace(answer, key="the same"))


def a_logged_key_granted_twice(evidence: Evidence) -> None:
    first = next(one for one in evidence.logged if one.granted)
    evidence.logged += [replace(first, key=b"same", request_id=request) for request in (1, 2)]


def a_key_never_answered(evidence: Evidence) -> None:
    evidence.owned.add((5, "forgotten"))


def an_answer_nobody_got(evidence: Evidence) -> None:
    _, request = first_sent(evidence)
    evidence.answers = [one for one in evidence.answers if one.request_id != request]


def an_answer_of_another_send(evidence: Evidence) -> None:
    _, request = first_sent(evidence)
    at_ = next(n for n, one in enumerate(evidence.answers) if one.request_id == request)
    told = evidence.answers[at_]
    evidence.answers[at_] = replace(told, sends=(replace(told.sends[0], campaign=77), *told.sends[1:]))


def a_version_skipped(evidence: Evidence) -> None:
    person = evidence.people[5]
    person.kept = [one for one in person.kept if one.version != person.version]


def a_log_row_missing(evidence: Evidence) -> None:
    _, request = first_sent(evidence)
    evidence.logged = [one for one in evidence.logged if one.request_id != request]


def a_grant_only_in_the_log(evidence: Evidence) -> None:
    evidence.logged.append(replace(evidence.logged[0], request_id=4_242, granted=True))


def a_gap_too_short(evidence: Evidence) -> None:
    """Two advertisements, a tenth of a second apart, by a policy whose caps have room."""
    person = evidence.people[5]
    ads = [use for use in person.uses if use.message_class == CLASSES.index("advertising") and use.holdout == 0]
    close = replace(ads[0], at=ads[1].at - SECOND // 10)
    person.uses = [close if use is ads[0] else use for use in person.uses]


def the_wrong_day(evidence: Evidence) -> None:
    person = evidence.people[5]
    person.uses[0] = replace(person.uses[0], local_day=person.uses[0].local_day + 1)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (a_grant_removed, "only recorded"),
        (a_grant_duplicated, "was granted twice"),
        (a_grant_over_the_cap, "was passed"),
        (a_key_granted_twice, "was answered with 2 different decisions"),
        (a_logged_key_granted_twice, "was granted by 2 requests"),
        (a_key_never_answered, "was never answered"),
        (an_answer_nobody_got, "nobody was told of"),
        (an_answer_of_another_send, "the ledger holds"),
        (a_version_skipped, "1 missing"),
        (a_log_row_missing, "is not in the log"),
        (a_grant_only_in_the_log, "that the ledger lacks"),
        (a_gap_too_short, "between two messages"),
        (the_wrong_day, "is booked on day"),
    ],
)
def test_a_planted_defect_is_found(plant: Callable[[Evidence], None], said: str) -> None:
    evidence = many_shells(memory_stage())
    plant(evidence)
    assert any(said in finding for finding in findings(evidence)), findings(evidence)


def test_a_lost_answer_explains_one_decision_of_its_user_and_time() -> None:
    evidence = many_shells(memory_stage())
    silent = next(one for one in evidence.answers if one.sends and not one.key)
    evidence.answers = [one for one in evidence.answers if one.request_id != silent.request_id]
    moment = next(k.decided_at for k in evidence.people[silent.user].kept if k.request_id == silent.request_id)
    for wrong in (Lost(silent.user + 1, moment - 1, moment + 1), Lost(silent.user, moment + 1, moment + 2)):
        assert findings(replace(evidence, lost=[wrong]))
    assert findings(replace(evidence, lost=[Lost(silent.user, moment - 1, moment + 1)])) == []


@pytest.mark.parametrize("name", ["cells", "quiet_hours", "duplicate_window_hours"])
def test_a_document_with_rules_unknown_to_the_checker_is_refused(name: str) -> None:
    from serve_app.policy.document import parse_policy

    document = parse_policy(policy_document("first")).model_dump(mode="json")
    with pytest.raises(ValueError, match="knows nothing"):
        rules_of("x", {**document, name: [1]})
