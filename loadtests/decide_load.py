"""The load generator of the decision benchmark, a process of its own: ``python -m loadtests.decide_load < task.json``.

Connections in threads build a body, post it, read the answer and check every row of it, until the time is up; one line of
JSON says what came back. Bodies are built while the clock runs: what a client costs is counted.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from hdrh.histogram import HdrHistogram

from loadtests.decide_data import audience, choices

__all__ = ["Bodies", "Load", "main"]

CANDIDATES = 5
_SETS = 4_096
_ARROW, _JSON = "application/vnd.apache.arrow.stream", "application/json"
_TIMEOUT_S = 120.0


class Bodies:
    """Rows of a shuffled audience, nobody twice until everybody was asked, each with five different candidates."""

    def __init__(self, users: list[str], pairs: list[tuple[str, str]], rows: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._users = [users[at] for at in rng.permutation(len(users)).tolist()]
        self._arrow_users = pa.array(self._users)
        self._pairs = pairs
        self._sets = np.array([rng.choice(len(pairs), CANDIDATES, replace=False) for _ in range(_SETS)])
        self._campaign, self._channel = (pa.array(one) for one in zip(*pairs, strict=True))
        self.rows, self._seed = rows, seed
        self._next, self._lock = 0, threading.Lock()

    def _take(self) -> tuple[int, npt.NDArray[np.int64]]:
        with self._lock:
            number = self._next
            self._next += 1
        start = number * self.rows % max(len(self._users) - self.rows + 1, 1)
        chosen = np.random.default_rng((self._seed, number)).integers(0, _SETS, self.rows)
        return start, self._sets[chosen].ravel()

    def arrow(self) -> bytes:
        """The next body as an Arrow stream."""
        start, flat = self._take()
        at, offsets = pa.array(flat), pa.array(np.arange(self.rows + 1, dtype=np.int32) * CANDIDATES)
        lists = [pa.ListArray.from_arrays(offsets, column.take(at)) for column in (self._campaign, self._channel)]
        users = self._arrow_users.slice(start, self.rows)
        batch = pa.record_batch([users, *lists], ["user", "campaign", "channel"])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        body: bytes = sink.getvalue().to_pybytes()
        return body

    def json(self) -> bytes:
        """The next body as JSON."""
        start, flat = self._take()
        parts = [{"campaign": campaign, "channel": channel} for campaign, channel in self._pairs]
        named = [[parts[at] for at in own] for own in flat.reshape(self.rows, CANDIDATES).tolist()]
        users = self._users[start : start + self.rows]
        return orjson.dumps({"rows": [{"user": u, "candidates": c} for u, c in zip(users, named, strict=True)]})

    def one(self) -> bytes:
        """The next body of a call for one decision."""
        start, flat = self._take()
        named = [dict(zip(("campaign", "channel"), self._pairs[at], strict=True)) for at in flat[:CANDIDATES].tolist()]
        return orjson.dumps({"user": self._users[start], "candidates": named})


@dataclass
class Load:
    """What came back. rows_by_second: answered rows, by second since the start."""

    latency_us: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, 600_000_000, 3))
    calls: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    rows_by_second: Counter[int] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcomes: Counter[str], took_us: int, second: int) -> None:
        """One answered call."""
        with self.lock:
            self.calls += 1
            self.latency_us.record_value(max(1, took_us))
            self.outcomes.update(outcomes)
            self.rows_by_second[second] += outcomes.total()


_PROBLEMS: Counter[str] = Counter()


def _note(statuses: list[int], details: list[str | None]) -> None:
    """Count what the answers said of rows that failed."""
    _PROBLEMS.update(f"{status} {detail}"[:160] for status, detail in zip(statuses, details, strict=True) if status != 200)


def _count_arrow(raw: bytes) -> Counter[str]:
    table = pa.ipc.open_stream(raw).read_all()
    good = pc.sum(pc.equal(table["status"], 200)).as_py()
    counted = pc.value_counts(table["action"].combine_chunks()).to_pylist()
    out = Counter({str(one["values"]): one["counts"] for one in counted if one["values"] is not None})
    out["failed"] = len(table) - good
    if out["failed"]:
        _note(table["status"].to_pylist(), table["detail"].to_pylist())
    return out


def _count_json(raw: bytes) -> Counter[str]:
    body = orjson.loads(raw)
    out = Counter(one["action"] for one in body["decisions"] if one)
    out["failed"] = len(body["errors"])
    _note([one["status"] for one in body["errors"]], [one["detail"] for one in body["errors"]])
    return out


def _count_one(raw: bytes) -> Counter[str]:
    return Counter([orjson.loads(raw)["action"]])


_FORMS = {
    "arrow": ("decide-batch", _ARROW, Bodies.arrow, _count_arrow),
    "json": ("decide-batch", _JSON, Bodies.json, _count_json),
    "single": ("decide", _JSON, Bodies.one, _count_one),
}


def _drive(task: dict[str, Any], bodies: Bodies, load: Load, begin: float) -> None:
    path, media, make, count = _FORMS[task["form"]]
    connection = http.client.HTTPConnection("127.0.0.1", task["port"], timeout=_TIMEOUT_S)
    while time.monotonic() < begin + task["seconds"]:
        body = make(bodies)
        began = time.perf_counter()
        connection.request("POST", f"/v1/notifications/{path}", body, {"Content-Type": media})
        answer = connection.getresponse()
        raw = answer.read()
        took_us = int((time.perf_counter() - began) * 1e6)
        outcomes = count(raw) if answer.status == 200 else Counter({"failed": bodies.rows})
        if answer.status != 200:
            _note([answer.status], [raw[:140].decode(errors="replace")])
        if outcomes.total() != bodies.rows:
            raise RuntimeError(f"{outcomes.total()} answers to {bodies.rows} rows")
        load.add(outcomes, took_us, int(time.monotonic() - begin))


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Drive the server as the task says: data, port, form, rows, connections, seconds, seed."""
    data = Path(task["data"])
    bodies = Bodies(audience(data), choices(data), task["rows"], task["seed"])
    load = Load()
    cpu = time.process_time()
    began = time.monotonic()
    drive = (task, bodies, load, began)
    threads = [threading.Thread(target=_drive, args=drive) for _ in range(task["connections"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    percentiles = {f"p{p:g}": load.latency_us.get_value_at_percentile(p) / 1e3 for p in (50, 90, 99, 99.9)}
    return {
        "seconds": took,
        "cpu_seconds": time.process_time() - cpu,
        "calls": load.calls,
        "outcomes": dict(load.outcomes),
        "problems": dict(_PROBLEMS.most_common(10)),
        "rows_by_second": [load.rows_by_second[second] for second in range(int(took) + 1)],
        "latency_ms": percentiles,
    }


def main() -> None:
    """Read the task, run it, print what came back."""
    sys.stdout.write(json.dumps(run(json.load(sys.stdin))) + "\n")


if __name__ == "__main__":
    main()
