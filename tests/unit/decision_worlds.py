"""Random policies, users and requests, as wild as the document allows, all from one seeded generator."""

from __future__ import annotations

from random import Random
from typing import Any

from serve_app.ids import hash_id
from serve_app.policy.document import PolicyDocument, parse_policy
from tests.unit.decision_support import DAY, HOUR, SECOND, at, candidate, request

Row = dict[str, Any]

CAMPAIGNS = [f"campaign-{i}" for i in range(50)]
CATEGORIES = ["shoes", "books", "toys"]
CHANNELS = ("push", "email", "sms")  # 0, 2, 3
CLASSES = ("transactional", "informational", "advertising")
ZONES = (
    "Asia/Seoul", "America/New_York", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Europe/London", "Asia/Kathmandu",
    "America/Santiago", "Australia/Lord_Howe",
)  # fmt: skip
CLOCKS = (
    at("2026-03-08T01:30:00", "America/New_York"), at("2026-11-01T01:30:00", "America/New_York", fold=1),
    at("2026-03-29T00:59:59", "Europe/London"), at("2026-10-25T01:30:00", "Europe/London"),
    at("2026-02-28T23:59:59"), at("2026-11-23T00:00:00"), at("2026-05-05T20:59:59"), at("2026-05-06T07:59:59"),
    at("2026-04-04T23:30:00", "America/Santiago"), at("2026-04-05T01:45:00", "Australia/Lord_Howe"),
)  # fmt: skip


def some(rng: Random, values: Any, least: int = 0) -> list[Any]:
    """A random subset, in random order."""
    return rng.sample(list(values), rng.randint(least, len(values)))


def time_of_day(rng: Random) -> str:
    return f"{rng.randrange(24):02d}:{rng.choice(('00', '30', '59:59'))}"


def a_window(rng: Random) -> Row:
    if rng.random() < 0.5:
        return {"calendar": rng.choice(("day", "week", "month"))}
    return {"rolling_hours": rng.choice((0.01, 0.5, 1, 7.3, 24, 72, 700))}


def a_cap(rng: Random, name: str) -> Row:
    scope = rng.choice(("global", "channel", "category", "campaign"))
    names = {"channel": CHANNELS, "category": CATEGORIES, "campaign": CAMPAIGNS[:6]}.get(scope, ())
    return {
        "id": name, "scope": scope, "only": some(rng, names) if rng.random() < 0.4 else [],
        "limit": rng.choice((0, 1, 1, 2, 3, 5)) if rng.random() < 0.8 else 9, "window": a_window(rng),
        "counts": some(rng, CLASSES), "binds": some(rng, CLASSES), "refund_failed_delivery": rng.random() < 0.7,
    }  # fmt: skip


def a_quiet_rule(rng: Random, name: str) -> Row:
    start, end = time_of_day(rng), rng.choice((time_of_day(rng), "24:00"))
    while start == end:
        end = time_of_day(rng)
    return {
        "id": name, "start": start, "end": end, "channels": some(rng, CHANNELS), "classes": some(rng, CLASSES),
        "action": rng.choice(("drop", "defer", "defer")),
    }  # fmt: skip


def a_holdout(rng: Random, name: str) -> Row:
    scope = rng.choice(("global", "campaign"))
    return {
        "id": name, "scope": scope, "campaigns": some(rng, CAMPAIGNS[:8], 1) if scope == "campaign" else [],
        "percent": rng.choice((0.01, 5, 30, 60)), "salt": f"salt of {name}", "classes": some(rng, CLASSES),
        "blocking": rng.random() < 0.3,
        "starts_at": rng.choice((None, None, "2026-03-08T00:00:00-05:00")),
        "ends_at": rng.choice((None, None, "2026-11-01T05:30:00Z")),
    }  # fmt: skip


def trials(rng: Random, document: Row) -> Row:
    """Experiments and cells over the settings that are there, each setting with one owner."""
    paths = [(f"caps.{cap['id']}.limit", (0, 1, 2, 9)) for cap in document["caps"]]
    paths += [(f"caps.{c['id']}.window.rolling_hours", (1.5, 30)) for c in document["caps"] if "calendar" not in c["window"]]
    paths += [(f"quiet_hours.{q['id']}.action", ("drop", "defer")) for q in document["quiet_hours"]]
    paths += [("threshold", (0.1, 0.6)), ("min_gap.minutes", (0, 90))]
    more = [
        ("flips.probability", (0.0, 0.5)),
        ("max_sends_per_decision", (1, 2)),
        ("order", ("value", "priority_then_value")),
    ]
    rng.shuffle(paths)

    def overrides(own: list[Any]) -> Row:
        return {path: rng.choice(values) for path, values in own if rng.random() < 0.7}

    experiments = []
    for e in range(rng.choice((0, 1, 2))):
        own = [paths.pop() for _ in range(min(2, len(paths)))] + [more.pop()]
        share = rng.choice((10.01, 50, 75.5))
        arms = [{"id": "a", "percent": share}, {"id": "b", "percent": round(100 - share, 2), "overrides": overrides(own)}]
        experiments.append(
            {"id": f"e{e}", "salt": f"e{e}", "arms": arms, "starts_at": rng.choice((None, "2026-03-08T07:00:00Z"))}
        )
    cells = None
    if rng.random() < 0.5:
        own = [paths.pop() for _ in range(min(2, len(paths)))]
        variants = [{"id": "base", "probability": 0.5}, {"id": "c", "probability": 0.3, "overrides": overrides(own)}]
        cells = {"epoch_hours": 1000, "variants": [*variants, {"id": "d", "probability": 0.2, "overrides": overrides(own)}]}
    return {"experiments": experiments, "cells": cells}


