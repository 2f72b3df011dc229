"""Where each kept decision lies in the journal: the newest in memory, the rest in the `decisions` table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact
from serve_app.ledger.block import checksum, decode_block
from serve_app.ledger.sqlite_file import to_key, to_keys

__all__ = ["DecisionIndex", "JournalReader", "Place"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
_CACHED = 4


class Place(NamedTuple):
    """A keyed decision's place in the journal."""

    seq: int
    row: int
    at: int
    digest: bytes


# A decision's place in the journal: block and row in it.
_PLACE = np.dtype([("user", "u8"), ("request", "u8"), ("seq", "i8"), ("at", "i8"), ("row", "i8")])


class _Places:
    """Places of one generation: columns that grow, and the idempotency key of each keyed row."""

    def __init__(self) -> None:
        self._rows = np.empty(1024, _PLACE)
        self.count = 0
        self.keys: dict[tuple[int, int], tuple[bytes, bytes]] = {}

    @property
    def rows(self) -> npt.NDArray[np.void]:
        return self._rows[: self.count]

    def add(self, users: U64, requests: U64, at: I64, seq: int, keys: Sequence[bytes], digests: Sequence[bytes]) -> None:
        end = self.count + len(users)
        if end > len(self._rows):
            grown = np.empty(2 * end, _PLACE)
            grown[: self.count] = self.rows
            self._rows = grown
        new = self._rows[self.count : end]
        new["user"], new["request"], new["at"], new["seq"], new["row"] = users, requests, at, seq, np.arange(len(users))
        for row, key in enumerate(keys):
            if key:
                self.keys[seq, row] = (key, digests[row])
        self.count = end

    def find(self, user: int, request_id: int) -> tuple[int, int] | None:
        rows = self.rows
        found = np.flatnonzero((rows["user"] == np.uint64(user)) & (rows["request"] == np.uint64(request_id)))
        return (int(rows["seq"][found[-1]]), int(rows["row"][found[-1]])) if len(found) else None

    def forget(self, user: int) -> list[tuple[int, int]]:
        """Erase a user's rows; returns their places."""
        rows = self.rows
        mine = rows["user"] == np.uint64(user)
        places = list(zip(rows["seq"][mine].tolist(), rows["row"][mine].tolist(), strict=True))
        kept = rows[~mine]
        self.count = len(kept)
        self.rows[:] = kept
        return places


class DecisionIndex:
    """Look-up by (user, request id) and by idempotency key. Fresh places are not yet in the table, flushing ones are on
    their way."""

    def __init__(self) -> None:
        self._fresh, self._flushing = _Places(), _Places()
        self._erased: set[int] = set()
        self._keys: dict[bytes, Place] = {}

    def add(self, users: U64, requests: U64, at: I64, seq: int, keys: Sequence[bytes], digests: Sequence[bytes]) -> None:
        """Index the rows of block `seq`; rows of user 0 and request 0 were erased. keys and digests may be empty."""
        self._fresh.add(users, requests, at, seq, keys, digests)
        for row, key in enumerate(keys):
            if key:
                self._keys[key] = Place(seq, row, int(at[row]), digests[row])

    def find(self, connection: sqlite3.Connection, user: int, request_id: int) -> tuple[int, int] | None:
        """(seq, row) of a decision."""
        place = self._fresh.find(user, request_id) or self._flushing.find(user, request_id)
        if place is not None:
            return place
        query = "SELECT seq, row FROM decisions WHERE key = ? AND request_id = ? ORDER BY seq DESC LIMIT 1"
        found: tuple[int, int] | None = connection.execute(query, (to_key(user), to_key(request_id))).fetchone()
        return found

    def find_key(self, connection: sqlite3.Connection, user: int, idem: bytes, since: int) -> Place | None:
        """The newest decision under an idempotency key, not older than `since`."""
        place = self._keys.get(idem)
        if place is None:
            query = "SELECT seq, row, at, digest FROM decisions WHERE key = ? AND idem = ? ORDER BY seq DESC LIMIT 1"
            found = connection.execute(query, (to_key(user), idem)).fetchone()
            place = Place(*found) if found else None
        return place if place is not None and place.at >= since else None

    def begin_flush(self) -> npt.NDArray[np.void]:
        """Everything fresh starts its way into the table; returns it in the table's order."""
        self._flushing, self._fresh, self._erased = self._fresh, _Places(), set()
        rows = self._flushing.rows
        return rows[np.lexsort((rows["row"], rows["seq"], rows["user"]))]

    def rows(self, places: npt.NDArray[np.void]) -> Iterator[tuple[Any, ...]]:
        """Rows of the table for `places`; those erased meanwhile are left out."""
        keys, requests = to_keys(places["user"].copy()), to_keys(places["request"].copy())
        cells = zip(keys, *(places[name].tolist() for name in ("seq", "row")), requests, places["at"].tolist(), strict=True)
        for cell in cells:
            if cell[0] not in self._erased:
                yield *cell, *self._flushing.keys.get((cell[1], cell[2]), (None, None))

    def end_flush(self) -> None:
        """What was flushing is in the table."""
        for (seq, row), (key, _) in self._flushing.keys.items():
            place = self._keys.get(key)
            if place is not None and (place.seq, place.row) == (seq, row):
                del self._keys[key]
        self._flushing = _Places()

    def forget(self, connection: sqlite3.Connection, user: int) -> set[int]:
        """Erase a user's places; returns the blocks they were in."""
        blocks = {seq for (seq,) in connection.execute("SELECT DISTINCT seq FROM decisions WHERE key = ?", (to_key(user),))}
        connection.execute("DELETE FROM decisions WHERE key = ?", (to_key(user),))
        self._erased.add(to_key(user))
        for generation in (self._fresh, self._flushing):
            for place in generation.forget(user):
                blocks.add(place[0])
                self._keys.pop(generation.keys.pop(place, (b"", b""))[0], None)
        return blocks


class JournalReader:
    """Decoded blocks, the last few kept: a retried batch asks for many rows of one block."""

    def __init__(self) -> None:
        self._cache: dict[int, dict[str, Any]] = {}

    def block(self, connection: sqlite3.Connection, seq: int) -> dict[str, Any]:
        """The columns of a block. Raises DamagedArtifact."""
        if seq not in self._cache:
            found = connection.execute("SELECT sum, body FROM blocks WHERE seq = ?", (seq,)).fetchone()
            if found is None:
                raise DamagedArtifact(f"journal block {seq} is missing", hint="run `hindcast ledger check`")
            while len(self._cache) >= _CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[seq] = checked_block(seq, *found)
        return self._cache[seq]

    def forget(self) -> None:
        """Blocks were rewritten."""
        self._cache.clear()


def checked_block(seq: int, expected: int, body: bytes) -> dict[str, Any]:
    """Decode a stored block after comparing its checksum."""
    if checksum(body) != expected:
        raise DamagedArtifact(f"journal block {seq} fails its checksum", hint="restore the ledger from a copy")
    return decode_block(body)
