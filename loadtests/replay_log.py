"""A log of send decisions to measure replays on: made user by user, decided by the serving core, written as packs.

28 days, 40 to 120 decisions a user, one message each from 24 campaigns on three channels, under a policy with four caps,
quiet hours, a gap, a threshold and flips. Everything a decision logs comes from the Decision stage itself, so that the log
is its own policy's to the bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from serve_app.batch import Batch, Columns
from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS
from serve_app.ids import hash_id
from serve_app.ledger.columns import Histories
from serve_app.log.assigned import assigned_columns
from serve_app.log.fingerprint import code_version, fingerprint
from serve_app.log.journal import Journal
from serve_app.log.rows import EntityHashes, fill, rows_from_batch
from serve_app.log.schema import TABLES
from serve_app.policy.compile import CompiledPolicy, compile_policy
from serve_app.policy.document import PolicyDocument, parse_policy
from serve_app.policy.zones import zone_index
from serve_app.regions import region_index
from serve_app.vocabulary import Action, Channel, EventType, MessageClass, Origin, Reason, Surface
from simulators.replay.course import Course, follow_log
from simulators.replay.opportunities import Opportunities
from simulators.replay.pack import event_columns, read_pack, users_columns
from simulators.replay.pack_columns import encode
from simulators.replay.pack_files import write_encoded
from simulators.replay.partition import Partition
from simulators.replay.rewards import EVENT_COLUMNS

__all__ = [
    "DAYS",
    "DAY_US",
    "HEADS",
    "START_US",
    "behaviour_policy",
    "copied",
    "made_partition",
    "target_policy",
    "users_of",
    "write_journal",
]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

HEADS = ("p_click",)
DAYS = 28
DAY_US = 86_400_000_000
START_US = 20_745 * DAY_US  # 2026-10-19
CAMPAIGNS = 24
_CHANNELS = (Channel.push, Channel.email, Channel.messenger)
_ZONES = ("Asia/Seoul", "Asia/Tokyo", "America/New_York", "Europe/Berlin")
_REQUEST_OUTCOMES = ("action", "reason", "until", "p_none", "forced", "explored")
_CANDIDATE_OUTCOMES = (
    "value", "gate_outcome", "gate_reason", "used", "limit", "next_free_at", "reason", "action", "until", "p_choice",
    "p_shadow", "ghost", "ghost_first", "holdout", "slot",
)  # fmt: skip


def behaviour_policy() -> PolicyDocument:
    """What the log is written under."""
    cap = {"counts": ["informational", "advertising"], "binds": ["informational", "advertising"]}
    return parse_policy(
        {
            "format": 1,
            "name": "bench-behaviour",
            "message_classes": {"advertising": {}, "informational": {}},
            "caps": [
                {"id": "global-week", "scope": "global", "limit": 6, "window": {"rolling_hours": 168}, **cap},
                {"id": "push-day", "scope": "channel", "only": ["push"], "limit": 1, "window": {"calendar": "day"}, **cap},
                {"id": "category-3d", "scope": "category", "limit": 2, "window": {"rolling_hours": 72}, **cap},
                {"id": "campaign-week", "scope": "campaign", "limit": 1, "window": {"rolling_hours": 168}, **cap},
            ],
            "min_gap": {"minutes": 120},
            "quiet_hours": [
                {
                    "id": "night", "start": "22:00", "end": "08:00", "channels": ["push", "messenger"],
                    "classes": ["informational", "advertising"], "action": "drop",
                }
            ],
            "other_regions": {"ad_consent_required": True, "consent_valid_days": 730, "night_consent_required": False},
            "threshold": 0.04,
            "flips": {"probability": 0.1, "to": "none", "classes": ["informational", "advertising"], "salt": "bench-flips"},
            "surfaces": {"notification": {"head_weights": {"p_click": 1.0}, "width": 8, "min_width": 4, "slots": 1}},
        },
        name="bench-behaviour",
    )  # fmt: skip


def target_policy() -> PolicyDocument:
    """What it is replayed under: one cap tighter, the threshold higher."""
    plain = orjson.loads(orjson.dumps(behaviour_policy().model_dump(mode="json")))
    plain |= {"name": "bench-target", "threshold": 0.05}
    plain["caps"][0]["limit"] = 4
    return parse_policy(plain, name="bench-target")


def users_of(group: int, groups: int, count: int) -> U64:
    """u64[count]: users of one of `groups` equal ranges of buckets, ascending, never the same in two groups."""
    width = 2**64 // groups
    step = width // count
    within = np.random.default_rng(group).integers(0, step, count, dtype=np.uint64)
    return np.uint64(group * width) + np.arange(count, dtype=np.uint64) * np.uint64(step) + within


def made_partition(seed: int, users: U64) -> Partition:
    """Decisions of these users, as logged under `behaviour_policy`."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(40, 121, len(users))
    asked = _undecided(rng, users, counts)
    _decide(asked, compile_policy(behaviour_policy(), heads={"notification": HEADS}))
    events = _events(rng, asked)
    lowest = np.full(len(users), np.iinfo(np.int64).min)
    return Partition(asked, Histories.empty(len(users)), lowest, events)


