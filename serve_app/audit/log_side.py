"""The log's account of the users of some buckets: send decisions with their requests, candidates and deliveries."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.log.once import groups_of
from serve_app.log.reader import read_log
from serve_app.log.schema import empty_table
from serve_app.vocabulary import EventType, Surface

__all__ = ["LogSide", "log_side"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_REQUESTS = (
    "user", "request_id", "surface", "decided_at", "release", "policy_revision", "zone", "region", "consent_ad_at",
    "consent_night_at", "customer_until", "reachable", "opted_out", "arm_bits", "cell", "candidate_count", "full",
    "parent_request_id", "origin", "degraded", "expires_at",
)  # fmt: skip
_DECISIONS = (
    "user", "request_id", "slot", "surface", "chosen_idx", "campaign", "category", "channel", "message_class", "action",
    "reason", "until", "p_none", "p_action", "granted", "read_version", "commit_version", "idempotency_key", "ts",
)  # fmt: skip
_CANDIDATES = ("user", "request_id", "idx", "p_choice", "labelled", "delivery", "expires_at")
_EVENTS = ("user", "decision_request_id", "slot", "type")


@dataclass(slots=True)
class LogSide:
    """Columns of the three tables and of delivery events. number: the same for rows of one (user, request id), by table;
    requests are rows of `requests`."""

    requests: dict[str, npt.NDArray[Any]]
    decisions: dict[str, npt.NDArray[Any]]
    candidates: dict[str, npt.NDArray[Any]]
    events: dict[str, npt.NDArray[Any]]
    number: dict[str, I64]

    def row_of_request(self) -> I64:
        """i64[numbers]: a row of `requests` for each number; -1: none."""
        out = np.full(1 + max((int(one.max(initial=-1)) for one in self.number.values()), default=-1), -1, np.int64)
        out[self.number["requests"]] = np.arange(len(self.number["requests"]))
        return out


def log_side(data: str | os.PathLike[str], low: int, high: int) -> LogSide:
    """Users of buckets low..high, journal included."""
    tables = {}
    for name, columns in (("requests", _REQUESTS), ("decisions", _DECISIONS)):
        rows = read_log(data, name, columns=columns, buckets=(low, high))
        tables[name] = rows.filter(pc.equal(rows["surface"], pa.scalar(int(Surface.notification), pa.int8())))
    of_candidates = [*_CANDIDATES, "channel"]
    candidates, events = empty_table("candidates").select(of_candidates), empty_table("events").select(_EVENTS)
    if len(tables["requests"]) or len(tables["decisions"]):
        candidates = read_log(data, "candidates", columns=of_candidates, buckets=(low, high))
        events = read_log(data, "events", columns=_EVENTS, buckets=(low, high))
    of_messages = pc.greater_equal(candidates["channel"], pa.scalar(0, pa.int8()))
    wanted = pa.array([int(EventType.delivered), int(EventType.delivery_failed)], pa.int8())
    tables |= {"candidates": candidates.filter(of_messages), "events": events.filter(pc.is_in(events["type"], wanted))}
    arrays = {name: {column: _values(rows[column]) for column in rows.column_names} for name, rows in tables.items()}
    names = ("requests", "decisions", "candidates")
    numbers = groups_of(*((arrays[name]["user"], arrays[name]["request_id"]) for name in names))
    number = dict(zip(names, numbers, strict=True))
    return LogSide(arrays["requests"], arrays["decisions"], arrays["candidates"], arrays["events"], number)


def _values(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    whole = column.combine_chunks()
    if pa.types.is_dictionary(whole.type) or pa.types.is_string(whole.type) or pa.types.is_binary(whole.type):
        return np.array(whole.to_pylist(), object)
    if whole.null_count:
        whole = whole.fill_null(0)
    return whole.to_numpy(zero_copy_only=False)
