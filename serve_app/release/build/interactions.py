"""What the pipelines read of the log: interactions of users with items, as flat columns in order of sessions.

`extract` works on a range of user buckets, in which users and their sessions are whole; ranges run in parallel and their
files are joined by `Interactions.join`. Events of users flagged as bots, and of items the catalogue does not hold, are left
out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.batch import lengths_to_offsets
from serve_app.noise import hash_key
from serve_app.release.rows import find_rows
from serve_app.vocabulary import EventType

__all__ = ["EVENT_COLUMNS", "SHOWN", "Interactions", "Sessions", "interactions_of"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I8 = npt.NDArray[np.int8]
U64 = npt.NDArray[np.uint64]

EVENT_COLUMNS = (
    "user", "ts", "event_id", "type", "ingested_at", "item", "campaign", "session", "position", "quantity", "amount",
)  # fmt: skip
SESSION_GAP_US = 30 * 60 * 1_000_000
SHOWN = (EventType.view, EventType.click, EventType.add_to_cart, EventType.conversion)
_STRENGTH = np.zeros(32, np.float32)
_STRENGTH[[EventType.view, EventType.click, EventType.add_to_cart, EventType.conversion]] = 1.0, 1.0, 2.0, 3.0


@dataclass(frozen=True, slots=True)
class Interactions:
    """Columns of m interactions, sessions oldest first and in time order within one.

    user i32 (row; -1: anonymous or unknown), item i32 (row; -1: none), kind i8 (EventType), at i64 (happened), known_at i64
    (received; never before `at` in a sound log), session u64, position i32, pieces i64, minor i64 (money in hundredths),
    campaign u64 (0: none).
    """

    user: I32
    item: I32
    kind: I8
    at: I64
    known_at: I64
    session: U64
    position: I32
    pieces: I64
    minor: I64
    campaign: U64

    def __len__(self) -> int:
        return len(self.at)

    def take(self, rows: npt.NDArray[Any]) -> Interactions:
        """The given rows (indices or a mask), in that order."""
        return Interactions(*(getattr(self, one.name)[rows] for one in fields(self)))

    def known_before(self, when: int) -> Interactions:
        """Only what had been received before `when`."""
        return self.take(self.known_at < when)

    def save(self, folder: Path) -> None:
        """One .npy a column."""
        folder.mkdir(parents=True, exist_ok=True)
        for one in fields(self):
            np.save(folder / f"{one.name}.npy", np.ascontiguousarray(getattr(self, one.name)), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Interactions:
        """What `save` wrote."""
        return cls(*(np.load(folder / f"{one.name}.npy", allow_pickle=False) for one in fields(cls)))

    @classmethod
    def empty(cls) -> Interactions:
        """No interaction at all."""
        i64, i32 = np.empty(0, np.int64), np.empty(0, np.int32)
        u64 = np.empty(0, np.uint64)
        return cls(i32, i32, np.empty(0, np.int8), i64, i64, u64, i32, i64, i64, u64)

    @classmethod
    def join(cls, parts: Sequence[Interactions]) -> Interactions:
        """One set from parts that share no session, whole sessions in order of their start."""
        joined = cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))
        return joined.take(_session_order(joined.session, joined.at, joined.position))


def _session_order(session: U64, at: I64, position: I32) -> I64:
    """Rows by (start of their session, session, time, position)."""
    order = np.lexsort((position, at, session))
    ordered = session[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else np.empty(0, np.int64)
    began = np.repeat(at[order][starts], np.diff(np.r_[starts, len(order)]))
    final: I64 = order[np.lexsort((np.arange(len(order)), ordered, began))]
    return final


def _filled(table: pa.Table, name: str, dtype: npt.DTypeLike, absent: float) -> npt.NDArray[Any]:
    return np.ascontiguousarray(pc.fill_null(table[name], absent).to_numpy(), dtype)


def interactions_of(events: pa.Table, item_hashes: U64, user_hashes: U64) -> tuple[Interactions, dict[str, int]]:
    """Columns of some users' events (log table `events`, EVENT_COLUMNS), and what was left out, counted by reason."""
    user_hash = events["user"].to_numpy()
    kind = events["type"].to_numpy()
    bots = np.unique(user_hash[(kind == EventType.bot) & (user_hash != 0)])
    item_hash = _filled(events, "item", np.uint64, 0)
    item = find_rows(item_hashes, item_hash)
    from_bots = np.isin(user_hash, bots)
    lost = (item_hash != 0) & (item < 0) & ~from_bots
    keep = np.flatnonzero(~from_bots & ~lost)
    counts = {"kept": len(keep), "of bots": int(from_bots.sum()), "of unknown items": int(lost.sum())}
    session = _sessions(
        user_hash, events["ts"].to_numpy(), events["event_id"].to_numpy(), _filled(events, "session", np.uint64, 0)
    )
    rows = Interactions(
        user=find_rows(user_hashes, user_hash),
        item=item,
        kind=kind,
        at=events["ts"].to_numpy(),
        known_at=events["ingested_at"].to_numpy(),
        session=session,
        position=_filled(events, "position", np.int32, 0),
        pieces=_filled(events, "quantity", np.int64, 0),
        minor=np.rint(_filled(events, "amount", np.float64, 0.0) * 100).astype(np.int64),
        campaign=_filled(events, "campaign", np.uint64, 0),
    ).take(keep)
    return rows.take(_session_order(rows.session, rows.at, rows.position)), counts


