"""One bucket group of the log, read: opportunities, deliveries that failed, histories at the start."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.batch import lengths_to_offsets
from serve_app.ledger.columns import HISTORY_DTYPE, Histories
from serve_app.log.reader import BucketGroup, read_files
from serve_app.vocabulary import EventType
from simulators.replay.histories import Failures
from simulators.replay.opportunities import COLUMNS_READ, Opportunities, opportunities_of
from simulators.replay.rewards import EVENT_COLUMNS

__all__ = ["TABLES_READ", "Partition", "read_partition"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

TABLES_READ = ("requests", "candidates", "decisions", "events", "ledger_snapshot")


@dataclass(frozen=True)
class Partition:
    """asked: every notification request from the snapshot on. start: histories of `asked.users` at the snapshot;
    known_since i64[u]: each is complete for later times. events: of the same users, `EVENT_COLUMNS`, each once; copies: how
    many rows of them stood there again."""

    asked: Opportunities
    start: Histories
    known_since: I64
    events: pa.Table
    copies: int = 0

    def bots(self) -> U64:
        """u64[k]: users of `asked` that any event of the log calls a bot, ascending."""
        told = self.events.filter(pc.equal(self.events["type"], int(EventType.bot)))["user"].to_numpy()
        return np.intersect1d(told, self.asked.users)

    def with_asked(self, asked: Opportunities) -> Partition:
        """A copy about the same requests told otherwise; of whatever kind of partition this is."""
        out = copy(self)
        vars(out)["asked"] = asked
        return out

    def without(self, users: U64) -> Partition:
        """The same without some users; itself where there are none."""
        if not len(users):
            return self
        requests = self.asked.batch.requests["user"]
        asked = self.asked.take(np.flatnonzero(~np.isin(requests, users)))
        rows = np.searchsorted(self.asked.users, asked.users)
        counts = np.diff(self.start.offsets)[rows]
        entries = np.repeat(self.start.offsets[rows] - lengths_to_offsets(counts)[:-1], counts) + np.arange(counts.sum())
        start = Histories(self.start.entries[entries], lengths_to_offsets(counts))
        gone = np.isin(self.events["user"].to_numpy(), users)
        return Partition(asked, start, self.known_since[rows], self.events.filter(pa.array(~gone)), self.copies)

    def failed(self) -> tuple[U64, I64, U64, npt.NDArray[np.int16]]:
        """(user, at, request, slot) of each delivery that failed, in the order of the events."""
        kind, decided = self.events["type"], self.events["decision_request_id"]
        failed = self.events.filter(pc.and_(pc.equal(kind, int(EventType.delivery_failed)), pc.is_valid(decided)))
        user, at, request = (failed[name].to_numpy() for name in ("user", "ts", "decision_request_id"))
        return user, at, request, pc.fill_null(failed["slot"], 0).to_numpy().astype(np.int16)

    def failures(self) -> Failures:
        """Failed deliveries, none applied yet."""
        return Failures.of(self.asked.users, *self.failed())


def read_partition(group: BucketGroup, *, start_at: int | None = None) -> Partition:
    """Read one group of `serve_app.log.reader.bucket_groups`, or part of one. start_at: microseconds UTC; histories come
    from each user's newest ledger snapshot at or before it (None: the oldest snapshot of all), and requests before that
    snapshot are left out."""

    def read(table: str, columns: Sequence[str] | None = None) -> pa.Table:
        return read_files(group.files.get(table, ()), table, columns=columns, buckets=(group.low, group.high))

    asked = opportunities_of(*(read(name, COLUMNS_READ[name]) for name in ("requests", "candidates", "decisions")))
    snapshots = read("ledger_snapshot")
    start, known_since, since = _start(snapshots, asked, start_at)
    later = asked.batch.requests["decided_at"] > since[asked.owner]
    if not later.all():
        asked = asked.take(np.flatnonzero(later))
        start, known_since, _ = _start(snapshots, asked, start_at)
    events, copies = _once(read("events", (*EVENT_COLUMNS, "event_id")))
    return Partition(asked, start, known_since, events, copies)


def _once(events: pa.Table) -> tuple[pa.Table, int]:
    """Each event once, and how many rows were copies: a client's second sending that came too late for compaction to notice,
    or a file that was copied. They stand beside each other in the log's order."""
    keys = [events[name].to_numpy() for name in ("user", "ts", "event_id")]
    again = np.zeros(len(events), np.bool_)
    again[1:] = np.logical_and.reduce([key[1:] == key[:-1] for key in keys])
    copies = int(again.sum())
    return (events.filter(pa.array(~again)) if copies else events).drop_columns(["event_id"]), copies


def _start(snapshots: pa.Table, asked: Opportunities, start_at: int | None) -> tuple[Histories, I64, I64]:
    """(histories, known_since, as_of) of each user of `asked`. A snapshot from before the user's first request serves a
    start before the log, too. Who has none was sent nothing until then; where no snapshot is that old and the user was
    written to before the first request, the history is known from there on only."""
    users, as_of = snapshots["user"].to_numpy(), snapshots["as_of"].to_numpy()
    first_row = np.searchsorted(asked.owner, np.arange(len(asked.users)))
    first = np.full(len(asked.users), np.iinfo(np.int64).max)
    np.minimum.at(first, asked.owner, asked.batch.requests["decided_at"])
    rows = np.flatnonzero(np.isin(users, asked.users))
    if start_at is None:
        rows = rows[as_of[rows] == (as_of.min() if len(as_of) else 0)]
    else:
        rows = rows[as_of[rows] <= np.maximum(first[np.searchsorted(asked.users, users[rows])] - 1, start_at)]
    rows = rows[np.lexsort((as_of[rows], users[rows]))]
    newest = np.concatenate([users[rows][1:] != users[rows][:-1], [True]]) if len(rows) else np.empty(0, np.bool_)
    rows = rows[newest]
    place = np.searchsorted(asked.users, users[rows])
    lowest = np.iinfo(np.int64).min
    known_since, since = np.full(len(asked.users), lowest), np.full(len(asked.users), lowest)
    written = (asked.logged["read_version"][first_row] > 0) & (first <= (as_of.min() if len(as_of) else np.inf))
    known_since[written] = first[written] - 1
    known_since[place], since[place] = snapshots["known_since"].to_numpy()[rows], as_of[rows]
    picked = snapshots.take(pa.array(rows))
    return _histories([picked["sends"], picked["shadow_sends"]], place, len(asked.users)), known_since, since


def _histories(lists: Sequence[pa.ChunkedArray], place: I64, users: int) -> Histories:
    """Entries of several list columns of the same users, in order of time within a user."""
    parts, owners = [], []
    for column in lists:
        array = column.combine_chunks()
        array = array if isinstance(array, pa.ListArray) else pa.concat_arrays(column.chunks)
        values, counts = array.flatten(), np.diff(array.offsets.to_numpy())
        entries = np.zeros(len(values), HISTORY_DTYPE)
        for name in HISTORY_DTYPE.names or ():
            entries[name] = values.field(name).to_numpy(zero_copy_only=False)
        parts.append(entries)
        owners.append(np.repeat(place, counts))
    entries, owner = np.concatenate(parts), np.concatenate(owners)
    order = np.lexsort((entries["at"], owner))
    return Histories(entries[order], lengths_to_offsets(np.bincount(owner, minlength=users)))
