"""The users of a ledger in memory: versions, state, histories and recents as columns, whole batches at a time.

It knows nothing of keys, records or durability: the memory backend keeps those beside it, the SQLite backend writes a
journal first. Names of zones and regions lie here as the store's numbers (`serve_app.ledger.names`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from serve_app.batch import lengths_to_offsets
from serve_app.errors import InvalidInput
from serve_app.ledger.arena import Arena
from serve_app.ledger.columns import HISTORY_DTYPE, NEVER_KNOWN, Histories, LedgerView, Recents, UserState
from serve_app.ledger.hashing import RowIndex
from serve_app.ledger.names import NameTable, region_names, zone_names
from serve_app.ledger.protocol import Consent, LedgerSettings, UserChanges, UserRecord
from serve_app.ledger.refunds import refund_entries

__all__ = [
    "RECENT_DTYPE",
    "STATE_DTYPE",
    "UserTable",
    "apply_changes",
    "blank_state",
    "entries_until",
    "record_of",
]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

RECENT_DTYPE = np.dtype([("at", "i8"), ("item", "u8")])
# One user's state as stores keep it. zone and region: numbers of the store's name tables. erased: only the version is left.
STATE_DTYPE = np.dtype(
    [
        ("version", "i8"),
        ("known_since", "i8"),
        ("consent_ad_at", "i8"),
        ("consent_night_at", "i8"),
        ("customer_until", "i8"),
        ("zone", "i2"),
        ("region", "i2"),
        ("reachable", "u2"),
        ("opted_out", "u2"),
        ("erased", "i8"),
    ]
)
_COPIED = ("consent_ad_at", "consent_night_at", "customer_until", "reachable", "opted_out")


def blank_state(rows: int) -> npt.NDArray[np.void]:
    """State rows of users nobody has written."""
    state = np.zeros(rows, STATE_DTYPE)
    state["known_since"] = NEVER_KNOWN
    return state


def apply_changes(state: npt.NDArray[np.void], row: int, changes: UserChanges, zones: NameTable, regions: NameTable) -> None:
    """Apply `changes` to state[row]; the version is left alone."""
    if changes.consent_ad is not None:
        state["consent_ad_at"][row] = changes.consent_ad.at
    if changes.consent_night is not None:
        state["consent_night_at"][row] = changes.consent_night.at
    for name in ("customer_until", "reachable", "opted_out"):
        value = getattr(changes, name)
        if value is not None:
            info = np.iinfo(STATE_DTYPE[name])
            if not info.min <= value <= info.max:
                raise InvalidInput(f"{value} does not fit {STATE_DTYPE[name]}", field=name)
            state[name][row] = value
    if changes.zone is not None:
        state["zone"][row] = zones.stored(changes.zone)
    if changes.region is not None:
        state["region"][row] = regions.stored(changes.region)


class UserTable:
    """All users of one ledger. Not thread-safe: the backend holds a lock."""

    def __init__(self, settings: LedgerSettings) -> None:
        self.index = RowIndex()
        self.state = blank_state(0)
        self.histories = Arena(HISTORY_DTYPE)
        self.recents_of = Arena(RECENT_DTYPE)
        self.zones, self.regions = zone_names(), region_names()
        self.horizon_us = settings.history_horizon_us
        self._max_entries = settings.history_max_entries
        self._max_recents = settings.recents_max
        refund_entries(np.empty(0, HISTORY_DTYPE), 0, 0)  # compiles when a ledger opens, not while users wait for it

    @property
    def count(self) -> int:
        """Rows in use, erased users included."""
        return self.index.count

    def rows_for(self, users: U64) -> I64:
        """i64[n]: rows of `users`, created where missing."""
        rows = self.index.insert(users)
        if self.count > len(self.state):
            capacity = max(1024, 2 * self.count)
            self.state = np.concatenate((self.state, blank_state(capacity - len(self.state))))
            self.histories.grow_rows(capacity)
            self.recents_of.grow_rows(capacity)
        return rows

    def versions(self, users: U64) -> I64:
        """i64[n]; 0 for users never written."""
        rows = self.index.find(users)
        if self.count == 0:
            return np.zeros(len(users), np.int64)
        return np.where(rows >= 0, self.state["version"][rows], 0)

    def view(self, users: U64) -> LedgerView:
        """What `Ledger.read` returns."""
        rows = self.index.find(users)
        state = self.state_of(rows)
        entries, offsets = self.histories.gather(rows)
        known = state["known_since"].copy()
        return LedgerView(users, state["version"].copy(), self.columns(state), Histories(entries, offsets), known)

    def state_of(self, rows: I64) -> npt.NDArray[np.void]:
        """Copies of the state rows; row -1 is a user nobody has written."""
        if self.count == 0:
            return blank_state(len(rows))
        state = self.state[rows]
        unwritten = rows < 0
        if unwritten.any():
            state[unwritten] = blank_state(1)[0]
        return state

    def columns(self, state: npt.NDArray[np.void]) -> UserState:
        """State rows as the batch carries them."""
        zone, region = self.zones.process_of(state["zone"]), self.regions.process_of(state["region"])
        return UserState(zone, region, *(state[name].copy() for name in _COPIED))

    def commit(self, users: U64, decided_at: I64, entries: npt.NDArray[np.void], offsets: I64) -> I64:
        """Append entries and raise versions of distinct users whose versions were checked; returns the new versions."""
        rows = self.rows_for(users)
        self.state["version"][rows] += 1
        self.state["erased"][rows] = 0
        if len(entries):
            self.histories.append(rows, entries, offsets)
            grown = offsets[1:] > offsets[:-1]
            longer = rows[grown]
            newest = self.state["known_since"][longer]
            self.histories.trim(longer, decided_at[grown] - self.horizon_us, self._max_entries, newest)
            self.state["known_since"][longer] = newest
        return self.state["version"][rows]

    def refund(self, user: int, request_id: int, slot: int) -> bool:
        """Flag the factual entry of (request_id, slot); raises the version when something changed."""
        rows = self.index.find(np.asarray([user], np.uint64))
        if rows[0] < 0:
            return False
        row = int(rows[0])
        start, length = int(self.histories.start[row]), int(self.histories.length[row])
        entries = self.histories.records[start : start + length]
        if not refund_entries(entries, request_id, slot):
            return False
        self.state["version"][row] += 1
        return True

    def put(self, user: int, changes: UserChanges) -> int:
        """Apply changes to one user; returns the new version. Nothing changes when it raises."""
        rows = self.index.find(np.asarray([user], np.uint64))
        state = self.state_of(rows)
        apply_changes(state, 0, changes, self.zones, self.regions)
        state["version"][0] += 1
        state["erased"][0] = 0
        rows = self.rows_for(np.asarray([user], np.uint64))
        self.state[rows] = state
        return int(state["version"][0])

    def put_many(self, users: U64, columns: UserState) -> I64:
        """Replace the state of distinct users; returns the new versions."""
        zone, region = self.zones.stored_of(columns.zone), self.regions.stored_of(columns.region)
        rows = self.rows_for(users)
        for name in _COPIED:
            self.state[name][rows] = getattr(columns, name)
        self.state["zone"][rows], self.state["region"][rows] = zone, region
        self.state["version"][rows] += 1
        self.state["erased"][rows] = 0
        return self.state["version"][rows]

    def record(self, user: int, consents: tuple[Consent, Consent] | None) -> UserRecord | None:
        """One user's state with names; None for a user never written, or erased. `consents`: as put, with proofs."""
        rows = self.index.find(np.asarray([user], np.uint64))
        return record_of(user, self.state_of(rows)[0], consents, self.zones, self.regions)

    def load(self, users: U64, state: npt.NDArray[np.void], histories: Histories, recents: Histories) -> I64:
        """Make stored users (distinct) the table's rows; `recents.entries` are RECENT_DTYPE. Returns the rows."""
        rows = self.rows_for(users)
        self.state[rows] = state
        self.histories.replace(rows, histories.entries, histories.offsets)
        self.recents_of.replace(rows, recents.entries, recents.offsets)
        return rows

    def erase(self, user: int) -> bool:
        """Blank everything of a user but the version, which rises by one. False when nothing was known."""
        rows = self.index.find(np.asarray([user], np.uint64))
        if rows[0] < 0 or (self.state["erased"][rows[0]] and not self.recents_of.length[rows[0]]):
            return False
        version = self.state["version"][rows] + 1
        self.state[rows] = blank_state(1)
        self.state["version"][rows] = version
        self.state["erased"][rows] = 1
        for arena in (self.histories, self.recents_of):
            start, room = int(arena.start[rows[0]]), int(arena.room[rows[0]])
            arena.records[start : start + room] = np.zeros(1, arena.dtype)
            arena.length[rows] = 0
        return True

    def record_events(self, users: U64, items: U64, at: I64) -> I64:
        """Append to recents in row order; returns the distinct rows touched."""
        order = np.argsort(users, kind="stable")
        distinct, counts = np.unique(users, return_counts=True)
        new = np.empty(len(users), RECENT_DTYPE)
        new["at"], new["item"] = at[order], items[order]
        rows = self.rows_for(distinct)
        self.recents_of.append(rows, new, lengths_to_offsets(counts))
        never = np.full(len(rows), NEVER_KNOWN)
        self.recents_of.trim(rows, never, self._max_recents, never.copy())
        return rows

    def recents(self, users: U64) -> Recents:
        """What `Ledger.recents` returns."""
        records, offsets = self.recents_of.gather(self.index.find(users))
        return Recents(records["item"].copy(), records["at"].copy(), offsets)

    def snapshot(self, users: U64, as_of: int, chunk: int) -> Iterator[LedgerView]:
        """Views of `users`, `chunk` at a time, without entries later than `as_of`."""
        for start in range(0, len(users), chunk):
            yield entries_until(self.view(users[start : start + chunk]), as_of)

    def known_users(self) -> U64:
        """Users written and not erased, in hash order."""
        state = self.state[: self.count]
        return np.sort(self.index.keys[(state["version"] > 0) & (state["erased"] == 0)])


def record_of(
    user: int, state: np.void, consents: tuple[Consent, Consent] | None, zones: NameTable, regions: NameTable
) -> UserRecord | None:
    """One state row with names; None for a user never written, or erased."""
    if state["version"] == 0 or state["erased"]:
        return None
    ad, night = consents or (Consent(int(state["consent_ad_at"])), Consent(int(state["consent_night_at"])))
    until, reachable, opted_out = (int(state[name]) for name in ("customer_until", "reachable", "opted_out"))
    zone, region = zones.name(int(state["zone"])), regions.name(int(state["region"]))
    return UserRecord(user, int(state["version"]), ad, night, until, reachable, opted_out, zone, region)


def entries_until(view: LedgerView, as_of: int) -> LedgerView:
    """The same users with the entries at <= as_of."""
    keep = view.histories.entries["at"] <= as_of
    counts = np.zeros(len(keep) + 1, np.int64)
    np.cumsum(keep, out=counts[1:])
    kept = Histories(view.histories.entries[keep], counts[view.histories.offsets])
    return LedgerView(view.users, view.versions, view.state, kept, view.known_since)