def _sessions(user: U64, ts: I64, event_id: U64, given: U64) -> U64:
    """The event's own session; where it has none, runs of a user's events without a pause of 30 minutes. An anonymous
    event without a session is a session of its own."""
    session = given.copy()
    rows = np.flatnonzero(given == 0)
    rows = rows[np.lexsort((event_id[rows], ts[rows], user[rows]))]
    if len(rows) == 0:
        return session
    new_user = np.r_[True, user[rows][1:] != user[rows][:-1]]
    pause = np.r_[True, np.diff(ts[rows]) > SESSION_GAP_US]
    run = np.flatnonzero(new_user | pause | (user[rows] == 0))
    head = np.repeat(rows[run], np.diff(np.r_[run, len(rows)]))
    session[rows] = hash_key(1, user[head], ts[head], event_id[head])
    return session


@dataclass(frozen=True, slots=True)
class Sessions:
    """Item sequences: items i32[k], offsets i64[s + 1], strength f32[k], at and known_at i64[k], user i32[s], oldest first.
    An item seen several times in a row stands once, at its first time, with its greatest strength."""

    items: I32
    offsets: I64
    strength: npt.NDArray[np.float32]
    at: I64
    known_at: I64
    user: I32

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(cls, log: Interactions) -> Sessions:
        """Views, clicks, carts and conversions of items, by session."""
        rows = np.flatnonzero((log.item >= 0) & np.isin(log.kind, SHOWN))
        part = log.take(rows)
        part = part.take(
            _session_order(part.session, part.at, part.position)
        )  # by what is shown, not by what came before it
        new = np.r_[True, part.session[1:] != part.session[:-1]] if len(part) else np.empty(0, np.bool_)
        runs = np.flatnonzero(new | np.r_[True, part.item[1:] != part.item[:-1]]) if len(part) else np.empty(0, np.int64)
        strength = np.maximum.reduceat(_STRENGTH[part.kind], runs) if len(runs) else np.empty(0, np.float32)
        starts = np.flatnonzero(new[runs])
        offsets = lengths_to_offsets(np.diff(np.r_[starts, len(runs)])) if len(starts) else np.zeros(1, np.int64)
        return cls(part.item[runs], offsets, strength, part.at[runs], part.known_at[runs], part.user[runs][starts])
