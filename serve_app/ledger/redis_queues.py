"""Queues in Redis: decision records waiting for compaction, deferrals, outbox rows.

Each of the 256 shards has its own, so a sweep is one round trip of 256 short questions about sorted sets that are ordered by
time, and a second one for the rows it wants. There is no index over the shards that a crash could leave behind the truth.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from serve_app.ledger.protocol import OUTBOX_BURIED, Deferral, OutboxItem, QueueDepths, StoredRecord
from serve_app.ledger.redis_keys import META_KEYS, SHARDS, Command, command, key_of, shard_of
from serve_app.ledger.redis_store import RedisStore
from serve_app.ledger.redis_wire import checked

__all__ = ["RedisQueues"]

_PAIR, _META, _CHUNK = struct.Struct(">QQ"), struct.Struct(">6q"), struct.Struct("<qII8s")
_HEAD = np.dtype(
    [
        ("user", ">u8"),
        ("request", ">u8"),
        ("version", ">i8"),
        ("offset", "<u4"),
        ("length", "<u4"),
        ("state", "<u4"),
        ("spare", "V28"),
    ]
)
_NUMBER_BITS = 48  # an outbox row's id: shard, number
_CHUNK_BITS, _ROW_BITS = 39, 16  # a record's id: shard, chunk, row
_MOST_CHUNKS = 1_024
_WAITING = 0


class RedisQueues(RedisStore):
    """Everything of the ledger that waits for somebody."""

    def pending_records(self, limit: int, after: int = -1) -> list[StoredRecord]:
        """See Ledger. Shard after shard, oldest first within each."""
        out: list[StoredRecord] = []
        places = self._waiting_chunks(after)
        while len(out) < limit:
            some = list(islice(places, min(limit - len(out), _MOST_CHUNKS)))
            if not some:
                break
            shards = [shard for shard, _ in some]
            chunks = self._gets(shards, [key_of(shard, b"c", number.to_bytes(8, "big")) for shard, number in some])
            # None: a fail-over lost the chunk
            names = [
                key_of(shard, b"b", chunk[16:24] if chunk else b"") for shard, chunk in zip(shards, chunks, strict=True)
            ]
            for place, chunk, records in zip(some, chunks, self._gets(shards, names), strict=True):
                found = _records_of(*place, chunk, records) if chunk and records else []
                out += [one for one in found if one.id > after]
        return out[:limit]

    def _gets(self, shards: Sequence[int], keys: Sequence[bytes]) -> list[bytes | None]:
        return [checked(reply) for reply in self._wire.run([command("GET", key) for key in keys], shards, write=False)]

    def _waiting_chunks(self, after: int) -> Iterator[tuple[int, int]]:
        """(shard, chunk) that may hold records not acknowledged with ids above `after`, in order."""
        begin = divmod(after >> _ROW_BITS, 1 << _CHUNK_BITS)
        metas = self._wire.every_shard([command("GET", key) for key in META_KEYS], write=False)
        for shard, meta in enumerate(metas):
            _, _, newest, copied, _, _ = _META.unpack(meta) if meta else (0,) * 6
            yield from ((shard, number) for number in range(copied + 1, newest + 1) if (shard, number) >= begin)

    def ack_records(self, ids: Sequence[int]) -> None:
        """See Ledger."""
        rows: dict[int, list[int]] = {}
        for one in dict.fromkeys(ids):
            own = rows.setdefault(one >> _CHUNK_BITS + _ROW_BITS, [])
            own += (one >> _ROW_BITS & (1 << _CHUNK_BITS) - 1, one & (1 << _ROW_BITS) - 1)
        self._on_shards({shard: ("ack_records", *own) for shard, own in rows.items() if 0 <= shard < SHARDS})

    def due_deferrals(self, now: int, limit: int) -> list[Deferral]:
        """See Ledger. First the earliest of every shard, then the records of those that are wanted."""
        asked = ("-inf", now, "BYSCORE", "LIMIT", 0, limit, "WITHSCORES")
        found = self._wire.every_shard([command("ZRANGE", key_of(s, b"z"), *asked) for s in range(SHARDS)], write=False)
        due = [
            (int(until), *_PAIR.unpack(pair), pair)
            for reply in found
            for pair, until in zip(reply[::2], reply[1::2], strict=True)
        ]
        due = sorted(due)[:limit]
        by_shard: dict[int, list[bytes]] = {}
        for _, user, _, pair in due:
            by_shard.setdefault(shard_of(user), []).append(pair)
        gets = [command("HMGET", key_of(shard, b"y"), *pairs) for shard, pairs in by_shard.items()]
        records: dict[bytes, bytes | None] = {}
        for pairs, reply in zip(by_shard.values(), self._wire.run(gets, list(by_shard), write=False), strict=True):
            records.update(zip(pairs, checked(reply), strict=True))
        # None: settled in between
        return [Deferral(user, one, until, own) for until, user, one, pair in due if (own := records[pair]) is not None]

    def drop_deferral(self, user: int, request_id: int) -> bool:
        """See Ledger."""
        shard = shard_of(user)
        return bool(self._one(shard, self._queue_call(shard, "drop", _PAIR.pack(user, request_id)), write=True))

    def claim_outbox(self, now: int, limit: int, lease_us: int) -> list[OutboxItem]:
        """See Ledger. Oldest first within a shard; shards take turns being first."""

        def claim(shard: int, most: int) -> Command:
            return self._queue_call(shard, "claim", now, most, now + lease_us)

        return self._outbox("-inf", now, limit, claim, first=now % SHARDS, write=True)

    def ack_outbox(self, ids: Sequence[int]) -> int:
        """See Ledger."""
        rows: dict[int, list[int]] = {}
        for one in ids:
            rows.setdefault(one >> _NUMBER_BITS, []).append(one & (1 << _NUMBER_BITS) - 1)
        return self._on_shards({shard: ("ack_outbox", *own) for shard, own in rows.items()})

    def postpone_outbox(self, ids: Sequence[int], until: Sequence[int], attempts: Sequence[int]) -> int:
        """See Ledger."""
        rows: dict[int, list[int]] = {}
        for one, end, tried in zip(ids, until, attempts, strict=True):
            rows.setdefault(one >> _NUMBER_BITS, []).extend((one & (1 << _NUMBER_BITS) - 1, end, tried))
        return self._on_shards({shard: ("postpone", *own) for shard, own in rows.items()})

    def buried_outbox(self, limit: int) -> list[OutboxItem]:
        """See Ledger. Oldest first within a shard."""

        def look(shard: int, most: int) -> Command:
            return self._queue_call(shard, "buried", OUTBOX_BURIED, most)

        return self._outbox(OUTBOX_BURIED, OUTBOX_BURIED, limit, look, first=0, write=False)

    def queue_depths(self, now: int) -> QueueDepths:
        """See Ledger."""
        bounds = (
            (b"z", "-inf", "+inf"), (b"z", "-inf", now),
            (b"p", "-inf", "+inf"), (b"p", "-inf", now), (b"p", OUTBOX_BURIED, OUTBOX_BURIED),
        )  # fmt: skip
        return QueueDepths(*(sum(self._counts(*bound)) for bound in bounds))

    def _counts(self, queue: bytes, above: Any, upto: Any) -> list[int]:
        """Per shard, how many rows of a sorted set have a score from `above` to `upto`."""
        return self._wire.every_shard([command("ZCOUNT", key_of(s, queue), above, upto) for s in range(SHARDS)], write=False)

    def _outbox(
        self, above: Any, upto: Any, limit: int, command_of: Callable[[int, int], Command], *, first: int, write: bool
    ) -> list[OutboxItem]:
        """Outbox rows with a time from `above` to `upto`: counted first, then at most `limit` asked for, from `first` on."""
        counts, left = self._counts(b"p", above, upto), limit
        commands, shards = [], []
        for shard in (*range(first, SHARDS), *range(first)):
            if counts[shard] and left > 0:
                commands.append(command_of(shard, min(left, counts[shard])))
                shards.append(shard)
                left -= counts[shard]
        out = []
        for shard, reply in zip(shards, self._wire.run(commands, shards, write=write), strict=True):
            for number, row, attempts in checked(reply):
                user, request = _PAIR.unpack_from(row)
                out.append(OutboxItem(shard << _NUMBER_BITS | number, user, request, row[_PAIR.size :], attempts))
        return out

    def _on_shards(self, calls: dict[int, tuple[Any, ...]]) -> int:
        """Sum of what redis_queue.lua answers to these calls."""
        commands = [self._queue_call(shard, *arguments) for shard, arguments in calls.items()]
        return sum(int(checked(reply)) for reply in self._wire.run(commands, list(calls), write=True))


def _records_of(shard: int, number: int, chunk: bytes, records: bytes) -> list[StoredRecord]:
    """Records of a chunk that nobody has acknowledged or erased."""
    _, count, _, _ = _CHUNK.unpack_from(chunk)
    heads = np.frombuffer(chunk, _HEAD, count, _CHUNK.size)
    rows = np.flatnonzero((heads["state"] == _WAITING) & (heads["length"] > 0))
    first = shard << _CHUNK_BITS + _ROW_BITS | number << _ROW_BITS
    columns = (heads[name][rows].tolist() for name in ("user", "request", "version", "offset", "length"))
    return [
        StoredRecord(first | row, user, request, version, records[at : at + length])
        for row, user, request, version, at, length in zip(rows.tolist(), *columns, strict=True)
    ]
