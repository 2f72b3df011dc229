"""The decision shell: waves, losers, duplicates, a ledger that is away, dry runs, what is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from serve_app.decide import DecideStatus, decide
from serve_app.errors import InvalidInput, LedgerUnavailable, OutcomeUnknown
from serve_app.ids import hash_id
from serve_app.ledger.columns import CommitPlan, CommitResult, LedgerView, UserState
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import UserChanges
from serve_app.ledger.record import unpack_record
from serve_app.policy.zones import zone_index
from serve_app.regions import region_index
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import Action, Delivery, Origin, Reason, StageBit
from tests.unit.decision_support import DAY, HOUR, at, batch_of, candidate, compiled, request

NOW = at("2026-03-10T12:00:00")
CAP = {"id": "c", "scope": "global", "limit": 2, "window": {"rolling_hours": 24}}
NIGHT = {"id": "night", "start": "22:00", "end": "08:00"}


def ledger_with(users: int, **state: Any) -> MemoryLedger:
    """Users 1 .. n, reachable everywhere, in Seoul, region US."""
    ledger = MemoryLedger()
    base = UserState.unknown(users)
    base.zone[:], base.region[:], base.reachable[:] = zone_index("Asia/Seoul"), region_index("US"), 63
    for name, value in state.items():
        getattr(base, name)[:] = value
    ledger.put_users(np.arange(1, users + 1).astype(np.uint64), base)
    return ledger


def asked(user: int, **columns: Any) -> dict[str, Any]:
    own = columns.pop("candidates", [candidate(campaign=c) for c in (1, 2, 3)])
    return request(own, **({"user": user, "decided_at": NOW, "request_id": 1000 + user} | columns))


def run(ledger: Any, requests: list[dict[str, Any]], policy: Any = None, **options: Any) -> Any:
    return decide(ledger, Decision(), batch_of(requests), Context((policy or compiled(caps=[CAP]),)), **options)


def test_a_user_repeated_in_a_batch_is_decided_in_row_order_each_seeing_the_last() -> None:
    rows = [asked(u, request_id=10 * i + 1) for i, u in enumerate([1, 2, 1, 1, 2, 1, 2, 1])]
    out = run(ledger_with(2), rows)
    assert out.granted.tolist() == [True, True, True, False, True, False, False, False]
    assert out.batch.requests["user"].tolist() == [1, 2, 1, 1, 2, 1, 2, 1]
    assert np.array_equal(out.batch.requests["request_id"], batch_of(rows).requests["request_id"])
    assert (out.batch.requests["reason"][~out.granted] == Reason.frequency_capped).all()
    assert out.versions[2] == out.versions[0] + 1


def test_a_dry_run_sees_its_own_rows_and_writes_nothing() -> None:
    ledger = ledger_with(1)
    rows = [asked(1, request_id=i) for i in range(1, 5)]
    out = run(ledger, rows, commit=False)
    assert (out.batch.requests["action"] == Action.send).tolist() == [True, True, False, False]
    assert not out.granted.any()
    assert len(ledger.read(np.array([1], np.uint64)).histories.entries) == 0
    assert ledger.pending_records(10) == []


class Racing(MemoryLedger):
    """Another writer grants a message between every read and commit, `times` times."""

    def __init__(self, inner: MemoryLedger, times: int, policy: Any = None) -> None:
        self.__dict__ = inner.__dict__
        self.times, self.policy = times, policy

    def commit(self, plan: CommitPlan) -> CommitResult:
        if self.times:
            self.times -= 1
            for user in plan.users.tolist():
                rival = run(_plain(self), [asked(user, request_id=9000 + self.times)], self.policy)
                assert rival.status[0] in (DecideStatus.committed, DecideStatus.decided)
        return super().commit(plan)


def _plain(ledger: MemoryLedger) -> MemoryLedger:
    plain = MemoryLedger.__new__(MemoryLedger)
    plain.__dict__ = ledger.__dict__
    return plain


def test_a_loser_decides_again_on_the_newer_history_and_no_cap_is_passed() -> None:
    inner = ledger_with(3)
    out = run(Racing(inner, 1), [asked(u) for u in (1, 2, 3)])
    assert out.granted.all()
    assert (out.status == DecideStatus.committed).all()
    inner = ledger_with(3)
    out = run(Racing(inner, 2), [asked(u) for u in (1, 2, 3)])
    assert not out.granted.any()
    entries = inner.read(np.array([1, 2, 3], np.uint64)).histories
    assert np.diff(entries.offsets).tolist() == [2, 2, 2]


def test_a_row_that_loses_every_attempt_is_closed() -> None:
    policy = compiled()
    out = run(Racing(ledger_with(1), 1000, policy), [asked(1)], policy, max_attempts=3)
    assert out.status.tolist() == [DecideStatus.contended]
    assert out.batch.requests["reason"].tolist() == [Reason.ledger_unavailable]
    assert out.batch.requests["p_none"].tolist() == [1.0]


class Broken(MemoryLedger):
    """Fails at a chosen call."""

    def __init__(self, inner: MemoryLedger, call: str, error: Exception) -> None:
        self.__dict__ = inner.__dict__
        self.call, self.error = call, error

    def read(self, users: Any) -> LedgerView:
        if self.call == "read":
            raise self.error
        return super().read(users)

    def commit(self, plan: CommitPlan) -> CommitResult:
        if self.call == "commit":
            raise self.error
        return super().commit(plan)


@pytest.mark.parametrize(
    ("call", "error", "status", "reason"),
    [
        ("read", LedgerUnavailable("away"), DecideStatus.ledger_unavailable, Reason.ledger_unavailable),
        ("commit", LedgerUnavailable("away"), DecideStatus.ledger_unavailable, Reason.ledger_unavailable),
        ("commit", OutcomeUnknown("lost"), DecideStatus.outcome_unknown, Reason.outcome_unknown),
    ],
)
def test_a_ledger_that_fails_closes_the_rows_it_concerned(
    call: str, error: Exception, status: DecideStatus, reason: Reason
) -> None:
    refused = asked(2, candidates=[candidate(campaign_killed=True)])
    out = run(Broken(ledger_with(2), call, error), [asked(1), refused])
    assert out.status[0] == status
    assert out.batch.requests["reason"][0] == reason
    assert out.batch.requests["action"][0] == Action.suppress
    assert not out.granted.any()
    assert (out.batch.candidates["slot"] == -1).all()
    # What needed no commit is answered all the same, if it could be read.
    assert out.batch.requests["reason"][1] == (reason if call == "read" else Reason.kill_switch)


def test_the_same_key_gives_the_stored_answer_and_another_body_is_refused() -> None:
    ledger, key = ledger_with(1), b"k" * 16
    first = run(ledger, [asked(1)], keys=[key], digests=[b"a" * 16])
    again = run(ledger, [asked(1, request_id=5)], keys=[key], digests=[b"a" * 16])
    assert first.granted[0]
    assert not again.granted[0]
    assert again.status.tolist() == [DecideStatus.duplicate]
    assert unpack_record(again.stored[0])["request"]["request_id"] == 1001
    other = run(ledger, [asked(1, request_id=6)], keys=[key], digests=[b"b" * 16])
    assert other.status.tolist() == [DecideStatus.key_reused]
    assert len(ledger.read(np.array([1], np.uint64)).histories.entries) == 1


def test_keyed_suppressions_are_stored_and_unkeyed_ones_write_nothing() -> None:
    ledger = ledger_with(2)
    killed = [candidate(campaign_killed=True)]
    out = run(
        ledger, [asked(1, candidates=killed), asked(2, candidates=killed)], keys=[b"k" * 16, b""], digests=[b"d" * 16] * 2
    )
    assert out.status.tolist() == [DecideStatus.committed, DecideStatus.decided]
    assert len(ledger.pending_records(10)) == 1
    assert not out.granted.any()


def test_a_deferral_is_stored_and_its_answer_settles_it() -> None:
    ledger, policy = ledger_with(1), compiled(quiet_hours=[NIGHT])
    night, morning = at("2026-03-10T23:00:00"), at("2026-03-11T08:00:00")
    first = run(ledger, [asked(1, decided_at=night)], policy)
    assert first.batch.requests["action"].tolist() == [Action.defer]
    due = ledger.due_deferrals(morning, 10)
    assert [(one.request_id, one.until) for one in due] == [(1001, morning)]
    row = asked(1, decided_at=morning, request_id=2002, root_id=1001, attempt=1)
    row |= {"origin": Origin.deferral, "parent_request_id": 1001}
    second = run(ledger, [row], policy)
    assert second.granted.tolist() == [True]
    assert ledger.due_deferrals(morning + DAY, 10) == []


def test_a_deferral_whose_answer_is_no_is_settled_too() -> None:
    ledger, policy = ledger_with(1), compiled(quiet_hours=[NIGHT])
    run(ledger, [asked(1, decided_at=at("2026-03-10T23:00:00"))], policy)
    morning = at("2026-03-11T08:00:00")
    row = asked(1, decided_at=morning, request_id=2002, candidates=[candidate(campaign_killed=True)], attempt=1)
    run(ledger, [row | {"origin": Origin.deferral, "parent_request_id": 1001}], policy)
    assert ledger.due_deferrals(morning + DAY, 10) == []


def test_an_opt_out_between_decision_and_sweep_is_obeyed() -> None:
    ledger, policy = ledger_with(1), compiled(quiet_hours=[NIGHT])
    run(ledger, [asked(1, decided_at=at("2026-03-10T23:00:00"))], policy)
    ledger.put_user(1, UserChanges(opted_out=63))
    row = asked(1, decided_at=at("2026-03-11T08:00:00"), request_id=2002, root_id=1001, attempt=1)
    out = run(ledger, [row | {"origin": Origin.deferral, "parent_request_id": 1001}], policy)
    assert out.batch.requests["reason"].tolist() == [Reason.channel_opted_out]


def test_the_ledgers_word_on_a_user_replaces_the_batchs() -> None:
    ledger = ledger_with(1, region=region_index("KR"))
    out = run(ledger, [asked(1, region="US", consent_ad_at=NOW - 1)])
    assert out.batch.requests["reason"].tolist() == [Reason.no_consent]
    unknown_zone = ledger_with(1, zone=-1)
    out = run(unknown_zone, [asked(1, zone="America/New_York")])
    assert out.batch.requests["zone"].tolist() == [zone_index("America/New_York")]


def test_ghosts_are_written_to_their_shadow_history_only() -> None:
    holdout = {"id": "h", "scope": "global", "percent": 100, "salt": "h"}
    policy, ledger = compiled(caps=[CAP], holdouts=[holdout]), ledger_with(1)
    outs = [run(ledger, [asked(1, request_id=i)], policy) for i in (1, 2, 3)]
    assert [bool(out.batch.candidates["ghost"].any()) for out in outs] == [True, True, False]
    assert [bool(out.batch.candidates["ghost_first"].any()) for out in outs] == [True, False, False]
    entries = ledger.read(np.array([1], np.uint64)).histories.entries
    assert set(entries["holdout"].tolist()) == {int(policy.holdouts.keys[0])}
    assert not any(out.granted.any() for out in outs)


def test_the_record_holds_the_whole_decision() -> None:
    ledger = ledger_with(1)
    out = run(ledger, [asked(1)])
    record = unpack_record(ledger.pending_records(1)[0].record)
    assert record["request"]["read_version"] == out.versions[0] - 1
    assert record["meta"]["gates"] == list(out.batch.meta["gates"])
    assert record["candidates"]["p_choice"].tobytes() == out.batch.candidates["p_choice"].tobytes()
    assert record["candidates"]["gate_reason"].shape == (3, 10)


def test_outbox_rows_hold_what_a_worker_needs_and_callers_get_none() -> None:
    ledger = ledger_with(2)
    queued = candidate(campaign=hash_id("spring"), delivery=Delivery.outbox)
    run(ledger, [asked(1, candidates=[queued]), asked(2)])
    items = ledger.claim_outbox(NOW, 10, HOUR)
    assert [one.user for one in items] == [1]
    send = orjson.loads(items[0].payload)["sends"][0]
    assert send["channel"] == "push"
    assert send["decision_id"].startswith("d")


def test_a_history_shorter_than_the_policys_windows_is_said() -> None:
    ledger = ledger_with(1)

    class Short(MemoryLedger):
        def __init__(self, inner: MemoryLedger) -> None:
            self.__dict__ = inner.__dict__

        def read(self, users: Any) -> LedgerView:
            view = super().read(users)
            view.known_since[:] = NOW - HOUR
            return view

    assert run(Short(ledger), [asked(1)]).batch.requests["degraded"].tolist() == [StageBit.decision]
    assert run(ledger, [asked(1, request_id=3)]).batch.requests["degraded"].tolist() == [0]


def test_keys_must_fit_the_rows_and_an_empty_batch_is_no_error() -> None:
    with pytest.raises(InvalidInput, match="keys: 1 values for 2 rows"):
        run(ledger_with(2), [asked(1), asked(2)], keys=[b""])
    empty = batch_of([asked(1)]).take(np.empty(0, np.int64))
    out = decide(ledger_with(1), Decision(), empty, Context((compiled(),)))
    assert len(out.batch) == 0


class Counting(MemoryLedger):
    """Counts reads."""

    reads = 0

    def read(self, users: Any) -> LedgerView:
        self.reads += 1
        return super().read(users)


def counting(users: int) -> Counting:
    ledger = Counting()
    ledger.__dict__.update(ledger_with(users).__dict__)
    return ledger


def users_of(rows: list[dict[str, Any]]) -> Any:
    return np.array([row["user"] for row in rows], np.uint64)


def test_a_view_that_came_along_spares_the_read_and_changes_nothing() -> None:
    rows = [asked(u, request_id=u) for u in (3, 1, 2)]
    ledger = counting(3)
    view = ledger.read(users_of(rows))
    ledger.reads = 0
    out, usual = run(ledger, rows, view=view), run(ledger_with(3), rows)
    assert ledger.reads == 0
    assert out.status.tolist() == [DecideStatus.committed] * 3
    assert np.array_equal(out.versions, usual.versions)
    for name in usual.batch.requests:
        assert np.array_equal(out.batch.requests[name], usual.batch.requests[name], equal_nan=name == "p_none"), name


def test_an_old_view_loses_and_is_read_anew() -> None:
    ledger = counting(1)
    rows = [asked(1, request_id=5)]
    old = ledger.read(users_of(rows))
    ledger.put_user(1, UserChanges(opted_out=63))
    ledger.reads = 0
    out = run(ledger, rows, view=old)
    assert (ledger.reads, out.conflicts) == (1, 1)
    assert out.batch.requests["action"].tolist() == [Action.suppress]
    assert not out.granted.any()


def test_only_the_first_of_a_repeated_user_is_decided_on_the_view() -> None:
    rows = [asked(u, request_id=10 * i + 1) for i, u in enumerate([1, 2, 1, 1])]
    ledger = counting(2)
    view = ledger.read(users_of(rows))
    ledger.reads = 0
    assert run(ledger, rows, view=view).granted.tolist() == [True, True, True, False]
    assert ledger.reads == 2


def test_a_view_of_other_users_is_refused() -> None:
    ledger = ledger_with(2)
    with pytest.raises(InvalidInput, match="view"):
        run(ledger, [asked(1)], view=ledger.read(np.array([2], np.uint64)))
