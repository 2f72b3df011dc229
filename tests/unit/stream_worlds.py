"""Random logs of random policies: requests of a few users over some weeks, decided in waves and written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from serve_app.batch import Batch, Columns
from serve_app.columns import REQUEST_COLUMNS
from serve_app.ledger.columns import Histories
from serve_app.policy.compile import CompiledPolicy, compile_policy
from serve_app.stages.decision.deferrals import child_of
from serve_app.vocabulary import Action, Origin, Reason
from simulators.replay.course import Course, follow_log
from simulators.replay.histories import Failures
from simulators.replay.opportunities import Opportunities
from simulators.replay.partition import Partition
from tests.unit.decision_support import DAY, HEADS, HOUR, batch_of, entry, histories_of
from tests.unit.decision_worlds import CLOCKS, a_policy, a_request, a_state

Row = dict[str, Any]

ITEM_HASHES = np.array([11, 12], np.uint64)


@dataclass
class Log:
    """A partition, the policies that logged it, and what they knew."""

    partition: Partition
    behaviour: tuple[CompiledPolicy, ...]
    failures: tuple[Any, ...]

    def failed(self) -> Failures:
        return Failures.of(self.partition.asked.users, *self.failures)


def some_policies(rng: Random, count: int) -> tuple[CompiledPolicy, ...]:
    return tuple(compile_policy(a_policy(rng), heads={"notification": HEADS}) for _ in range(count))


def _columns(rows: list[Row]) -> Batch:
    batch = batch_of([{k: v for k, v in row.items() if not k.startswith("_")} for row in rows])
    n = len(batch)
    parents = np.array([row.get("_parent", 0) for row in rows], np.uint64)
    origin = np.where(parents != 0, np.int8(Origin.deferral), np.int8(Origin.client))
    more = {
        "parent_request_id": parents,
        "origin": origin,
        "refunds_read": np.array([row.get("_read", -1) for row in rows], np.int16),
    }
    requests = Columns(n, REQUEST_COLUMNS, dict(batch.requests) | more)
    return Batch(requests, batch.candidates, batch.offsets, batch.meta)


def _asked(rows: list[Row], policies: int) -> Opportunities:
    batch = _columns(rows)
    m, n = batch.candidates.rows, len(rows)
    logged = {
        "policy": batch.requests["policy"], "action": np.zeros(n, np.int8), "reason": np.zeros(n, np.int8),
        "until": np.zeros(n, np.int64), "p_none": np.ones(n), "granted": np.ones(n, np.bool_),
    }  # fmt: skip
    candidates = {
        "slot": np.full(m, -1, np.int32), "ghost": np.zeros(m, np.bool_), "holdout": np.full(m, -1, np.int16),
        "p_choice": np.zeros(m), "action": np.zeros(m, np.int8), "reason": np.zeros(m, np.int8),
    }  # fmt: skip
    revisions = tuple(f"revision-{i}" for i in range(policies))
    return Opportunities(batch, revisions, ITEM_HASHES, logged, candidates, np.zeros(len(Reason), np.int64))


def _requests_of(rng: Random, user: int, policies: int, most: int) -> list[Row]:
    now = rng.choice(CLOCKS) - rng.randrange(3 * DAY)
    state, rows = a_state(rng, now + 10 * DAY), []
    count = rng.choice((1, 2, most // 2, most))
    for place in range(count):
        now += rng.choice((0, 1, rng.randrange(HOUR), rng.randrange(2 * DAY), -rng.randrange(HOUR)))
        if rng.random() < 0.1:
            state = state | {"zone": a_state(rng, now)["zone"]}
        row = a_request(rng, now, user=user, policy=min(place * policies // count, policies - 1), most=4, **state)
        rows.append(row | {"_read": rng.choice((-1, 0, 0, 1, 2)), "attempt": rng.choice((0, 0, 0, 1))})
        if rng.random() < 0.15 and place + 1 < count:
            parent = rng.choice(rows)
            again = {"_parent": parent["request_id"], "request_id": child_of(user, parent["request_id"])}
            if again["request_id"] not in {one["request_id"] for one in rows}:
                rows.append(a_request(rng, now + rng.randrange(DAY), user=user, policy=row["policy"], **state) | again)
    return rows


def _start(rng: Random, users: Sequence[int], rows: list[list[Row]], policies: Sequence[CompiledPolicy]) -> Histories:
    keys = [0, 0, 0, *(int(key) for one in policies for key in one.holdouts.keys)]
    histories = []
    for mine in rows:
        first = mine[0]["decided_at"]
        times = sorted(first + HOUR - rng.randrange(60 * DAY) for _ in range(rng.choice((0, 0, 1, 5))))
        histories.append(
            [
                entry(
                    t, campaign=mine[0]["candidates"][0]["campaign"] if mine[0]["candidates"] else 3,
                    holdout=rng.choice(keys),
                    request_id=rng.getrandbits(62), flags=rng.choice((0, 0, 1, 2)), message_class=rng.choice((-1, 0, 1, 2)),
                    channel=rng.choice((0, 2, 3)),
                )
                for t in times
            ]
        )  # fmt: skip
    return histories_of(histories)


def a_log(seed: int, *, policies: int = 1, users: int = 6, most: int = 24) -> Log:
    """Decided in waves by random policies, each user's requests in the order of the ledger; some deliveries fail."""
    rng = Random(seed)
    behaviour = some_policies(rng, policies)
    ids = sorted(rng.getrandbits(63) for _ in range(users))
    rows = [_requests_of(rng, user, policies, most) for user in ids]
    asked, start = _asked([row for mine in rows for row in mine], policies), _start(rng, ids, rows, behaviour)
    requests = asked.batch.requests
    sent = [
        (int(u), int(t), int(r))
        for u, t, r in zip(requests["user"], requests["decided_at"], requests["request_id"], strict=True)
    ]
    failed = [one for one in sent if rng.random() < 0.3]
    failures = (
        np.array([u for u, _, _ in failed], np.uint64),
        np.array([t + rng.randrange(2 * DAY) for _, t, _ in failed], np.int64),
        np.array([r for _, _, r in failed], np.uint64),
        np.array([rng.choice((0, 0, 1)) for _ in failed], np.int16),
    )  # fmt: skip
    partition = Partition(asked, start, np.zeros(users, np.int64), pa.table({}))
    log = Log(partition, behaviour, failures)
    return replace(log, partition=replace(partition, asked=_with_outcomes(log, rng)))


def _with_outcomes(log: Log, rng: Random) -> Opportunities:
    """What the waves decide, as logged; a few rows were decided some other way."""
    asked = log.partition.asked
    logged = {name: values.copy() for name, values in asked.logged.items()}
    candidates = {name: values.copy() for name, values in asked.logged_candidates.items()}

    def write(rows: Any, decided: Batch) -> None:
        for name in ("action", "until", "p_none"):
            logged[name][rows] = decided.requests[name]
        flat = np.arange(decided.candidates.rows) - decided.offsets[decided.owner] + asked.batch.offsets[rows][decided.owner]
        for name, values in candidates.items():
            values[flat] = decided.candidates[name]

    follow_log(asked, Course(asked, log.behaviour, log.partition.start, log.failed()), write)
    ungranted = np.array([rng.random() < 0.1 for _ in range(len(asked))], np.bool_)
    logged["granted"] = ~ungranted
    deferred = np.flatnonzero(logged["action"] == Action.defer)
    logged["until"][deferred[::3]] += 1
    return replace(asked, logged=logged, logged_candidates=candidates)
