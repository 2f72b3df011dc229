"""The data folder of the decision benchmark: a world, a release with trained heads, a full policy, a seeded ledger.

The world gives people with behaviour to learn from; the audience is that world's users and others who share their state
(zone, consents, reachability) in the ledger but are new to the release: their features are missing. Everybody has three
sends behind them, so that caps have something to count. Hours of silence are laid opposite the time of the run, so that its
figures do not depend on the time of day.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from serve_app.batch import lengths_to_offsets
from serve_app.catalogue import Catalogue, read_catalogue, table_of, write_catalogue
from serve_app.ids import hash_ids
from serve_app.ledger.columns import HISTORY_DTYPE, CommitPlan, UserState
from serve_app.ledger.opening import open_ledger
from serve_app.ledger.protocol import Ledger
from serve_app.ledger.seeding import last_states
from serve_app.policies import promote_policy, store_policy
from serve_app.policy.document import DEFAULT_POLICY, PolicyDocument, parse_policy
from serve_app.policy.zones import local_day
from serve_app.segments.refresh import refresh_segments

__all__ = ["HISTORY", "Size", "audience", "choices", "full_policy", "prepare", "refresh_segments_of", "seed_people"]

HISTORY = 3
HOUR, DAY = 3_600_000_000, 86_400_000_000
_CHUNK = 20_000
_PRIOR_AGE_DAYS = (0.3, 1.5, 4.0)
_SEGMENTS = (
    {"id": "homeland", "where": {"kind": "membership", "name": "region", "values": ["KR", "US"]}},
    {"id": "visitors", "where": {"kind": "event_count", "event": "view", "within_days": 3660, "op": ">=", "count": 1}},
    {"id": "two-thirds", "where": {"kind": "bucket", "salt": "bench", "percent": 66.0}},
)
U64 = npt.NDArray[np.uint64]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Size:
    """Users who lived in the world, days they did, and everybody."""

    world_users: int = 6_000
    days: int = 6
    items: int = 1_000
    population: int = 1_000_000
    seed: int = 7


def prepare(data: Path, size: Size, now: int, progress: Progress) -> None:
    """Make the folder, all but the ledger."""
    progress("a world and its log")
    world = ["world", "--users", str(size.world_users), "--items", str(size.items), "--days", str(size.days)]
    _hindcast([*world, "--seed", str(size.seed), "--data", str(data)])
    write_catalogue(_running(read_catalogue(data / "catalogue"), now), data / "catalogue")
    policy = full_policy(now)
    promote_policy(data, store_policy(data, policy), now=now)
    progress("a release with trained heads")
    _hindcast(["build", "--local", "--promote", "--data", str(data)])
    ids = pq.read_table(data / "catalogue" / "users.parquet", columns=["user_id"])["user_id"].to_pylist()
    ids += [f"p{n:08d}" for n in range(size.population - len(ids))]
    pq.write_table(pa.table({"user_id": ids}), data / "audience.parquet")


def _hindcast(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "hindcast", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"hindcast {arguments[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def _running(catalogue: Catalogue, now: int) -> Catalogue:
    """Every campaign runs from a month ago for a year, three of them for a segment each."""
    campaigns = catalogue.campaigns.to_pylist()
    limited = [one for one in campaigns if one["message_class"] == "advertising"][: len(_SEGMENTS)]
    for one in campaigns:
        one["starts_at"], one["expires_at"] = now - 30 * DAY, now + 365 * DAY
        one["segment"] = _SEGMENTS[limited.index(one)]["id"] if one in limited else None
    columns = {name: [one[name] for one in campaigns] for name in catalogue.campaigns.column_names}
    rows = table_of("campaigns", columns)
    return Catalogue(catalogue.items, catalogue.users, catalogue.reviews, catalogue.widgets, rows)


def full_policy(now: int) -> PolicyDocument:
    """The default policy (ten gates, four caps, cells, flips, a holdout) with three segments; its silent hours begin six
    hours after `now` in Seoul."""
    said: dict[str, Any] = yaml.safe_load(DEFAULT_POLICY.read_text(encoding="utf-8"))
    hour = (now // HOUR + 9) % 24
    start, end = f"{(hour + 6) % 24:02d}:00", f"{(hour + 16) % 24:02d}:00"
    for rule in said["quiet_hours"]:
        rule["start"], rule["end"] = start, end
    for law in (*said["regions"].values(), said["other_regions"]):
        if law["night_consent_required"]:
            law["night_start"], law["night_end"] = start, end
    return parse_policy({**said, "name": "bench", "segments": list(_SEGMENTS)})


def audience(data: Path) -> list[str]:
    """Everybody's id, the world's users first."""
    ids: list[str] = pq.read_table(data / "audience.parquet")["user_id"].to_pylist()
    return ids


def choices(data: Path) -> list[tuple[str, str]]:
    """(campaign, channel) pairs to choose five of: each campaign with each of its channels."""
    rows = pq.read_table(data / "catalogue" / "campaigns.parquet", columns=["campaign_id", "channels"]).to_pylist()
    return [(row["campaign_id"], channel) for row in rows for channel in row["channels"]]


def refresh_segments_of(data: Path, now: int, redis_url: str | None) -> None:
    """Evaluate and publish the policy's segments."""
    refresh_segments(data, now=now, full=True, redis_url=redis_url)