def _undecided(rng: np.random.Generator, users: U64, counts: I64) -> Opportunities:
    rows = int(counts.sum())
    owner = np.repeat(np.arange(len(users)), counts)
    at = rng.integers(START_US, START_US + DAYS * DAY_US, rows)
    at = at[np.lexsort((at, owner))]
    ids = rng.integers(1, 2**63, rows, dtype=np.uint64)
    campaign = rng.integers(0, CAMPAIGNS, rows)
    requests = Columns(rows, REQUEST_COLUMNS, _request_columns(rng, users, owner, at, ids))
    candidates = Columns(rows, CANDIDATE_COLUMNS, _candidate_columns(rng, campaign))
    batch = Batch(requests, candidates, np.arange(rows + 1), {"heads": HEADS})
    logged = {"policy": requests["policy"], **_nothing(rows)}
    return Opportunities(
        batch, (behaviour_policy().revision,), np.empty(0, np.uint64), logged, {}, np.zeros(len(Reason), np.int64)
    )


def _request_columns(rng: np.random.Generator, users: U64, owner: I64, at: I64, ids: U64) -> dict[str, npt.NDArray[Any]]:
    rows, people = len(owner), len(users)
    zone = np.array([zone_index(one) for one in _ZONES], np.int16)[rng.integers(0, len(_ZONES), people)]
    consent = np.where(rng.random(people) < 0.9, START_US - rng.integers(0, 300, people) * DAY_US, 0)
    given = {
        "request_id": ids, "root_id": ids, "surface": np.full(rows, Surface.notification), "decided_at": at,
        "origin": np.full(rows, Origin.audience), "user": users[owner], "zone": zone[owner],
        "region": np.full(rows, region_index("DE")), "consent_ad_at": consent[owner],
        "reachable": np.where(rng.random(people) < 0.97, 0b11111, 0)[owner], "refunds_read": np.zeros(rows),
        "width": np.full(rows, 8), "slots": np.ones(rows), "log_rate": np.ones(rows), "env_seq": np.full(rows, 1),
    }  # fmt: skip
    rest = (
        "parent_request_id", "attempt", "trigger_event_id", "consent_night_at", "customer_until", "opted_out", "segments",
        "segments_at", "degraded", "expires_at", "policy",
    )  # fmt: skip
    given |= {name: np.zeros(rows) for name in rest}
    return {name: values.astype(REQUEST_COLUMNS[name].dtype) for name, values in given.items()}


