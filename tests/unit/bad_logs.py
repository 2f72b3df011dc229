"""Logs with one thing wrong with them, for tests of what reads logs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.log.snapshot import commit, load_snapshot, log_folder, writer_lock

__all__ = ["changed", "copy_of", "files_of", "with_column"]

Change = Callable[[pa.Table], pa.Table]


def copy_of(data: Path, target: Path) -> Path:
    """A data folder that may be spoiled."""
    shutil.copytree(data, target)
    return target


def files_of(data: Path, table: str) -> list[Path]:
    """Live Parquet files of one table."""
    return [log_folder(data) / one.path for one in load_snapshot(data).files if one.table == table]


def changed(data: Path, table: str, change: Change) -> None:
    """Rewrite every file of a table, its schema and metadata kept, and list the new numbers of rows."""
    snapshot = load_snapshot(data)
    for place, one in enumerate(snapshot.files):
        if one.table == table:
            path = log_folder(data) / one.path
            before = pq.read_table(path)
            after = change(before).cast(before.schema).replace_schema_metadata(before.schema.metadata)
            pq.write_table(after, path)
            snapshot.files[place] = replace(one, rows=len(after))
    with writer_lock(data):
        commit(data, snapshot)


def with_column(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Another value of one column."""

    def change(rows: pa.Table) -> pa.Table:
        place = rows.column_names.index(name)
        new = value(rows[name].to_numpy().copy())
        return rows.set_column(place, rows.schema.field(place), pa.array(new, rows.schema.field(place).type))

    return change