def seed_people(data: Path, now: int, *, redis_url: str | None = None, seed: int = 7) -> int:
    """Write everybody's state and past into the ledger; returns how many there are."""
    users = hash_ids(audience(data))
    known, state = last_states(data)
    rng = np.random.default_rng(seed)
    like = rng.integers(0, len(known), len(users))
    campaigns = hash_ids(sorted({campaign for campaign, _ in choices(data)}))
    backend: Any = "redis" if redis_url else "sqlite"
    ledger = open_ledger(data, backend=backend, redis_url=redis_url, durability="disk" if redis_url else "process")
    try:
        for start in range(0, len(users), _CHUNK):
            part = users[start : start + _CHUNK]
            own = like[start : start + _CHUNK]
            ledger.put_users(part, UserState(*(getattr(state, name)[own] for name in state.__dataclass_fields__)))
            _past(ledger, part, now, campaigns, rng)
    finally:
        ledger.close()
    return len(users)


def _past(ledger: Ledger, users: U64, now: int, campaigns: U64, rng: np.random.Generator) -> None:
    """Three earlier grants each."""
    n = len(users)
    entries = np.zeros(n * HISTORY, HISTORY_DTYPE)
    ages = np.tile(np.array(sorted(_PRIOR_AGE_DAYS, reverse=True)), n) * (0.8 + 0.4 * rng.random(n * HISTORY))
    entries["at"] = now - (ages * DAY).astype(np.int64)
    first = np.repeat(rng.integers(0, len(campaigns), n), HISTORY)  # three different ones, so that no cap is passed
    entries["campaign"] = campaigns[(first + np.tile(np.arange(HISTORY), n)) % len(campaigns)]
    entries["category"] = rng.integers(1, 20, n * HISTORY)
    entries["message_class"], entries["channel"] = 2, rng.integers(0, 3, n * HISTORY)
    entries["request_id"] = rng.integers(1, 2**63, n * HISTORY)
    entries["local_day"] = local_day(entries["at"], np.zeros(n * HISTORY, np.int16))
    versions = ledger.read(users).versions
    ledger.commit(
        CommitPlan(
            users=users,
            read_versions=versions,
            decided_at=np.full(n, now - DAY // 4),
            new_entries=entries,
            new_offsets=lengths_to_offsets(np.full(n, HISTORY)),
            records=[],
            request_ids=rng.integers(1, 2**63, n).astype(np.uint64),
        )
    )