def _candidate_columns(rng: np.random.Generator, campaign: I64) -> dict[str, npt.NDArray[Any]]:
    rows = len(campaign)
    names = np.array([hash_id(f"campaign-{one:02d}") for one in range(CAMPAIGNS)], np.uint64)
    categories = np.array([hash_id(f"category-{one % 6}") for one in range(CAMPAIGNS)], np.uint64)
    channel = np.array([_CHANNELS[one % 3] for one in range(CAMPAIGNS)])
    kind = np.where(np.arange(CAMPAIGNS) % 4 == 0, MessageClass.informational, MessageClass.advertising)
    given = {
        "campaign": names[campaign], "category": categories[campaign], "channel": channel[campaign],
        "message_class": kind[campaign], "priority": np.zeros(rows), "delivery": np.zeros(rows),
        "labelled": np.ones(rows), "campaign_killed": np.zeros(rows), "segment": np.full(rows, -1),
        "item": np.full(rows, -1),
        "cost": np.full(rows, 0.01), "margin": np.full(rows, 1.0), "expires_at": np.zeros(rows),
    }  # fmt: skip
    columns = {name: values.astype(CANDIDATE_COLUMNS[name].dtype) for name, values in given.items()}
    return columns | {"heads": rng.beta(1.6, 18, (rows, 1)).astype(np.float32)}


def _nothing(rows: int) -> dict[str, npt.NDArray[Any]]:
    dtypes = {name: REQUEST_COLUMNS[name].dtype for name in _REQUEST_OUTCOMES}
    dtypes |= {"read_version": np.dtype("i8"), "commit_version": np.dtype("i8"), "granted": np.dtype("?")}
    return {name: np.zeros(rows, dtype) for name, dtype in dtypes.items()}


def _decide(asked: Opportunities, policy: CompiledPolicy) -> None:
    """Fill in what the Decision stage decides, as the log would have it."""
    course = Course(asked, [policy], None, _no_failures(asked))
    logged, of_candidates = asked.logged, asked.logged_candidates
    assert isinstance(of_candidates, dict)

    def consume(rows: I64, decided: Batch) -> None:
        asked.batch.meta["gates"] = decided.meta["gates"]
        for name in _REQUEST_OUTCOMES:
            logged[name][rows] = decided.requests[name]
        for name in _CANDIDATE_OUTCOMES:
            values = decided.candidates[name]
            if name not in of_candidates:
                of_candidates[name] = np.zeros((len(asked), *values.shape[1:]), values.dtype)
            of_candidates[name][rows] = values

    follow_log(asked, course, consume)
    sent = logged["action"] == Action.send
    logged["reason"][sent] = Reason.chosen
    logged["granted"][sent] = True
    before = np.cumsum(sent) - sent
    logged["read_version"][:] = before - before[asked.begins[asked.owner]]
    logged["commit_version"][:] = np.where(sent, logged["read_version"] + 1, -1)


def _no_failures(asked: Opportunities) -> Any:
    return Partition(asked, Histories.empty(0), np.empty(0, np.int64), _event_table({}, 0)).failures()


def _events(rng: np.random.Generator, asked: Opportunities) -> pa.Table:
    """Clicks of one send in twelve, purchases of one click in six, opt-outs of one send in a thousand."""
    requests = asked.batch.requests
    sent = np.flatnonzero(asked.logged["granted"])
    parts = [
        (EventType.click, sent[rng.random(len(sent)) < 1 / 12]),
        (EventType.opt_out, sent[rng.random(len(sent)) < 1 / 1000]),
    ]
    parts.append((EventType.conversion, parts[0][1][rng.random(len(parts[0][1])) < 1 / 6]))
    rows = np.concatenate([some for _, some in parts])
    kind = np.concatenate([np.full(len(some), one, np.int8) for one, some in parts])
    at = requests["decided_at"][rows] + rng.integers(1, 20 * 3_600_000_000, len(rows))
    order = np.lexsort((at, requests["user"][rows]))
    rows, kind, at = rows[order], kind[order], at[order]
    amount = np.round(rng.gamma(2.0, 20.0, len(rows)), 2)
    columns = {
        "user": requests["user"][rows], "ts": at, "type": kind, "slot": np.zeros(len(rows), np.int32),
        "decision_request_id": requests["request_id"][rows], "amount": (amount, kind != EventType.conversion),
    }  # fmt: skip
    return _event_table(columns, len(rows))


