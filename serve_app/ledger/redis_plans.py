"""Commits as script calls, and their replies as statuses: the argument layout of redis_commit.lua.

Rows are sorted by shard. A cluster gets one call a shard, because a shard's slot is what a node owns; a single server gets
one call for a thousand rows of any shards, which costs it one sync of its file and the client next to nothing a row.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.ledger.columns import HISTORY_DTYPE, CommitPlan
from serve_app.ledger.protocol import LedgerSettings
from serve_app.ledger.redis_keys import META_KEYS, Command, Script, key_of, shards_of

__all__ = ["GROUP", "Answered", "Piece", "answered", "commit_pieces", "in_pieces"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_ROW = np.dtype(
    [
        ("user", ">u8"),
        ("request", ">u8"),
        ("version", ">i8"),
        ("offset", "<u4"),
        ("length", "<u4"),
        ("state", "<u4"),
        ("spare", "<u4"),
        ("key", "V16"),
        ("digest", "V16"),
        ("read_version", ">i8"),
        ("oldest", "<i8"),
        ("entries", "<u4"),
        ("flags", "<u4"),
        ("until", "<i8"),
        ("settles", ">u8"),
    ]
)
GROUP = np.dtype([("seen", "<i8"), ("rows", "<u4"), ("bytes", "<u4")])
_HAS_ROW, _KEY, _OUTBOX, _DEFERRED, _SETTLES = 1, 2, 4, 8, 16
_MOST_ROWS, _MOST_BYTES, _ENTRY = 1_000, 8 << 20, HISTORY_DTYPE.itemsize
_COPIED = 1
_PASSING = b"$2\r\nPX\r\n$6\r\n600000\r\n"  # ten minutes


class Piece(NamedTuple):
    """One script call: the shards it writes, the plan's rows in its order, where it is routed, and the command."""

    shards: npt.NDArray[np.int64]
    rows: I64
    route: int
    command: Command


class Answered(NamedTuple):
    """What a call said: the shards' counters, per row status and version, and (row in the call, stored record) pairs."""

    counters: I64
    status: npt.NDArray[np.uint8]
    versions: I64
    stored: list[tuple[int, bytes]]


def answered(reply: Sequence[Any]) -> Answered:
    """The reply of redis_commit.lua or redis_put.lua."""
    counters, status, versions, *stored = reply
    pairs = list(zip(map(int, stored[::2]), stored[1::2], strict=True))
    return Answered(
        np.frombuffer(counters, np.int64),
        np.frombuffer(status, np.uint8),
        np.frombuffer(versions, ">i8").astype(np.int64),
        pairs,
    )


def in_pieces(shards: npt.NDArray[np.uint8], *, by_shard: bool) -> Iterator[tuple[int, int]]:
    """Spans of rows sorted by shard, one a call."""
    edges = (np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist() if by_shard else []
    start = 0
    for edge in (*edges, len(shards)):
        while start < edge:
            end = min(start + _MOST_ROWS, edge)
            yield start, end
            start = end


class _Groups(NamedTuple):
    """Runs of rows of one shard, bounded in rows and bytes: `calls` spans of them go into one call each, no shard twice."""

    shards: list[int]
    starts: list[int]
    fixed: npt.NDArray[np.void]
    calls: list[tuple[int, int]]


def _group(shards: npt.NDArray[np.uint8], ends: I64, seen: I64, *, by_shard: bool) -> _Groups:
    """Groups of sorted rows; ends: bytes up to and with each row."""
    edges = np.concatenate(([True], shards[1:] != shards[:-1]))
    natural = [*np.flatnonzero(edges).tolist(), len(shards)]
    starts: list[int] = []
    for start, edge in itertools.pairwise(natural):
        while start < edge:
            starts.append(start)
            before = int(ends[start - 1]) if start else 0
            start = min(edge, start + _MOST_ROWS)
            if int(ends[start - 1]) - before > _MOST_BYTES:
                start = max(starts[-1] + 1, int(np.searchsorted(ends, before + _MOST_BYTES, "right")))
    bounds = [*starts, len(shards)]
    fixed = np.zeros(len(starts), GROUP)
    own = shards[starts]
    fixed["seen"], fixed["rows"] = seen[own], np.diff(bounds)
    fixed["bytes"] = np.diff(ends[np.asarray(bounds[1:]) - 1], prepend=0)
    names = own.tolist()
    if by_shard:
        return _Groups(names, starts, fixed, [(group, group + 1) for group in range(len(names))])
    calls, first, size = [], 0, [0, *np.cumsum(fixed["bytes"], dtype=np.int64).tolist()]
    for group in range(1, len(names) + 1):
        full = group == len(names) or names[group] == names[group - 1] or bounds[group + 1] - bounds[first] > _MOST_ROWS
        if full or size[group + 1] - size[first] > _MOST_BYTES:
            calls.append((first, group))
            first = group
    return _Groups(names, starts, fixed, calls)


@dataclass(slots=True)
class _Sorted:
    """A plan's rows sorted by shard, as arguments: fixed part, entries, and records with the bytes up to each row."""

    order: I64
    shards: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.void]
    entries: npt.NDArray[np.void]
    records: list[bytes]
    ends: I64


