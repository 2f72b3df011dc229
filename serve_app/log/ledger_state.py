"""The ledger at a day's start, as rows of `ledger_snapshot`: what a replay that begins on that day begins with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa

from serve_app.ledger.columns import HISTORY_DTYPE, Histories, LedgerView
from serve_app.log.filling import fill
from serve_app.log.schema import TABLES
from serve_app.log.snapshot import load_snapshot
from serve_app.log.writer import DAY_US, DEFAULT_GROUPS, LogWriter, day_text

__all__ = ["has_snapshot", "snapshot_rows", "write_snapshot"]

_USERS_A_FILE = 500_000
_ENTRIES_A_FILE = 2_000_000


def snapshot_rows(view: LedgerView, as_of: int, taken_at: int) -> pa.RecordBatch:
    """The users of `view`, whose entries lie at or before `as_of`."""
    n = len(view.users)
    columns = {
        "user": view.users,
        "ts": np.full(n, as_of),
        "as_of": np.full(n, as_of),
        "taken_at": np.full(n, taken_at),
        "version": view.versions,
        "known_since": view.known_since,
        "sends": _history(view.histories, factual=True),
        "shadow_sends": _history(view.histories, factual=False),
    }
    return fill("ledger_snapshot", n, columns)


def has_snapshot(data: str | os.PathLike[str], as_of: int) -> bool:
    """Whether the log holds a snapshot of that day."""
    day = day_text(as_of // DAY_US)
    return any(one.table == "ledger_snapshot" and one.day == day for one in load_snapshot(data).files)


def write_snapshot(
    data: str | os.PathLike[str],
    views: Iterable[LedgerView],
    as_of: int,
    now_us: int,
    *,
    groups: int = DEFAULT_GROUPS,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write a snapshot, all of it or nothing, in place of one of the same day; returns the number of users. Memory is that
    of one file's users. `views` as `Ledger.snapshot(as_of)` gives them. progress(users written)."""
    day = day_text(as_of // DAY_US)
    with LogWriter(data, groups=groups) as writer:
        writer.drop(one for one in writer.live() if one.table == "ledger_snapshot" and one.day == day)
        held: list[pa.RecordBatch] = []
        users = entries = total = 0

        def write() -> None:
            nonlocal held, users, entries
            writer.write("ledger_snapshot", held)
            held, users, entries = [], 0, 0

        for view in views:
            held.append(snapshot_rows(view, as_of, now_us))
            users, entries, total = users + len(view.users), entries + len(view.histories.entries), total + len(view.users)
            if users >= _USERS_A_FILE or entries >= _ENTRIES_A_FILE:
                write()
                progress(total)
        if held:
            write()
        if total:
            mark = fill("watermark", 1, _mark(as_of, now_us, total))
            writer.write("watermark", mark)
    progress(total)
    return total


def _mark(as_of: int, now_us: int, rows: int) -> dict[str, object]:
    return {
        "ts": np.array([now_us]),
        "day": np.array([as_of // DAY_US], np.int32),
        "table": pa.array(["ledger_snapshot"]),
        "complete_to": np.array([now_us]),
        "rows": np.array([rows]),
        "source": pa.array(["ledger"]),
    }


def _history(histories: Histories, *, factual: bool) -> pa.ListArray:
    """Factual sends, or ghosts, of each user as the log's list of structs."""
    keep = (histories.entries["holdout"] == 0) == factual
    counts = np.concatenate([[0], np.cumsum(keep)])
    chosen = histories.entries[keep]
    fields = [pa.array(np.ascontiguousarray(chosen[name])) for name in HISTORY_DTYPE.names or ()]
    kind = TABLES["ledger_snapshot"].field("sends").type
    values = pa.StructArray.from_arrays(fields, list(HISTORY_DTYPE.names or ()))
    order = [values.field(one.name) for one in kind.value_type]
    values = pa.StructArray.from_arrays(order, fields=list(kind.value_type))
    return pa.ListArray.from_arrays(pa.array(counts[histories.offsets].astype(np.int32)), values)
