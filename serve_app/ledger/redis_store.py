"""What all parts of the Redis ledger share: the connection, the scripts, the settings, and the counters it has seen."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.errors import LedgerUnavailable, OutcomeUnknown
from serve_app.ledger.columns import CommitStatus
from serve_app.ledger.protocol import LedgerSettings
from serve_app.ledger.redis_keys import CATALOGUE, META_KEYS, SHARDS, Command, Script, command
from serve_app.ledger.redis_plans import Piece, answered
from serve_app.ledger.redis_wire import Wire, checked

__all__ = ["RedisStore"]

I64 = npt.NDArray[np.int64]
_LAYOUT = b"2"
_LAYOUT_KEY = "hc:{catalogue}:layout"


class RedisStore:
    """Open, and speaking to the right kind of store."""

    def __init__(self, wire: Wire, settings: LedgerSettings) -> None:
        self.settings = settings
        self._wire = wire
        names = ("commit", "put", "erase", "queue", "look")
        self._commit_script, self._put, self._erase, self._queue, self._look = (Script(f"redis_{n}.lua") for n in names)
        self._lock = threading.Lock()
        self._seen = np.zeros(SHARDS, np.int64)
        self._require_layout()

    def _require_layout(self) -> None:
        """A store of another layout would read as empty, and every cap start anew."""
        found = self._catalogue(command("GET", _LAYOUT_KEY), write=False)
        if found is None:
            if not any(key for link in self._wire.primaries() for key in link.scan("hc:{*}:n")):
                self._catalogue(command("SET", _LAYOUT_KEY, _LAYOUT), write=True)
                return
            found = b"1"
        if found != _LAYOUT:
            text = f"Redis holds a ledger of layout {found.decode()}, this version reads {_LAYOUT.decode()}"
            raise LedgerUnavailable(text, field="ledger", hint="name another server or database number")

    def _one(self, shard: int, one: Command, *, write: bool) -> Any:
        """The reply to one command of one shard."""
        return checked(self._wire.run([one], [shard], write=write)[0])

    def _catalogue(self, one: Command, *, write: bool) -> Any:
        return self._one(CATALOGUE, one, write=write)

    def _queue_call(self, shard: int, *arguments: Any) -> Command:
        """A call of redis_queue.lua."""
        return self._queue.call([META_KEYS[shard]], *arguments)

    def _saw(self, shards: npt.NDArray[np.int64], counters: I64) -> None:
        with self._lock:
            self._seen[shards] = np.maximum(self._seen[shards], counters)

    def _write_pieces(self, pieces: Sequence[Piece], rows: int) -> tuple[npt.NDArray[np.int8], I64, list[tuple[int, bytes]]]:
        """Status and version of each row (0 where not answered), and (row, stored record) pairs.

        Raises LedgerUnavailable when no call was executed, OutcomeUnknown when none was answered."""
        status, versions = np.full(rows, CommitStatus.unavailable, np.int8), np.zeros(rows, np.int64)
        stored: list[tuple[int, bytes]] = []
        replies = self._wire.run([piece.command for piece in pieces], [piece.route for piece in pieces], write=True)
        for piece, reply in zip(pieces, replies, strict=True):
            if isinstance(reply, OutcomeUnknown):
                status[piece.rows] = CommitStatus.unknown
            elif not isinstance(reply, LedgerUnavailable):
                said = answered(reply)
                self._saw(piece.shards, said.counters)
                status[piece.rows], versions[piece.rows] = said.status, said.versions
                stored += [(int(piece.rows[row]), record) for row, record in said.stored]
        if all(isinstance(reply, LedgerUnavailable | OutcomeUnknown) for reply in replies):
            raise next((reply for reply in replies if isinstance(reply, OutcomeUnknown)), replies[0])
        return status, versions, stored