def _sorted(plan: CommitPlan, settings: LedgerSettings, horizon_us: int) -> _Sorted:
    shards = shards_of(plan.users)
    order = np.argsort(shards, kind="stable")
    count = len(order)
    rows = np.zeros(count, _ROW)
    counts = np.diff(plan.new_offsets)[order]
    rows["user"], rows["request"] = plan.users[order], plan.request_ids[order]
    rows["read_version"] = plan.read_versions[order]
    rows["version"] = rows["read_version"] + 1
    rows["oldest"] = plan.decided_at[order] - horizon_us
    rows["entries"] = counts
    flags = np.zeros(count, np.uint32)
    if len(plan.keys):
        places = order.tolist()
        keyed = np.fromiter((len(plan.keys[row]) > 0 for row in places), np.bool_, count)
        blank = bytes(16)
        rows["key"] = np.frombuffer(b"".join(plan.keys[row] or blank for row in places), "V16")
        rows["digest"] = np.frombuffer(b"".join(plan.digests[row] or blank for row in places), "V16")
        flags[keyed] |= _KEY | _HAS_ROW
    if plan.deferred_until is not None and len(plan.deferred_until):
        rows["until"] = plan.deferred_until[order]
        flags[rows["until"] != 0] |= _DEFERRED
    if plan.settles is not None and len(plan.settles):
        rows["settles"] = plan.settles[order]
        flags[rows["settles"] != 0] |= _SETTLES
    if len(plan.outbox):
        flags[np.fromiter((len(plan.outbox[row]) > 0 for row in order.tolist()), np.bool_, count)] |= _OUTBOX
    records, lengths = _records(plan, order, flags, settings)
    if settings.keep_records:
        flags[lengths > 0] |= _HAS_ROW
    else:
        rows["state"] = _COPIED
    rows["flags"], rows["length"] = flags, lengths
    return _Sorted(order, shards[order], rows, _entries(plan, order, counts), records, np.cumsum(lengths))


def _records(
    plan: CommitPlan, order: I64, flags: npt.NDArray[np.uint32], settings: LedgerSettings
) -> tuple[list[bytes], I64]:
    """Records in order, without those nobody will ask for, and their lengths."""
    if not len(plan.records):
        return [], np.zeros(len(order), np.int64)
    own = list(plan.records)
    wanted = [own[row] for row in order.tolist()]
    if not settings.keep_records:
        needed = (flags & (_KEY | _DEFERRED)) != 0
        wanted = [record if need else b"" for record, need in zip(wanted, needed.tolist(), strict=True)]
    return wanted, np.fromiter(map(len, wanted), np.int64, len(wanted))


def _entries(plan: CommitPlan, order: I64, counts: I64) -> npt.NDArray[np.void]:
    ends = np.cumsum(counts)
    flat = np.repeat(plan.new_offsets[order] - (ends - counts), counts) + np.arange(len(plan.new_entries))
    taken: npt.NDArray[np.void] = plan.new_entries[flat]
    return taken


def commit_pieces(
    script: Script, plan: CommitPlan, seen: I64, settings: LedgerSettings, horizon_us: int, *, by_shard: bool
) -> list[Piece]:
    """Calls of redis_commit.lua. `seen`: counters of all shards; by_shard: one call a shard (a cluster)."""
    made = _sorted(plan, settings, horizon_us)
    groups = _group(made.shards, made.ends, seen, by_shard=by_shard)
    begins = made.ends - made.rows["length"]  # of each record
    made.rows["offset"] = begins - np.repeat(begins[groups.starts], groups.fixed["rows"])
    rows, entries, fixed = made.rows.tobytes(), made.entries.tobytes(), groups.fixed.tobytes()
    entry_ends = [0, *np.cumsum(made.rows["entries"], dtype=np.int64).tolist()]
    keeping = settings.key_horizon_us // 1000, settings.history_max_entries, int(settings.keep_records)
    bounds = [*groups.starts, len(plan.users)]
    name = int.from_bytes(os.urandom(8))
    out = []
    for number, (first, last) in enumerate(groups.calls):
        start, end = bounds[first], bounds[last]
        shards = groups.shards[first:last]
        title = (name + number & 0xFFFFFFFFFFFFFFFF).to_bytes(8)
        payloads = [p for row in made.order[start:end].tolist() if (p := plan.outbox[row])] if len(plan.outbox) else []
        call = script.call(
            [META_KEYS[shard] for shard in shards], *keeping,
            fixed[first * GROUP.itemsize : last * GROUP.itemsize], rows[start * _ROW.itemsize : end * _ROW.itemsize],
            entries[entry_ends[start] * _ENTRY : entry_ends[end] * _ENTRY], title, int(by_shard), *payloads,
        )  # fmt: skip
        if made.records:
            sizes = groups.fixed[first:last].tolist()
            call = _with_records(call, shards, sizes, made.records[start:end], title, passing=by_shard)
        out.append(Piece(np.asarray(shards), made.order[start:end], shards[0], call))
    return out


def _with_records(
    call: Command, shards: list[int], groups: list[Any], records: list[bytes], name: bytes, *, passing: bool
) -> Command:
    """The call after the commands that bring its shards' records.

    Records do not pass through the script: Lua would hash and copy each of them several times. On a single server both are
    one transaction. On a cluster, records expire unless the script keeps them, so none is left behind by a crash between.
    """
    parts: list[bytes] = []
    start = stored = 0
    for shard, (_, rows, size) in zip(shards, groups, strict=True):
        if size:
            parts += (b"$18\r\n", key_of(shard, b"b", name), b"\r\n$%d\r\n" % size, *records[start : start + rows], b"\r\n")
            stored += 1
        start += rows
    if not stored:
        return call
    if passing:
        head = b"*5\r\n$3\r\nSET\r\n"
        return Command(b"".join((head, *parts, _PASSING, call.data)), call.script, lead=1)
    head = b"*1\r\n$5\r\nMULTI\r\n*%d\r\n$4\r\nMSET\r\n" % (2 * stored + 1)
    data = b"".join((head, *parts, call.data, b"*1\r\n$4\r\nEXEC\r\n"))
    return Command(data, call.script, lead=3, atomic=True)


assert _ROW.itemsize == 112
assert _ENTRY == 56