def a_policy(rng: Random, *, caps: int = 5, holdouts: int = 3, quiet: int = 3) -> PolicyDocument:
    """A random document with at most so many of each."""
    rule = {
        "existing_customer_exception": True, "night_exempt_channels": rng.choice(([], ["email"])),
        "night_action": rng.choice(("drop", "defer")), "consent_valid_days": rng.choice((730, 0, 1)),
        "night_start": rng.choice(("21:00", "00:00")), "night_end": rng.choice(("08:00", "01:00")),
    }  # fmt: skip
    classes = {
        name: {
            **{f"bypass_{rule}": rng.random() < 0.2 for rule in ("caps", "min_gap", "quiet_hours", "opt_out", "threshold")},
            "priority": rng.randint(-1, 1),
            "threshold": rng.choice((None, None, 0.3)), "head_weights": rng.choice((None, None, {"p_click": 2.0})),
        }
        for name in CLASSES
    }  # fmt: skip
    document: Row = {
        "name": "random", "message_classes": classes,
        "caps": [a_cap(rng, f"c{i}") for i in range(rng.randint(0, caps))],
        "quiet_hours": [a_quiet_rule(rng, f"q{i}") for i in range(rng.randint(0, quiet))],
        "min_gap": {"minutes": rng.choice((0, 0, 0.5, 60)), "counts": some(rng, CLASSES), "binds": some(rng, CLASSES),
                    "refund_failed_delivery": rng.random() < 0.5},
        "regions": {"kr": rule}, "other_regions": {
            "ad_consent_required": False, "night_consent_required": False, "consent_valid_days": 0, "ad_label": None,
        },
        "kill_switches": {"channels": some(rng, CHANNELS[:1]) if rng.random() < 0.1 else [],
                          "categories": ["toys"] if rng.random() < 0.1 else [], "campaigns": CAMPAIGNS[6:7]},
        "duplicate_window_hours": rng.choice((0, 0, 1, 48)), "threshold": rng.choice((-10.0, 0.0, 0.25)),
        "order": rng.choice(("value", "priority_then_value")), "max_sends_per_decision": rng.choice((1, 2, 4)),
        "deferral": {"spread_minutes": rng.choice((0, 30, 700)), "max_attempts": rng.choice((0, 1, 3))},
        "holdouts": [a_holdout(rng, f"h{i}") for i in range(rng.randint(0, holdouts))],
        "flips": {"probability": rng.choice((0.0, 0.3, 1.0)), "to": rng.choice(("either", "none", "other_passing")),
                  "classes": some(rng, CLASSES)},
        "surfaces": {"notification": {"head_weights": {"p_click": 1.0, "p_optout": -0.5}}},
        "segment_staleness_hours": 48,
    }  # fmt: skip
    return parse_policy(document | trials(rng, document))


def a_candidate(rng: Random, campaigns: int = 6) -> Row:
    head = rng.choice((0.0, 0.25, 0.5, 0.75, rng.random(), float("nan")))
    return candidate(
        item=rng.choice((-1, 0, 1)), campaign=hash_id(rng.choice(CAMPAIGNS[:campaigns])), channel=rng.choice((0, 2, 3)),
        category=rng.choice((0, *map(hash_id, CATEGORIES))), message_class=rng.randint(0, 2), priority=rng.randint(-1, 1),
        heads=(head, rng.choice((0.0, 0.5))), labelled=rng.random() < 0.9, campaign_killed=rng.random() < 0.05,
        segment=rng.choice((-1,) * 8 + (0, 3)), expires_at=0,
    )  # fmt: skip


def a_request(rng: Random, now: int, *, campaigns: int = 6, most: int = 6, **columns: Any) -> Row:
    """A request with up to `most` candidates, some of which expire soon."""
    rows = [a_candidate(rng, campaigns) for _ in range(rng.randint(0, most))]
    for row in rows:
        row["expires_at"] = rng.choice((0,) * 12 + (now, now + 1, now + HOUR, now + 12 * HOUR))
    made = {
        "segments": rng.randrange(16), "segments_at": rng.choice((0, now - HOUR, now - 48 * HOUR, now - 48 * HOUR - 1)),
        "expires_at": rng.choice((0,) * 12 + (now, now + 1, now + 9 * HOUR)), "slots": rng.randint(1, 4),
        "request_id": rng.getrandbits(63) + 1,
    }  # fmt: skip
    return request(rows, decided_at=now, **(made | columns))


def a_state(rng: Random, now: int) -> Row:
    """What a ledger knows of a user."""
    given = (0, now - DAY, now - 730 * DAY, now - 730 * DAY + 1, now - DAY + 6 * HOUR, now + SECOND)
    return {
        "zone": rng.choice(ZONES), "region": rng.choice(("KR", "US")), "consent_ad_at": rng.choice(given),
        "consent_night_at": rng.choice((0, *given)), "customer_until": rng.choice((0, now, now + 1, now + 5 * HOUR)),
        "reachable": rng.choice((63, 63, 63, 1)), "opted_out": rng.choice((0, 0, 0, 4)),
    }  # fmt: skip
