"""Kernels against a slow, obvious oracle: random policies, users, clocks, zones and histories."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.policy.compile import compile_policy
from serve_app.vocabulary import Action, Reason
from tests.unit import decision_oracle as oracle
from tests.unit.decision_support import DAY, HOUR, SECOND, at, candidate, decided, document, entry, request

ZONES = ("Asia/Seoul", "America/New_York", "Pacific/Kiritimati", "Pacific/Apia", "Europe/London", "Asia/Kathmandu")
# Around both switch days of New York and London, a month's end, a Monday, and Seoul's night boundary.
CLOCKS = (
    at("2026-03-08T01:59:59", "America/New_York"), at("2026-11-01T01:30:00", "America/New_York", fold=1),
    at("2026-03-29T00:59:59", "Europe/London"), at("2026-10-25T01:30:00", "Europe/London"),
    at("2026-02-28T23:59:59"), at("2026-11-23T00:00:00"), at("2026-05-05T20:59:59"), at("2026-05-06T07:59:59"),
)  # fmt: skip
CLASSES = ("transactional", "informational", "advertising")
classes = st.lists(st.sampled_from(CLASSES), unique=True, min_size=1, max_size=3)
channels = st.sampled_from(("push", "email", "sms"))
times = st.integers(0, 23).flatmap(lambda h: st.sampled_from(("00", "30")).map(lambda m: f"{h:02d}:{m}"))


@st.composite
def a_cap(draw: st.DrawFn, name: str) -> dict[str, Any]:
    scope = draw(st.sampled_from(("global", "channel", "category", "campaign")))
    window = draw(
        st.one_of(
            st.sampled_from((0.5, 1.0, 24.0, 72.0)).map(lambda h: {"rolling_hours": h}),
            st.sampled_from(("day", "week", "month")).map(lambda p: {"calendar": p}),
        )
    )
    only = draw(st.lists(channels, unique=True, max_size=2)) if scope == "channel" else []
    return {
        "id": name, "scope": scope, "only": only, "limit": draw(st.integers(0, 3)), "window": window,
        "counts": draw(classes), "binds": draw(classes), "refund_failed_delivery": draw(st.booleans()),
    }  # fmt: skip


@st.composite
def a_policy(draw: st.DrawFn) -> dict[str, Any]:
    quiet = [
        {"id": f"q{i}", "start": start, "end": end, "channels": draw(st.lists(channels, unique=True, max_size=2)),
         "classes": draw(classes), "action": draw(st.sampled_from(("drop", "defer")))}
        for i in range(draw(st.integers(0, 2)))
        if (start := draw(times)) != (end := draw(times))
    ]  # fmt: skip
    return {
        "caps": [draw(a_cap(f"c{i}")) for i in range(draw(st.integers(0, 4)))],
        "quiet_hours": quiet,
        "min_gap": {"minutes": draw(st.sampled_from((0, 0.5, 60, 600))), "counts": draw(classes), "binds": draw(classes)},
        "duplicate_window_hours": draw(st.sampled_from((0, 1, 48))),
        "threshold": draw(st.sampled_from((-10.0, 0.0, 0.25))),
        "order": draw(st.sampled_from(("value", "priority_then_value"))),
        "kill_switches": {"channels": draw(st.sampled_from(([], ["sms"])))},
    }


@st.composite
def a_candidate(draw: st.DrawFn) -> dict[str, Any]:
    head = draw(st.sampled_from((0.0, 0.25, 0.5, 0.75, float("nan"))))
    return candidate(
        campaign=draw(st.integers(1, 3)), channel=draw(st.sampled_from((0, 2, 3))), category=draw(st.integers(0, 2)),
        message_class=draw(st.integers(0, 2)), priority=draw(st.integers(-1, 1)), heads=(head, 0.0),
        labelled=draw(st.booleans()), campaign_killed=draw(st.sampled_from((False, False, True))),
        segment=draw(st.sampled_from((-1, -1, 0, 3))), expires_at=draw(st.sampled_from((0, 0, LATE, EARLY))),
    )  # fmt: skip


EARLY, LATE = at("2026-01-01T00:00:00"), at("2027-06-01T00:00:00")


@st.composite
def a_case(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    now = draw(st.sampled_from(CLOCKS)) + draw(st.sampled_from((0, 1, -1, SECOND, HOUR, -HOUR, 9 * HOUR)))
    ages = st.sampled_from((0, 1, SECOND, HOUR, HOUR // 2, DAY, DAY - 1, 3 * DAY, 12 * DAY, -SECOND, -2 * SECOND))
    history = [
        entry(
            now - draw(ages), campaign=draw(st.integers(1, 3)), category=draw(st.integers(0, 2)),
            channel=draw(st.sampled_from((0, 2, 3))), message_class=draw(st.integers(0, 2)), flags=draw(st.integers(0, 3)),
            zone=draw(st.sampled_from(ZONES)), holdout=draw(st.sampled_from((0, 0, 0, 123))),
            request_id=draw(st.sampled_from((1, 2, 3, 4, 77))),
        )
        for _ in range(draw(st.integers(0, 8)))
    ]  # fmt: skip
    given_at = st.sampled_from((0, now - DAY, now - 730 * DAY, now - 730 * DAY + 1, now + SECOND))
    asked = request(
        [draw(a_candidate()) for _ in range(draw(st.integers(0, 5)))],
        decided_at=now, zone=draw(st.sampled_from(ZONES)), region=draw(st.sampled_from(("KR", "US"))),
        consent_ad_at=draw(given_at), consent_night_at=draw(given_at),
        customer_until=draw(st.sampled_from((0, now, now + 1))),
        reachable=draw(st.sampled_from((63, 63, 1))), opted_out=draw(st.sampled_from((0, 0, 4))),
        segments=draw(st.integers(0, 15)), segments_at=draw(st.sampled_from((0, now - HOUR, now - 48 * HOUR - 1))),
        expires_at=draw(st.sampled_from((0, 0, now, now + 1))),
    )  # fmt: skip
    return asked, history


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(a_policy(), st.lists(a_case(), min_size=1, max_size=4))
def test_every_gate_of_every_candidate_agrees_with_the_oracle(
    policy: dict[str, Any], cases: list[tuple[dict[str, Any], list[dict[str, Any]]]]
) -> None:
    written = document(**policy)
    requests = [one | {"user": row + 1, "request_id": 77} for row, (one, _) in enumerate(cases)]
    out = decided(compile_policy(written, heads={"notification": ("p_click", "p_optout")}), requests, [h for _, h in cases])
    for row, (asked, (_, history)) in enumerate(zip(requests, cases, strict=True)):
        start, end = out.offsets[row], out.offsets[row + 1]
        words = oracle.reasons(written, asked, history)
        told = [[Reason(r).name for r in line] for line in out.candidates["gate_reason"][start:end].tolist()]
        assert [[word or "none" for word in line] for line in words] == told
        primary = [next((word for word in line if word), "") for line in words]
        for place, why in enumerate(primary):
            if why:
                assert Reason(out.candidates["reason"][start + place]).name == why
        best = oracle.best(written, asked, words)
        sent = {int(c - start) for c in np.flatnonzero(out.candidates["slot"][start:end] >= 0) + start}
        assert (sent <= best and len(sent) == 1) if best else not sent
        assert (out.requests["action"][row] == Action.send) == bool(best)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(a_policy(), a_case())
def test_next_free_at_is_the_first_moment_the_gate_lets_pass(
    policy: dict[str, Any], case: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    written = document(**policy)
    machine = compile_policy(written, heads={"notification": ("p_click", "p_optout")})
    asked, history = case
    out = decided(machine, [asked], [history])
    for g, gate in enumerate(oracle.GATES):
        if gate not in (oracle.duplicate, oracle.consent, oracle.quiet_hours, oracle.caps, oracle.min_gap):
            continue
        for place, one in enumerate(asked["candidates"]):
            free = int(out.candidates["next_free_at"][place, g])
            if out.candidates["gate_outcome"][place, g] == 0 or free == 0:
                continue
            seen = [past for past in history if past["holdout"] == 0]
            assert free > asked["decided_at"]
            assert not gate(written, asked | {"decided_at": free}, one, seen)
            assert gate(written, asked | {"decided_at": free - 1}, one, seen)
