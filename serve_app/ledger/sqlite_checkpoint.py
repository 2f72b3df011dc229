"""Write-behind of the SQLite ledger: user rows and the decision index follow the journal in rounds, in key order.

A commit to a large population touches one page per user; the journal touches a few pages per batch. So the journal
makes a write durable, and rounds of short transactions bring the tables up to date, each page once per round. A crash in
between loses nothing: rows say which journal position they contain, and later blocks are replayed at the next start.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact
from serve_app.ledger.block import checksum, encode_block
from serve_app.ledger.sqlite_file import to_keys, user_rows
from serve_app.ledger.sqlite_index import DecisionIndex, checked_block
from serve_app.ledger.table import UserTable

__all__ = ["Checkpoint"]

_LOG = logging.getLogger("hindcast.ledger")
I64 = npt.NDArray[np.int64]
_SLICE = 2_000
_BLOCKS = 50
_FORGOTTEN = 500
_JOINED_BYTES = 1 << 20
# Blocks are found by (kind, at): a look at all of them would take longer every day.
_FORGET_VIEWED = "DELETE FROM blocks WHERE seq IN (SELECT seq FROM blocks WHERE kind = 2 AND seq <= ? LIMIT ?)"
_FORGET_EVENT_IDS = "DELETE FROM blocks WHERE seq IN (SELECT seq FROM blocks WHERE kind = 3 AND at < ? LIMIT ?)"
PUT_USER = "INSERT OR REPLACE INTO users VALUES (?, ?, ?, ?, ?, ?)"
_PUT_PLACE = "INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?)"


class Checkpoint:
    """The current round, and which rows the next one must write."""

    def __init__(
        self,
        table: UserTable,
        index: DecisionIndex,
        every_rows: int,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A round begins once `every_rows` changes wait, or the first of them has waited for `every_s`: what waits is in
        memory, and a start replays it."""
        self._table, self._index, self._every, self._every_s, self._clock = table, index, every_rows, every_s, clock
        self._dirty = np.zeros(0, np.bool_)
        self._since, self._since_when = 0, 0.0
        self._users: I64 = np.zeros(0, np.int64)
        self._places = index.begin_flush()
        self._target = 0
        self._running = False
        self.reached = self._joined = 0

    def start_at(self, reached: int) -> None:
        """The tables contain the journal up to here."""
        self.reached = self._joined = reached

    def touch(self, rows: I64) -> None:
        """Table rows changed by a journal block."""
        if len(self._dirty) < self._table.count:
            grown = np.zeros(len(self._table.state), np.bool_)
            grown[: len(self._dirty)] = self._dirty
            self._dirty = grown
        self._dirty[rows] = True
        if self._since == 0:
            self._since_when = self._clock()
        self._since += len(rows)

    def written(self, rows: I64) -> None:
        """Table rows that were written through."""
        self._dirty[rows[rows < len(self._dirty)]] = False

    def step(self, connection: sqlite3.Connection, seq: int, horizons: tuple[int, int], *, idle: bool) -> bool:
        """One short transaction of the current round, starting one when it is time; True while the round goes on.

        seq: the newest journal position. horizons: commit blocks, and event ids, older than these may go.
        """
        if not self.waits(idle=idle):
            return False
        if not self._running:
            self._begin(seq)
        connection.execute("BEGIN")
        self._slice(connection, seq, horizons)
        connection.execute("COMMIT")
        # A round that ends while nobody waits is followed by the next: a ledger that closes is then wholly in its tables.
        return self._running or (idle and self._since > 0)

    def waits(self, *, idle: bool) -> bool:
        """Whether `step` has anything to do now."""
        return self._running or (self._since > 0 and (idle or self._due()))

    def _due(self) -> bool:
        return self._since >= self._every or self._clock() - self._since_when >= self._every_s

    def _begin(self, seq: int) -> None:
        rows = np.flatnonzero(self._dirty)
        self._users = rows[np.argsort(self._table.index.keys[rows], kind="stable")]
        self._places = self._index.begin_flush()
        self._target, self._since, self._running = seq, 0, True

    def _slice(self, connection: sqlite3.Connection, seq: int, horizons: tuple[int, int]) -> None:
        if len(self._users):
            rows, self._users = self._users[:_SLICE], self._users[_SLICE:]
            connection.executemany(PUT_USER, user_rows(self._table, rows, seq))
            self._dirty[rows] = False
        elif len(self._places):
            places, self._places = self._places[: 2 * _SLICE], self._places[2 * _SLICE :]
            connection.executemany(_PUT_PLACE, self._index.rows(places))
        else:
            if self.reached != self._target:
                self.reached = self._target
                self._index.end_flush()
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('checkpoint', ?)", (self.reached,))
            self._running = self._forget(connection, horizons)

    def _forget(self, connection: sqlite3.Connection, horizons: tuple[int, int]) -> bool:
        """Drop some of the blocks that nothing needs any more; True while there may be more."""
        commits_since, ids_since = horizons
        for statement, bound in ((_FORGET_VIEWED, self.reached), (_FORGET_EVENT_IDS, ids_since)):
            if connection.execute(statement, (bound, _FORGOTTEN)).rowcount == _FORGOTTEN:
                return True
        return self._join_event_ids(connection) or self._expire(connection, commits_since)

    def _join_event_ids(self, connection: sqlite3.Connection) -> bool:
        """Some of the blocks of event ids of this round become one: a start reads all there are. True while there may be
        more."""
        query = "SELECT seq, at, sum, body FROM blocks WHERE seq > ? AND seq <= ? AND +kind = 3 ORDER BY seq LIMIT ?"
        found, size, more = [], 0, False
        for row in connection.execute(query, (self._joined, self.reached, _FORGOTTEN)):
            found.append(row)
            size += len(row[3])
            if more := len(found) == _FORGOTTEN or size > _JOINED_BYTES:
                break
        if len(found) > 1:
            ids = np.concatenate([checked_block(seq, expected, body)["ids"] for seq, _, expected, body in found])
            body, at, kept = encode_block({"ids": ids}), max(at for _, at, _, _ in found), found[-1][0]
            change = "UPDATE blocks SET at = ?, sum = ?, body = ? WHERE seq = ?"
            connection.execute(change, (at, checksum(body), body, kept))
            connection.executemany("DELETE FROM blocks WHERE seq = ?", ((seq,) for seq, _, _, _ in found[:-1]))
        self._joined = found[-1][0] if more else self.reached
        return more

    def _expire(self, connection: sqlite3.Connection, horizon: int) -> bool:
        """Drop acknowledged commit blocks older than `horizon`, with their places; True while there may be more."""
        query = (
            "SELECT seq, sum, body FROM blocks WHERE kind = 1 AND seq <= ? AND at < ? AND (acked = 1 OR records = 0) "
            "ORDER BY at, seq LIMIT ?"
        )
        old = connection.execute(query, (self.reached, horizon, _BLOCKS)).fetchall()
        for seq, expected, body in old:
            try:
                keys = sorted(to_keys(checked_block(seq, expected, body)["users"]))
            except DamagedArtifact as error:
                _LOG.error("an old block goes unread: %s", error)
                connection.execute("DELETE FROM decisions WHERE seq = ?", (seq,))
            else:
                connection.executemany("DELETE FROM decisions WHERE key = ? AND seq = ?", ((key, seq) for key in keys))
            connection.execute("DELETE FROM blocks WHERE seq = ?", (seq,))
        return len(old) == _BLOCKS
