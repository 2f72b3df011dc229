"""Builders for tests of gates, decisions and the decision shell."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from importlib import resources
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from serve_app.batch import Batch, lengths_to_offsets
from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS
from serve_app.ledger.columns import HISTORY_DTYPE, Histories
from serve_app.policy.compile import CompiledPolicy, compile_policy
from serve_app.policy.document import PolicyDocument
from serve_app.policy.zones import local_day, zone_index
from serve_app.regions import region_index
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import Channel, MessageClass

HEADS = ("p_click", "p_optout")
SECOND = 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86_400 * SECOND
LONG_AGO = 1_700_000_000 * SECOND


@cache
def zone(name: str) -> ZoneInfo:
    """A zone of the tzdata package, as the zone table reads it."""
    with resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as stream:
        return ZoneInfo.from_file(stream, name)


def at(text: str, name: str = "Asia/Seoul", fold: int = 0) -> int:
    """UTC microseconds of a local wall clock time."""
    return round(datetime.fromisoformat(text).replace(tzinfo=zone(name), fold=fold).timestamp() * 1e6)


def document(**settings: Any) -> PolicyDocument:
    """A policy without rules but those given; Korea's law in `kr`, no law elsewhere."""
    free = {
        "ad_consent_required": False, "night_consent_required": False, "consent_valid_days": 0, "ad_label": None,
    }  # fmt: skip
    base: dict[str, Any] = {
        "name": "test",
        "regions": {"kr": {"existing_customer_exception": True, "night_exempt_channels": ["email"]}},
        "other_regions": free,
        "surfaces": {"notification": {"head_weights": {"p_click": 1.0}}},
        "deferral": {"spread_minutes": 0},
    }
    return PolicyDocument.model_validate(base | settings)


def compiled(**settings: Any) -> CompiledPolicy:
    """`document` compiled."""
    return compile_policy(document(**settings), heads={"notification": HEADS})


def candidate(**columns: Any) -> dict[str, Any]:
    """An advertisement by push that every gate lets pass, but for what is given."""
    base = {
        "item": -1, "campaign": 1, "channel": Channel.push, "message_class": MessageClass.advertising, "category": 0,
        "priority": 0, "expires_at": 0, "labelled": True, "campaign_killed": False, "segment": -1, "heads": (0.5, 0.0),
        "delivery": 0,
    }  # fmt: skip
    return base | columns


def request(candidates: list[dict[str, Any]], **columns: Any) -> dict[str, Any]:
    """A request of a reachable user in Seoul, region unregulated, but for what is given."""
    base = {
        "request_id": 77, "root_id": None, "attempt": 0, "decided_at": at("2026-03-10T12:00:00"), "user": 5,
        "zone": "Asia/Seoul", "region": "US", "consent_ad_at": 0, "consent_night_at": 0, "customer_until": 0,
        "reachable": 63, "opted_out": 0, "segments": 0, "segments_at": 0, "slots": 1, "expires_at": 0, "policy": 0,
    }  # fmt: skip
    made = base | columns
    made["root_id"] = made["request_id"] if made["root_id"] is None else made["root_id"]
    return made | {"candidates": candidates}


def batch_of(requests: list[dict[str, Any]]) -> Batch:
    """Requests as one batch."""
    columns = {}
    for name in set(requests[0]) - {"candidates"}:
        values = [one[name] for one in requests]
        if name == "zone":
            values = [zone_index(value) for value in values]
        if name == "region":
            values = [region_index(value) if value else -1 for value in values]
        columns[name] = np.array(values, REQUEST_COLUMNS[name].dtype)
    batch = Batch.of_requests(**columns)
    flat = [one for row in requests for one in row["candidates"]]
    offsets = lengths_to_offsets([len(row["candidates"]) for row in requests])
    shaped = {
        name: np.array([one[name] for one in flat], CANDIDATE_COLUMNS[name].dtype) for name in candidate() if name != "heads"
    }
    heads = np.array([one["heads"] for one in flat], np.float32).reshape(len(flat), len(HEADS))
    batch = batch.with_candidates(offsets, heads=heads, **shaped)
    batch.meta["heads"] = HEADS
    return batch


def entry(when: int, **fields: Any) -> dict[str, Any]:
    """A past advertising send by push; `zone` is where the user was then."""
    base = {
        "at": when, "campaign": 9, "category": 0, "holdout": 0, "request_id": 1, "slot": 0, "channel": 0, "message_class": 2,
        "flags": 0, "zone": "Asia/Seoul",
    }  # fmt: skip
    return base | fields


def histories_of(rows: list[list[dict[str, Any]]]) -> Histories:
    """One list of entries per request."""
    flat = [one for row in rows for one in row]
    entries = np.zeros(len(flat), HISTORY_DTYPE)
    for place, one in enumerate(flat):
        for name in HISTORY_DTYPE.names or ():
            day = int(local_day(one["at"], zone_index(one["zone"]))[0]) if name == "local_day" else 0
            entries[name][place] = one.get(name, day)
    return Histories(entries, lengths_to_offsets([len(row) for row in rows]))


def decided(
    policy: CompiledPolicy, requests: list[dict[str, Any]], history: list[list[dict[str, Any]]] | None = None
) -> Batch:
    """The decision on `requests`."""
    rows = history if history is not None else [[] for _ in requests]
    return Decision().run(batch_of(requests), Context((policy,), {"histories": histories_of(rows)}))


def gate_words(batch: Batch, gate: str) -> dict[str, Any]:
    """One gate's columns of a decided batch."""
    g = batch.meta["gates"].index(gate)
    names = {"outcome": "gate_outcome", "reason": "gate_reason", "used": "used", "limit": "limit", "free": "next_free_at"}
    return {short: batch.candidates[name][:, g] for short, name in names.items()}
