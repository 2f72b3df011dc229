"""Every reason a candidate or a request can end with is reached; the first failing gate is the primary one."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.decide import decide
from serve_app.errors import LedgerUnavailable, OutcomeUnknown
from serve_app.ids import hash_id
from serve_app.ledger.columns import CommitPlan, CommitResult
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Consent, UserChanges
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import Action, Channel, Reason
from tests.unit.decision_support import DAY, HOUR, at, batch_of, candidate, compiled, decided, entry, gate_words, request

NOW = at("2026-03-10T12:00:00")
CAP = {"id": "c", "scope": "global", "limit": 1, "window": {"rolling_hours": 24}}
NAN = float("nan")

CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], list[dict[str, Any]]]] = [
    ("chosen", {}, {}, {}, []),
    ("kill_switch", {"kill_switches": {"all": True}}, {}, {}, []),
    ("kill_switch", {"kill_switches": {"channels": ["push"]}}, {}, {}, []),
    ("kill_switch", {"kill_switches": {"categories": ["shoes"]}}, {"category": hash_id("shoes")}, {}, []),
    ("kill_switch", {"kill_switches": {"campaigns": ["b", "a", "c"]}}, {"campaign": hash_id("a")}, {}, []),
    ("kill_switch", {}, {"campaign_killed": True}, {}, []),
    ("expired", {}, {"expires_at": NOW}, {}, []),
    ("expired", {}, {}, {"expires_at": NOW - 1}, []),
    ("duplicate", {}, {}, {}, [entry(NOW - HOUR, request_id=77)]),
    ("duplicate", {"duplicate_window_hours": 2}, {"campaign": 9}, {}, [entry(NOW - HOUR, campaign=9)]),
    ("no_consent", {}, {}, {"region": "KR"}, []),
    ("consent_stale", {}, {}, {"region": "KR", "consent_ad_at": 1}, []),
    ("no_night_consent", {}, {}, {"region": "KR", "consent_ad_at": NOW - 1, "decided_at": NOW + 10 * HOUR}, []),
    ("unlabelled_ad", {}, {"labelled": False}, {"region": "KR", "consent_ad_at": NOW - 1}, []),
    ("channel_opted_out", {}, {}, {"opted_out": 1 << Channel.push}, []),
    ("unreachable", {}, {}, {"reachable": 1 << Channel.email}, []),
    ("unreachable", {}, {"channel": -1}, {}, []),
    ("not_in_segment", {}, {"segment": 2}, {"segments": 0b1011, "segments_at": NOW}, []),
    ("segment_stale", {}, {"segment": 2}, {"segments": 0b0100, "segments_at": NOW - 49 * HOUR}, []),
    ("segment_stale", {}, {"segment": 2}, {"segments": 0b0100}, []),
    ("quiet_hours", {"quiet_hours": [{"id": "q", "start": "11:00", "end": "13:00"}]}, {}, {}, []),
    ("frequency_capped", {"caps": [CAP]}, {}, {}, [entry(NOW - HOUR)]),
    ("min_gap", {"min_gap": {"minutes": 90}}, {}, {}, [entry(NOW - HOUR)]),
    ("not_scored", {}, {"heads": (NAN, 0.0)}, {}, []),
    ("below_threshold", {"threshold": 0.6}, {}, {}, []),
    ("explored_off", {"flips": {"probability": 1.0, "to": "none"}}, {}, {}, []),
]


@pytest.mark.parametrize(("reason", "policy", "message", "columns", "history"), CASES)
def test_reason_is_reached(
    reason: str, policy: dict[str, Any], message: dict[str, Any], columns: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    asked = request([candidate(**message)], **({"decided_at": NOW} | columns))
    out = decided(compiled(**policy), [asked], [history])
    assert Reason(out.candidates["reason"][0]).name == reason
    sent = reason == "chosen"
    assert (out.candidates["slot"][0] == 0) == sent
    assert Reason(out.requests["reason"][0]).name == ("none" if sent else reason)


def test_the_remaining_reasons_are_reached_too() -> None:
    holdout = {"id": "h", "scope": "global", "percent": 100, "salt": "h"}
    out = decided(compiled(holdouts=[holdout]), [request([candidate()])])
    assert Reason(out.requests["reason"][0]) == Reason.global_holdout
    campaign = holdout | {"scope": "campaign", "campaigns": ["spring"]}
    out = decided(compiled(holdouts=[campaign]), [request([candidate(campaign=hash_id("spring"))])])
    assert Reason(out.requests["reason"][0]) == Reason.campaign_holdout
    out = decided(compiled(), [request([candidate(heads=(0.9, 0)), candidate(campaign=2)])])
    assert [Reason(r).name for r in out.candidates["reason"]] == ["chosen", "preempted"]


def test_a_request_without_candidates_ends_in_none() -> None:
    out = decided(compiled(), [request([]), request([candidate()], user=6)])
    assert out.requests["action"].tolist() == [Action.none, Action.send]
    assert out.requests["p_none"].tolist() == [1.0, 0.0]
    assert out.requests["forced"].tolist() == [True, True]


def test_all_gates_speak_and_the_first_in_order_is_primary() -> None:
    policy = compiled(caps=[CAP], min_gap={"minutes": 90}, threshold=0.9)
    asked = request([candidate(expires_at=NOW)], decided_at=NOW, opted_out=1)
    out = decided(policy, [asked], [[entry(NOW - HOUR)]])
    spoken = {name: Reason(gate_words(out, name)["reason"][0]).name for name in out.meta["gates"]}
    assert spoken == {
        "kill_switch": "none", "expired": "expired", "duplicate": "none", "consent": "none", "channel": "channel_opted_out",
        "segment": "none", "quiet_hours": "none", "caps": "frequency_capped", "min_gap": "min_gap",
        "threshold": "below_threshold",
    }  # fmt: skip
    assert Reason(out.candidates["reason"][0]) == Reason.expired
    assert out.candidates["gates_evaluated"][0] == 0b11_1111_1111


def test_the_same_candidate_twice_in_a_request_is_a_duplicate() -> None:
    out = decided(compiled(), [request([candidate(), candidate()])])
    assert [Reason(r).name for r in out.candidates["reason"]] == ["chosen", "duplicate"]


def test_a_user_nobody_knows_is_unreachable() -> None:
    out = decide(MemoryLedger(), Decision(), batch_of([request([candidate()])]), Context((compiled(),)))
    assert Reason(out.batch.requests["reason"][0]) == Reason.unreachable


HOLDOUT = {"id": "h", "scope": "global", "percent": 100, "salt": "h"}
SPRING = HOLDOUT | {"scope": "campaign", "campaigns": ["spring"]}
LAWFUL = {"zone": "Asia/Seoul", "reachable": 63, "region": "US"}
RECENTLY = NOW - HOUR


class Failing(MemoryLedger):
    """Fails at its commit."""

    error: Exception | None = None

    def commit(self, plan: CommitPlan) -> CommitResult:
        if self.error is not None:
            raise self.error
        return super().commit(plan)


# Reason -> (policy, message, what the ledger knows of the user, request, an earlier send, the ledger's failure).
THROUGH_THE_LEDGER: dict[Reason, tuple[Any, ...]] = {
    Reason.none: ({}, None, {}, {}, False, None),
    Reason.chosen: ({}, {}, {}, {}, False, None),
    Reason.kill_switch: ({"kill_switches": {"all": True}}, {}, {}, {}, False, None),
    Reason.expired: ({}, {"expires_at": NOW}, {}, {}, False, None),
    Reason.duplicate: ({"duplicate_window_hours": 2}, {}, {}, {}, True, None),
    Reason.no_consent: ({}, {}, {"region": "KR"}, {}, False, None),
    Reason.no_night_consent: (
        {}, {}, {"region": "KR", "consent_ad": Consent(RECENTLY)}, {"decided_at": at("2026-03-10T21:00:00")}, False, None,
    ),
    Reason.consent_stale: ({}, {}, {"region": "KR", "consent_ad": Consent(NOW - 730 * DAY)}, {}, False, None),
    Reason.unlabelled_ad: ({}, {"labelled": False}, {"region": "KR", "consent_ad": Consent(RECENTLY)}, {}, False, None),
    Reason.channel_opted_out: ({}, {}, {"opted_out": 1}, {}, False, None),
    Reason.unreachable: ({}, {}, {"reachable": 0}, {}, False, None),
    Reason.not_in_segment: ({}, {"segment": 1}, {}, {"segments": 1, "segments_at": NOW}, False, None),
    Reason.segment_stale: ({}, {"segment": 0}, {}, {"segments": 1, "segments_at": NOW - 50 * HOUR}, False, None),
    Reason.quiet_hours: ({"quiet_hours": [{"id": "q", "start": "11:00", "end": "13:00"}]}, {}, {}, {}, False, None),
    Reason.frequency_capped: ({"caps": [CAP]}, {}, {}, {}, True, None),
    Reason.min_gap: ({"min_gap": {"minutes": 90}}, {}, {}, {}, True, None),
    Reason.not_scored: ({}, {"heads": (NAN, 0.0)}, {}, {}, False, None),
    Reason.below_threshold: ({"threshold": 0.6}, {}, {}, {}, False, None),
    Reason.explored_off: ({"flips": {"probability": 1.0, "to": "none"}}, {}, {}, {}, False, None),
    Reason.preempted: ({}, {}, {}, {}, False, None),
    Reason.global_holdout: ({"holdouts": [HOLDOUT]}, {}, {}, {}, False, None),
    Reason.campaign_holdout: ({"holdouts": [SPRING]}, {"campaign": hash_id("spring")}, {}, {}, False, None),
    Reason.ledger_unavailable: ({}, {}, {}, {}, False, LedgerUnavailable("away")),
    Reason.outcome_unknown: ({}, {}, {}, {}, False, OutcomeUnknown("lost")),
}  # fmt: skip
NOBODY_SAYS = {Reason.budget_exhausted}
"""Reserved: there is no budget across users in this contract. Take it out of here with the first gate that says it."""


def test_every_reason_has_a_way_to_be_reached() -> None:
    assert set(Reason) == set(THROUGH_THE_LEDGER) | NOBODY_SAYS


@pytest.mark.parametrize("reason", THROUGH_THE_LEDGER, ids=lambda one: one.name)
def test_every_reason_is_reached_through_a_ledger(reason: Reason) -> None:
    settings, message, state, columns, earlier, failure = THROUGH_THE_LEDGER[reason]
    policy, ledger = compiled(**settings), Failing()
    ledger.put_user(5, UserChanges(**(LAWFUL | state)))

    def ask(candidates: list[dict[str, Any]], **own: Any) -> Any:
        asked = batch_of([request(candidates, **({"decided_at": NOW} | own))])
        return decide(ledger, Decision(), asked, Context((policy,)))

    if earlier:
        assert ask([candidate()], decided_at=RECENTLY, request_id=76).granted[0]
    ledger.error = failure
    rows = [] if message is None else [candidate(**message)]
    if reason is Reason.preempted:
        rows.append(candidate(campaign=2, heads=(0.9, 0.0)))
    out = ask(rows, **columns).batch
    said = {Reason(int(one)) for one in out.candidates["reason"]} or {Reason(int(out.requests["reason"][0]))}
    assert reason in said
    assert (out.requests["action"][0] == Action.send) == (reason in (Reason.chosen, Reason.preempted))
