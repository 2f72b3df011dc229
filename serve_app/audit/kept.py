"""One decision, wherever it is kept: in the ledger's record, or, where nothing had to be committed, in the log alone.

Every function gives the shape of `serve_app.ledger.record.unpack_record`: meta, request, candidates.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.errors import InvalidInput
from serve_app.log.erasure import load_erased, without_erased
from serve_app.log.journal import journal_files, read_journal
from serve_app.log.migrations import brought_up, schema_as_of
from serve_app.log.once import DECISION_TABLES
from serve_app.log.schema import TABLES
from serve_app.log.snapshot import LogFile, load_snapshot, log_folder
from serve_app.vocabulary import Surface

__all__ = ["decision_in_log", "waiting_journal_bytes"]

_LISTS = ("gate_outcome", "gate_reason", "used", "limit", "next_free_at", "heads")
_OF_DECISION = ("action", "reason", "until", "p_none", "forced", "explored", "read_version", "commit_version", "granted")


def waiting_journal_bytes(data: str | os.PathLike[str]) -> int:
    """Bytes of the journal that no Parquet file contains yet: what `decision_in_log` may have to read."""
    consumed = load_snapshot(data).consumed
    return sum(max(size - consumed.get(name, 0), 0) for name, size in journal_files(data).items())


def decision_in_log(
    data: str | os.PathLike[str], user: int, request_id: int, *, journal: bool = True
) -> dict[str, Any] | None:
    """The decision on `request_id` of `user` as logged, the committed copy where there are several; None: not logged.

    Reads the row groups that may hold the user, newest day first, then (`journal`) the frames not compacted yet.
    InvalidInput: the request was for a list, which has no gates."""
    found = _in_files(data, user, request_id) or (_in_journal(data, user, request_id) if journal else None)
    return None if found is None else _shaped(found)


def _in_files(data: str | os.PathLike[str], user: int, request_id: int) -> dict[str, pa.Table] | None:
    bucket, root = user >> 52, log_folder(data)
    files = [one for one in load_snapshot(data).files if one.table in DECISION_TABLES and one.low <= bucket <= one.high]
    best: dict[str, pa.Table] | None = None
    for day in sorted({one.day for one in files}, reverse=True):
        own = [one for one in files if one.day == day]
        decisions = _of_request(root, own, "decisions", user, request_id)
        if not len(decisions):
            continue
        tables = {name: _of_request(root, own, name, user, request_id) for name in ("requests", "candidates")}
        best = best or {**tables, "decisions": decisions}
        if decisions["commit_version"][0].as_py() >= 0:
            return {**tables, "decisions": decisions}
    return best


def _of_request(root: Path, files: Iterable[LogFile], table: str, user: int, request_id: int) -> pa.Table:
    parts = [rows for one in files if one.table == table for rows in _of_user(root / one.path, table, user)]
    rows = pa.concat_tables([schema_as_of(table, 2).empty_table(), *parts]).unify_dictionaries()
    rows = rows.filter(pc.equal(rows["request_id"], pa.scalar(request_id, pa.uint64())))
    return without_erased(table, rows, load_erased(root.parent))


def _of_user(path: Path, table: str, user: int) -> Iterator[pa.Table]:
    """The user's rows of one file, from the row groups whose statistics admit the user."""
    with pq.ParquetFile(path) as file:
        version = int((file.schema_arrow.metadata or {}).get(b"schema_version", b"0"))
        place = file.schema_arrow.get_field_index("user")
        for group in range(file.metadata.num_row_groups):
            seen = file.metadata.row_group(group).column(place).statistics
            if seen is not None and seen.has_min_max and not seen.min <= user <= seen.max:
                continue
            rows = file.read_row_group(group).replace_schema_metadata(None)
            rows = rows.filter(pc.equal(rows["user"], pa.scalar(user, pa.uint64())))
            if len(rows):
                yield brought_up(table, rows.cast(schema_as_of(table, version)), version, TABLES[table].names)


def _in_journal(data: str | os.PathLike[str], user: int, request_id: int) -> dict[str, pa.Table] | None:
    read = read_journal(data, load_snapshot(data).consumed, tables=DECISION_TABLES)
    copies: dict[int, dict[str, pa.Table]] = {}
    for table, batches in read.rows.items():
        for number, batch in zip(read.numbers[table], batches, strict=True):
            mine = (batch["request_id"].to_numpy() == np.uint64(request_id)) & (batch["user"].to_numpy() == np.uint64(user))
            if mine.any():
                copies.setdefault(number, {})[table] = pa.Table.from_batches([batch.filter(pa.array(mine))])
    whole = [one for one in copies.values() if {"requests", "decisions"} <= set(one)]
    whole.sort(key=lambda one: -one["decisions"]["commit_version"][0].as_py())
    return whole[0] if whole else None


def _shaped(tables: dict[str, pa.Table]) -> dict[str, Any]:
    request = tables["requests"].to_pylist()[0]
    decision = tables["decisions"].to_pylist()[0]
    if request["surface"] != Surface.notification:
        name = Surface(request["surface"]).name
        raise InvalidInput(f"this is a list ({name}), not a send decision", field="id", hint="hindcast log show candidates")
    names = {f"{key}s": tuple(filter(None, request[f"{key}_names"].split(","))) for key in ("gate", "head")}
    meta = {
        **names,
        "release": request["release"] or None,
        "policy_revisions": [request["policy_revision"] or None],
        "code_version": request["code_version"],
        "fingerprint": request["fingerprint"],
    }
    said = {**request, **{name: decision[name] for name in _OF_DECISION}, "arms": None}
    said |= {"assigned_arms": request["arms"], "assigned_holdouts": request["holdouts"]}
    return {"schema": 0, "meta": meta, "request": said, "candidates": _columns(tables.get("candidates"))}


def _columns(rows: pa.Table | None) -> dict[str, npt.NDArray[Any]]:
    if rows is None:
        rows = TABLES["candidates"].empty_table()
    rows = rows.sort_by("idx")
    out: dict[str, npt.NDArray[Any]] = {}
    for name in rows.column_names:
        column = rows[name].combine_chunks()
        if not pa.types.is_list(column.type):
            out["item_hash" if name == "item" else name] = column.to_numpy(zero_copy_only=False)
        elif name in _LISTS and len(column) and len(column.flatten()):
            out[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return out