def _event_table(columns: dict[str, Any], rows: int) -> pa.Table:
    schema = pa.schema([TABLES["events"].field(name).remove_metadata() for name in EVENT_COLUMNS])
    arrays = []
    for one in schema:
        values = columns.get(one.name, np.zeros(rows))
        values, missing = values if isinstance(values, tuple) else (values, None)
        arrays.append(pa.array(values, mask=missing).cast(one.type))
    return pa.table(arrays, schema=schema)


def copied(template: Path, folder: Path, users: U64, said: Callable[[int], dict[str, Any]]) -> None:
    """A pack like `template` for as many other users: what was decided does not depend on who they are. said: the
    manifest's own entries, for so many decisions."""
    aside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(template, aside, ignore=shutil.ignore_patterns("users*", "events*", "pack.json"))
    old = read_pack(template)
    manifest = dict(old.said) | said(old.said["decisions"])
    place = np.searchsorted(old.asked.users, old.events["user"].to_numpy())
    events = old.events.set_column(old.events.schema.get_field_index("user"), "user", pa.array(users[place]))
    of_users = {**users_columns(old), "user": users}
    for name, columns, rows in (("users", of_users, len(users)), ("events", event_columns(events), len(events))):
        manifest["tables"][name] = write_encoded(aside, name, encode(columns, rows))
    (aside / "pack.json").write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    aside.rename(folder)


def write_journal(data: Path, partition: Partition, *, frame: int = 20_000) -> dict[str, Any]:
    """The same log as a server would have journalled it: frames of decisions of all users, in order of time, and events.
    Returns how many decisions, and the journal's bytes."""
    asked, policy = partition.asked, compile_policy(behaviour_policy(), heads={"notification": HEADS})
    order = np.argsort(asked.batch.requests["decided_at"], kind="stable")
    whole, granted, commit = _as_decided(asked), asked.logged["granted"], asked.logged["commit_version"]
    none = np.empty(0, np.uint64)
    with Journal(data, "bench") as journal:
        for begin in range(0, len(order), frame):
            some = order[begin : begin + frame]
            batch = whole.take(some)
            journal.append(
                rows_from_batch(
                    batch, hashes=EntityHashes(none, none, none), policy_revision=policy.revision, release="bench",
                    fingerprint=fingerprint(), salt=int(policy.rules.flip_salt), code_version=code_version(),
                    commit_version=commit[some], granted=granted[some], **assigned_columns(batch.requests, (policy,)),
                )
            )  # fmt: skip
        journal.append({"events": _event_rows(partition.events)})
    size = sum(file.stat().st_size for file in (data / "journal").rglob("*") if file.is_file())
    return {"decisions": len(order), "journal_bytes": size}


def _as_decided(asked: Opportunities) -> Batch:
    """The batch as the Decision stage left it."""
    names = (*_REQUEST_OUTCOMES, "read_version")
    requests = dict(asked.batch.requests) | {name: asked.logged[name] for name in names}
    candidates = dict(asked.batch.candidates) | dict(asked.logged_candidates)
    return Batch(
        Columns(len(asked), REQUEST_COLUMNS, requests),
        Columns(asked.batch.candidates.rows, CANDIDATE_COLUMNS, candidates),
        asked.batch.offsets,
        asked.batch.meta,
    )


def _event_rows(events: pa.Table) -> pa.RecordBatch:
    columns = {name: events[name].combine_chunks() for name in EVENT_COLUMNS}
    return fill("events", len(events), columns | {"event_id": np.arange(1, len(events) + 1), "ingested_at": columns["ts"]})
