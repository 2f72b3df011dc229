"""Rows of `environment`: what happened to the shop itself, so that a replay can tell it from what users did.

kind, payload (JSON):
  promotion     {"release": version} or {"policy_revision": revision}, and what it "replaced"
  switch        {"policy_revision": revision, "kill_switches": {...}} when a promotion threw switches
  availability  {"item_id": id, "available": bool, "sequence": place in the catalogue log}
  outage        {"stage": name, "from": us, "to": us, "requests": count}: minutes in which a stage fell back
A server's rows are numbered by their time (microseconds); its requests name their pins themselves (`env_seq` -1).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from serve_app.log.filling import fill
from serve_app.vocabulary import StageBit

__all__ = ["availability", "environment_rows", "outages", "promotion", "switches"]

Happening = tuple[int, str, dict[str, Any]]
"""(when, microseconds UTC; kind; payload)"""

_MINUTE = 60_000_000


def environment_rows(happened: Iterable[Happening]) -> pa.RecordBatch:
    """Rows in the order given."""
    rows = list(happened)
    at = np.array([one for one, _, _ in rows], np.int64)
    payloads = [json.dumps(payload, sort_keys=True, ensure_ascii=False) for _, _, payload in rows]
    columns = {"ts": at, "env_seq": at, "kind": pa.array([kind for _, kind, _ in rows], pa.string())}
    return fill("environment", len(rows), {**columns, "payload": pa.array(payloads, pa.string())})


def promotion(at: int, kind: str, version: str, replaced: str | None) -> Happening:
    """A release or a policy came into force."""
    return at, "promotion", {"release" if kind == "release" else "policy_revision": version, "replaced": replaced}


def switches(at: int, revision: str, kill_switches: dict[str, Any]) -> Happening:
    """Kill switches that are in force from now on."""
    return at, "switch", {"policy_revision": revision, "kill_switches": kill_switches}


def availability(at: int, item_id: str, available: bool, sequence: int) -> Happening:
    """An item was hidden, shown or stored."""
    return at, "availability", {"item_id": item_id, "available": available, "sequence": sequence}


def outages(requests: pa.Table) -> list[Happening]:
    """Stretches of minutes in which a stage fell back, of rows of `requests`; stretches of two compactions may adjoin."""
    degraded, ts = requests["degraded"].to_numpy(), requests["ts"].to_numpy()
    out: list[Happening] = []
    for bit in StageBit:
        minutes, counts = np.unique(ts[degraded & int(bit) != 0] // _MINUTE, return_counts=True)
        if not len(minutes):
            continue
        starts = np.flatnonzero(np.concatenate([[True], np.diff(minutes) > 1]))
        for first, after in zip(starts, [*starts[1:], len(minutes)], strict=True):
            low, high = int(minutes[first]) * _MINUTE, (int(minutes[after - 1]) + 1) * _MINUTE
            told = {"stage": bit.name, "from": low, "to": high, "requests": int(counts[first:after].sum())}
            out.append((low, "outage", told))
    return sorted(out, key=lambda one: one[0])
