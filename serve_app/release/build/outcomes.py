"""Step `outcomes`: what was shown or sent, and what came of it, joined per decision by ranges of user buckets.

One row a shown slot (lists) or a granted send (notifications), with the clicks, conversions and opt-outs whose events name
that decision; and one row a would-send of a holdout's trial, sent or held out, with what the user then bought at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.log.reader import bucket_groups, read_files
from serve_app.noise import hash_key
from serve_app.release.build.runner import Runner, Task
from serve_app.release.build.timeline import DAY_US, Timeline
from serve_app.vocabulary import Action, EventType, Surface

__all__ = ["ATTRIBUTION_US", "Outcomes", "collect_outcomes"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

ATTRIBUTION_US = 3 * DAY_US
"""A click, conversion or opt-out counts for a decision within this time; younger decisions are left out of training."""

_REQUESTS = ("user", "request_id", "surface", "decided_at", "anchor", "context_hour", "holdouts")
_DECISIONS = (
    "user", "request_id", "surface", "ts", "slot", "item", "widget", "campaign", "channel", "action",
    "ghost_first", "granted",
)  # fmt: skip
_CANDIDATES = ("user", "request_id", "ts", "slot", "item", "widget", "campaign", "channel", "action", "ghost", "ghost_first")
_EVENTS = ("user", "ts", "type", "ingested_at", "decision_request_id", "slot", "item", "amount")


_COLUMNS = {"requests": _REQUESTS, "decisions": _DECISIONS, "candidates": _CANDIDATES, "events": _EVENTS}


@dataclass(frozen=True, slots=True)
class Outcomes:
    """k decisions. user, request_id, item, widget, campaign, anchor u64 (hashes; 0 none), surface i8, channel i8, at i64,
    slot i32; clicked, converted, opted_out bool (attributed); trial bool: the user's first would-send under a holdout,
    sent bool, p_sent f64 (by design), bought bool: any purchase of the user within ATTRIBUTION_US, whatever led there."""

    user: U64
    request_id: U64
    surface: npt.NDArray[np.int8]
    at: I64
    anchor: U64
    slot: npt.NDArray[np.int32]
    item: U64
    widget: U64
    campaign: U64
    channel: npt.NDArray[np.int8]
    clicked: Bools
    converted: Bools
    opted_out: Bools
    trial: Bools
    sent: Bools
    p_sent: npt.NDArray[np.float64]
    bought: Bools

    def __len__(self) -> int:
        return len(self.at)

    def take(self, rows: npt.NDArray[Any]) -> Outcomes:
        """The given rows (indices or a mask)."""
        return Outcomes(*(getattr(self, one.name)[rows] for one in fields(self)))

    def save(self, folder: Path) -> None:
        """One .npy a column."""
        folder.mkdir(parents=True, exist_ok=True)
        for one in fields(self):
            np.save(folder / f"{one.name}.npy", np.ascontiguousarray(getattr(self, one.name)), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Outcomes:
        """What `save` wrote."""
        return cls(*(np.load(folder / f"{one.name}.npy", allow_pickle=False) for one in fields(cls)))

    @classmethod
    def join(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """All parts, by (time, user, request, slot)."""
        joined = cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))
        return joined.take(np.lexsort((joined.slot, joined.request_id, joined.user, joined.at)))


def collect_outcomes(data: Path, folder: Path, runner: Runner) -> None:
    """Write all outcomes of the log under `folder`/outcomes."""
    parts = folder / "parts"
    parts.mkdir()
    tables = list(_COLUMNS)
    tasks: list[Task] = [
        {"folder": str(parts / f"{group.low:04d}-{group.high:04d}"), "files": json.dumps(dict(group.files))}
        for group in bucket_groups(data, tables)
    ]
    runner.map(_collect, tasks)
    joined = [Outcomes.load(Path(task["folder"])) for task in tasks] or [_of_tables(*(_none(name) for name in tables))]
    Outcomes.join(joined).save(folder / "outcomes")
    shutil.rmtree(parts)


def _none(table: str) -> pa.Table:
    return read_files([], table, columns=_COLUMNS[table])


def _collect(task: Task) -> Task:
    files = json.loads(task["files"])
    found = _of_tables(*(read_files(files.get(name, []), name, columns=columns) for name, columns in _COLUMNS.items()))
    found.save(Path(task["folder"]))
    return {"rows": len(found)}


def _decided(decisions: pa.Table, candidates: pa.Table) -> pa.Table:
    """Rows of what was shown or sent, and of what a holdout silenced at the user's first would-send: there the decision
    chose nothing, and only the candidate tells which message it was."""
    done = decisions.filter(pc.or_(pc.equal(decisions["action"], Action.show), decisions["granted"]))
    ghosts = candidates.filter(pc.and_(candidates["ghost"], candidates["ghost_first"])).drop_columns(["ghost"])
    surface = pa.array(np.full(len(ghosts), Surface.notification, np.int8))
    ghosts = ghosts.append_column("surface", surface).append_column("granted", pa.array(np.zeros(len(ghosts), np.bool_)))
    return pa.concat_tables([done, ghosts.select(done.column_names).cast(done.schema)])


def _of_tables(requests: pa.Table, decisions: pa.Table, candidates: pa.Table, events: pa.Table) -> Outcomes:
    decisions = _decided(decisions, candidates)
    user, request_id = decisions["user"].to_numpy(), decisions["request_id"].to_numpy()
    slot, at = decisions["slot"].to_numpy(), decisions["ts"].to_numpy()
    asked = _positions(_key(requests["user"], requests["request_id"]), hash_key(1, user, request_id))
    anchor = np.append(requests["anchor"].to_numpy(), np.uint64(0))[asked]
    attributed = _attributed(events, user, request_id, slot, at)
    return Outcomes(
        user=user,
        request_id=request_id,
        surface=decisions["surface"].to_numpy(),
        at=at,
        anchor=anchor,
        slot=slot,
        item=decisions["item"].to_numpy(),
        widget=decisions["widget"].to_numpy(),
        campaign=decisions["campaign"].to_numpy(),
        channel=decisions["channel"].to_numpy(),
        clicked=attributed[EventType.click],
        converted=attributed[EventType.conversion],
        opted_out=attributed[EventType.opt_out],
        trial=_flags(decisions, "ghost_first"),
        sent=_flags(decisions, "granted"),
        p_sent=_p_sent(requests["holdouts"], asked, decisions["campaign"].to_numpy(), _flags(decisions, "granted")),
        bought=_bought_after(events, user, at),
    )


def _key(user: pa.ChunkedArray, request_id: pa.ChunkedArray) -> U64:
    return hash_key(1, user.to_numpy(), request_id.to_numpy()) if len(user) else np.empty(0, np.uint64)


def _positions(keys: U64, wanted: U64) -> I64:
    """Row of each wanted key; -1 where it is not there."""
    if len(keys) == 0 or len(wanted) == 0:
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(keys, kind="stable")
    at = order[np.searchsorted(keys, wanted, sorter=order).clip(0, len(keys) - 1)]
    return np.where(keys[at] == wanted, at, -1)


def _attributed(events: pa.Table, user: U64, request_id: U64, slot: Any, at: I64) -> dict[EventType, Bools]:
    """Per type, whether an event within ATTRIBUTION_US names the decision."""
    named = events.filter(pc.is_valid(events["decision_request_id"]))
    place = pc.fill_null(named["slot"], 0).to_numpy()
    decided = hash_key(2, user, request_id, slot) if len(user) else np.empty(0, np.uint64)
    key = np.empty(0, np.uint64)
    if len(named):
        key = hash_key(2, named["user"].to_numpy(), named["decision_request_id"].to_numpy(), place)
    row = _positions(decided, key)
    known = row >= 0
    kind, when = named["type"].to_numpy(), named["ts"].to_numpy()
    soon = np.zeros(len(row), np.bool_)
    soon[known] = when[known] - at[row[known]] <= ATTRIBUTION_US
    out = {}
    for one in (EventType.click, EventType.conversion, EventType.opt_out):
        out[one] = np.zeros(len(user), np.bool_)
        out[one][row[soon & (kind == one)]] = True
    return out


def _flags(table: pa.Table, name: str) -> Bools:
    flags: Bools = table[name].to_numpy(zero_copy_only=False)
    return flags


def _p_sent(holdouts: pa.ChunkedArray, asked: I64, campaign: U64, granted: Bools) -> npt.NDArray[np.float64]:
    """Per decision, the design's probability that no holdout silences it: the product of P(not held out) over the holdouts
    that cover its campaign. asked i64: each decision's request row (-1: not logged, NaN).

    A request lists its user's arm in every holdout, whatever its scope. One that covers a campaign never lets a held-out
    user have it; so where such a user was sent the campaign, the holdout does not cover it.
    """
    lists = holdouts.combine_chunks()
    offsets = lists.offsets.to_numpy().astype(np.int64)
    flat = lists.values
    identity, arm, p = (flat.field(name).to_numpy(zero_copy_only=False) for name in ("id", "arm", "p"))
    known = np.flatnonzero(asked >= 0)
    rows = asked[known]
    counts = offsets[rows + 1] - offsets[rows]
    decision = np.repeat(known, counts)
    at = np.repeat(offsets[rows] - np.r_[0, np.cumsum(counts)[:-1]], counts) + np.arange(counts.sum())
    pair = hash_key(3, identity[at], campaign[decision]) if len(at) else np.empty(0, np.uint64)
    not_covered = np.unique(pair[(arm[at] == 1) & granted[decision]])
    free = np.where(arm[at] == 1, 1.0 - p[at], p[at])
    free = np.where(np.isin(pair, not_covered), 1.0, free)
    out = np.full(len(asked), np.nan)
    out[known] = 1.0
    np.multiply.at(out, decision, free)
    return out


def _bought_after(events: pa.Table, user: U64, at: I64) -> Bools:
    """Whether the user bought anything within ATTRIBUTION_US after `at`: a user outcome, attributed to nothing."""
    buys = events.filter(pc.equal(events["type"], EventType.conversion))
    known, inverse = np.unique(np.concatenate([buys["user"].to_numpy(), user]), return_inverse=True)
    code = np.asarray(inverse, np.int32)
    purchases = Timeline.build(code[: len(buys)], buys["ts"].to_numpy(), {"n": np.ones(len(buys), np.int64)}, len(known))
    until = at + ATTRIBUTION_US + 1  # the sum is over [until - window, until), so over (at, at + ATTRIBUTION_US]
    return purchases.sums(code[len(buys) :], until, {"soon": ATTRIBUTION_US})["soon"]["n"] > 0
