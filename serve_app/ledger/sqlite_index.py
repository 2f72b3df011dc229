"""Where each kept decision lies in the journal: the newest in memory, the rest in the `decisions` table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple

from serve_app.errors import DamagedArtifact
from serve_app.ledger.block import checksum, decode_block
from serve_app.ledger.sqlite_file import to_key

__all__ = ["DecisionIndex", "JournalReader", "Place"]

_CACHED = 4


class Place(NamedTuple):
    """A decision's place in the journal; idem and digest are b"" where it had no idempotency key."""

    seq: int
    row: int
    at: int
    idem: bytes
    digest: bytes


class DecisionIndex:
    """Look-up by (user, request id) and by idempotency key. `fresh` is not yet in the table, `flushing` is on its way."""

    def __init__(self) -> None:
        self.fresh: dict[tuple[int, int], Place] = {}
        self.flushing: dict[tuple[int, int], Place] = {}
        self._keys: dict[bytes, Place] = {}

    def add(self, users: list[int], requests: list[int], places: list[Place]) -> None:
        """Index the rows of one block."""
        self.fresh.update(zip(zip(users, requests, strict=True), places, strict=True))
        self._keys.update((place.idem, place) for place in places if place.idem)

    def find(self, connection: sqlite3.Connection, user: int, request_id: int) -> tuple[int, int] | None:
        """(seq, row) of a decision."""
        place = self.fresh.get((user, request_id)) or self.flushing.get((user, request_id))
        if place is not None:
            return place.seq, place.row
        query = "SELECT seq, row FROM decisions WHERE key = ? AND request_id = ? ORDER BY seq DESC LIMIT 1"
        found: tuple[int, int] | None = connection.execute(query, (to_key(user), to_key(request_id))).fetchone()
        return found

    def find_key(self, connection: sqlite3.Connection, user: int, idem: bytes, since: int) -> Place | None:
        """The newest decision under an idempotency key, not older than `since`."""
        place = self._keys.get(idem)
        if place is None:
            query = "SELECT seq, row, at, idem, digest FROM decisions WHERE key = ? AND idem = ? ORDER BY seq DESC LIMIT 1"
            found = connection.execute(query, (to_key(user), idem)).fetchone()
            place = Place(*found) if found else None
        return place if place is not None and place.at >= since else None

    def begin_flush(self) -> list[tuple[int, int]]:
        """Everything fresh starts its way into the table; returns it in the table's order."""
        self.flushing, self.fresh = self.fresh, {}
        return sorted(self.flushing, key=lambda pair: (pair[0], self.flushing[pair].seq))

    def rows(self, pairs: list[tuple[int, int]]) -> Iterator[tuple[Any, ...]]:
        """Rows of the table for `pairs`; those erased meanwhile are left out."""
        for user, request in pairs:
            place = self.flushing.get((user, request))
            if place is not None:
                idem, digest = (place.idem, place.digest) if place.idem else (None, None)
                yield to_key(user), place.seq, place.row, to_key(request), place.at, idem, digest

    def end_flush(self) -> None:
        """What was flushing is in the table."""
        for place in self.flushing.values():
            if place.idem and self._keys.get(place.idem) is place:
                del self._keys[place.idem]
        self.flushing = {}

    def forget(self, connection: sqlite3.Connection, user: int) -> set[int]:
        """Erase a user's places; returns the blocks they were in."""
        blocks = {seq for (seq,) in connection.execute("SELECT DISTINCT seq FROM decisions WHERE key = ?", (to_key(user),))}
        connection.execute("DELETE FROM decisions WHERE key = ?", (to_key(user),))
        for places in (self.fresh, self.flushing):
            for pair in [pair for pair in places if pair[0] == user]:
                place = places.pop(pair)
                blocks.add(place.seq)
                self._keys.pop(place.idem, None)
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
