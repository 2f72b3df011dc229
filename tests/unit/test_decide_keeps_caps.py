"""Through the shell and the ledger: no order of requests, clocks and zone moves gets a user past a cap."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.decide import decide
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import UserChanges
from serve_app.ledger.record import unpack_record
from serve_app.policy.compile import compile_policy
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from tests.unit import decision_oracle as oracle
from tests.unit.decision_support import DAY, HEADS, HOUR, SECOND, at, batch_of, candidate, document, request

ZONES = ("Asia/Seoul", "America/New_York", "Pacific/Kiritimati", "Pacific/Pago_Pago")
POLICY = document(
    caps=[
        {"id": "rolling", "scope": "global", "limit": 3, "window": {"rolling_hours": 24}},
        {"id": "daily", "scope": "channel", "limit": 1, "window": {"calendar": "day"}},
        {"id": "weekly", "scope": "campaign", "limit": 2, "window": {"calendar": "week"}},
        {"id": "monthly", "scope": "category", "limit": 4, "window": {"calendar": "month"}},
    ],
    max_sends_per_decision=3,
    flips={"probability": 0.2},
    duplicate_window_hours=1,
)
START = at("2026-03-07T12:00:00", "America/New_York")  # the day before the clocks change there; a week's end

steps = st.lists(
    st.tuples(
        st.integers(1, 2),  # user
        st.sampled_from((0, 0, SECOND, -SECOND, HOUR, 7 * HOUR, DAY)),  # the clock moves, now and then backwards
        st.sampled_from((None, None, None, *ZONES)),  # the user moves
        st.lists(st.tuples(st.integers(1, 3), st.sampled_from((0, 2)), st.integers(1, 2)), min_size=1, max_size=4),
        st.integers(1, 3),  # slots
        st.booleans(),  # decided together with the step before
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_every_committed_grant_had_room_under_every_cap(plan: list[Any]) -> None:
    ledger, policy = MemoryLedger(), compile_policy(POLICY, heads={"notification": HEADS})
    for user in (1, 2):
        ledger.put_user(user, UserChanges(reachable=63, zone="Asia/Seoul", region="US"))
    now = START
    pending: list[dict[str, Any]] = []
    for number, (user, step, moves, options, slots, together) in enumerate(plan):
        if pending and not together:
            run(ledger, policy, pending)
            pending = []
        now += step
        if moves and not pending:
            ledger.put_user(user, UserChanges(zone=moves))
        rows = [candidate(campaign=c, channel=ch, category=k, heads=(0.1 * c, 0)) for c, ch, k in dict.fromkeys(options)]
        pending.append(request(rows, user=user, decided_at=now, slots=slots, request_id=100 + number))
    run(ledger, policy, pending)
    for user in (1, 2):
        check(ledger, user)


def run(ledger: MemoryLedger, policy: Any, requests: list[dict[str, Any]]) -> None:
    decide(ledger, Decision(), batch_of(requests), Context((policy,)))


def check(ledger: MemoryLedger, user: int) -> None:
    """Replay the user's history entry by entry: each had room when it was granted, in the zone it was granted in."""
    entries = ledger.read(np.array([user], np.uint64)).histories.entries
    zone_then = {int(one.request_id): unpacked_zone(one.record) for one in ledger.pending_records(1000) if one.user == user}
    seen: list[dict[str, Any]] = []
    for row in entries:
        past = {name: row[name].item() for name in row.dtype.names}
        past["zone"] = zone_then[past["request_id"]]
        asked = {"decided_at": past["at"], "zone": past["zone"], "request_id": past["request_id"]}
        assert oracle.caps(POLICY, asked, past, seen) == ""
        seen.append(past)


def unpacked_zone(record: bytes) -> str:
    return str(unpack_record(record)["request"]["zone"])
