"""After a fail-over that lost writes: what the log knows of the lost commits goes back into the closed buckets.

A replica that lagged took over, so versions of some users went backwards and their shard was closed: nothing is granted
there. The log (journal included) holds every decision that was answered. For each user of a closed shard, the sends and
ghosts of commits later than the version Redis has now are appended to the history, the state becomes that of the newest
decision, and the version rises above all that were ever written; then the shard is opened.

What only Redis knew is lost, and said: a `PUT /v1/users` that no decision has read since, the proofs of consents, open
deferrals and outbox rows of lost commits (`hindcast audit` lists both).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.errors import OutcomeUnknown
from serve_app.ledger.columns import HISTORY_DTYPE, NEVER_KNOWN, HistoryFlag, UserState
from serve_app.ledger.redis import RedisLedger
from serve_app.ledger.redis_keys import BUCKETS_PER_SHARD, command, shard_of, user_key
from serve_app.ledger.redis_rows import ENTRIES_AT, pack_states, skipped_of
from serve_app.log.places import region_indices, zone_indices
from serve_app.log.reader import read_log
from serve_app.policies import read_policy
from serve_app.policy.holdouts import compile_holdouts
from serve_app.policy.zones import local_day
from serve_app.vocabulary import Action, EventType, Surface

__all__ = ["Reconciled", "reconcile"]

_HEAD = struct.Struct(
    ">q8sII8sqq"
)  # as redis_rows: version, newest record, entries, dropped, first kept, known since, erased
_FRESH = bytes(ENTRIES_AT) + _HEAD.pack(0, bytes(8), 0, 0, bytes(8), NEVER_KNOWN, 0)
_STATE = ("consent_ad_at", "consent_night_at", "customer_until", "reachable", "opted_out")
_COPIED = ("campaign", "category", "channel", "message_class", "slot")


@dataclass(slots=True)
class Reconciled:
    """shards: opened again; users: with commits that were lost; entries: put back into histories; states: put back."""

    shards: int = 0
    users: int = 0
    entries: int = 0
    states: int = 0


def reconcile(ledger: RedisLedger, data: Path, *, progress: Callable[[int, int], None] = lambda _d, _t: None) -> Reconciled:
    """Put back what was lost in every closed shard, and open it. Repeating it, after a crash half-way too, adds nothing
    twice. progress(shards done, of)."""
    result = Reconciled()
    shards = sorted({bucket // BUCKETS_PER_SHARD for bucket in ledger.closed_buckets()})
    for done, shard in enumerate(shards, 1):
        low = shard * BUCKETS_PER_SHARD
        for user, lost in _lost(data, low, low + BUCKETS_PER_SHARD - 1).items():
            _put_back(ledger, user, lost, result)
        ledger.reopen_bucket(low)
        result.shards += 1
        progress(done, len(shards))
    return result


@dataclass(slots=True)
class _Commits:
    """What the log knows of one user: entries with the version that wrote each, state with the version it was read at."""

    newest: int
    entries: list[tuple[int, npt.NDArray[np.void]]]
    state: tuple[int, bytes]


def _lost(data: Path, low: int, high: int) -> dict[int, _Commits]:
    """Commits of the users of buckets low..high, as logged."""
    decisions = _rows(data, "decisions", low, high)
    decisions = [one for one in decisions if one["commit_version"] >= 0]
    requests = {(one["user"], one["request_id"]): one for one in _rows(data, "requests", low, high)}
    failed = _failed(data, low, high)
    ghosts: defaultdict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for one in _ghosts(data, low, high):
        ghosts[one["user"], one["request_id"]].append(one)
    keys: dict[str, npt.NDArray[np.uint64]] = {}
    out: dict[int, _Commits] = {}
    for one in sorted(decisions, key=lambda row: (row["commit_version"], row["slot"])):
        request = requests.get((one["user"], one["request_id"]))
        if request is None:
            continue
        own = out.setdefault(one["user"], _Commits(0, [], (-1, b"")))
        version = one["commit_version"]
        own.newest = max(own.newest, version)
        if one["read_version"] > own.state[0]:
            own.state = (one["read_version"], _state_of(request))
        if one["action"] == Action.send and one["granted"]:
            gone = (one["user"], one["request_id"], one["slot"]) in failed
            own.entries.append((version, _entry(one, request, 0, refunded=gone)))
        for ghost in ghosts.pop((one["user"], one["request_id"]), []):
            holdout = _holdout_key(data, request["policy_revision"], ghost["holdout"], keys)
            own.entries.append((version, _entry({**ghost, "slot": 0}, request, holdout)))
    return out


def _rows(data: Path, table: str, low: int, high: int) -> list[dict[str, Any]]:
    columns = {
        "decisions": (*_COPIED, "user", "request_id", "surface", "action", "granted", "read_version", "commit_version"),
        "requests": (*_STATE, "user", "request_id", "surface", "decided_at", "zone", "region", "policy_revision"),
    }[table]
    rows = read_log(data, table, columns=columns, buckets=(low, high))
    return rows.filter(pc.equal(rows["surface"], pa.scalar(int(Surface.notification), pa.int8()))).to_pylist()


def _ghosts(data: Path, low: int, high: int) -> list[dict[str, Any]]:
    columns = ("user", "request_id", "ghost", "holdout", *_COPIED)
    rows = read_log(data, "candidates", columns=columns, buckets=(low, high))
    return rows.filter(rows["ghost"]).to_pylist()


def _failed(data: Path, low: int, high: int) -> set[tuple[int, int, int]]:
    rows = read_log(data, "events", columns=["user", "decision_request_id", "slot", "type"], buckets=(low, high))
    rows = rows.filter(pc.equal(rows["type"], pa.scalar(int(EventType.delivery_failed), pa.int8())))
    return {(one["user"], one["decision_request_id"], one["slot"] or 0) for one in rows.to_pylist()}


def _entry(one: dict[str, Any], request: dict[str, Any], holdout: int, *, refunded: bool = False) -> npt.NDArray[np.void]:
    entry = np.zeros(1, HISTORY_DTYPE)
    for name in _COPIED:
        entry[name] = one[name]
    at = request["decided_at"]
    entry["at"], entry["request_id"], entry["holdout"] = at, request["request_id"], holdout
    zone = zone_indices(pa.array([request["zone"]], pa.string()))
    entry["local_day"] = local_day(np.array([at]), zone)[0]
    entry["flags"] = HistoryFlag.refunded if refunded else 0
    return entry


def _holdout_key(data: Path, revision: str, index: int, known: dict[str, npt.NDArray[np.uint64]]) -> int:
    if revision not in known:
        known[revision] = compile_holdouts(read_policy(data, revision)).keys
    return int(known[revision][index])


def _state_of(request: dict[str, Any]) -> bytes:
    zone, region = request["zone"], request["region"]
    state = UserState(
        zone_indices(pa.array([zone], pa.string())),
        region_indices(pa.array([region], pa.string())),
        *(np.array([request[name]]) for name in _STATE[:3]),
        *(np.array([request[name]], np.uint16) for name in _STATE[3:]),
    )
    packed: bytes = pack_states(state, [zone], [region]).tobytes()
    return packed


def _put_back(ledger: RedisLedger, user: int, logged: _Commits, result: Reconciled) -> None:
    key, shard = user_key(b"u", user), shard_of(user)
    row: bytes = ledger._wire.run([command("GET", key)], [shard], write=False)[0] or _FRESH
    version, newest_record, _, _, _, known_since, erased = _HEAD.unpack_from(row, len(row) - _HEAD.size)
    if erased or logged.newest <= version:
        return
    kept = np.frombuffer(row[ENTRIES_AT + skipped_of(row) * HISTORY_DTYPE.itemsize : len(row) - _HEAD.size], HISTORY_DTYPE)
    have = set(zip(kept["request_id"].tolist(), kept["slot"].tolist(), kept["holdout"].tolist(), strict=True))
    lost = [one for wrote, one in logged.entries if wrote > version and _place(one) not in have]
    entries = np.concatenate([kept, *lost])
    state = logged.state[1] if logged.state[0] > version else row[:ENTRIES_AT]
    first = entries["at"][:1].astype("<i8").tobytes() or bytes(8)
    head = _HEAD.pack(logged.newest + 1, newest_record, len(entries), 0, first, known_since, 0)
    reply = ledger._wire.run([command("SET", key, state + entries.tobytes() + head)], [shard], write=True)[0]
    if isinstance(reply, Exception):
        raise OutcomeUnknown(f"user {user:016x} may not be reconciled: {reply}", hint="run it again") from reply
    result.users += 1
    result.entries += len(lost)
    result.states += state != row[:ENTRIES_AT]


def _place(entry: npt.NDArray[np.void]) -> tuple[int, int, int]:
    return int(entry["request_id"][0]), int(entry["slot"][0]), int(entry["holdout"][0])
