"""The log's events, one memory-mapped file a day, kept up to date with the log.

``DATA/segments/events/<day>-<checksum>.arrow`` holds one day's `DayEvents` as one row of lists; ``state.json`` says which
file is a day's and which of the log's files and journal rows it was made from. A refresh makes anew the days for which
these differ, from all of the day's events, and takes the others as they are: late events, duplicates, compactions and
erasures need no care of their own, and an incremental refresh leaves the bytes a full one would.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.errors import DamagedArtifact
from serve_app.log.journal import read_journal
from serve_app.log.reader import read_files
from serve_app.log.snapshot import Snapshot, load_snapshot, log_folder
from serve_app.log.writer import day_text
from serve_app.release.manifest import write_text_atomically
from serve_app.segments.events import DAY_US, FIELDS, DayEvents, EventColumns, group_events
from serve_app.segments.store import StoredFile, checksum, segments_folder

__all__ = ["refresh_days"]

I64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

_COLUMNS = ("user", "type", "ts", "event_id", "ingested_at", "item")
_NAMES = tuple(one.name for one in fields(EventColumns))
_ATTEMPTS = 8


class _Day(BaseModel):
    """sources: digest of the log's files and the journal's rows that the day was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[0-9-]+-[0-9a-f]{32}\.arrow$")
    file: StoredFile
    sources: str


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    days: dict[int, _Day] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _View:
    """The log at one moment: Parquet files by day, and journal rows by day that no file contains."""

    snapshot: Snapshot
    files: Mapping[int, list[str]]
    fresh: Mapping[int, EventColumns]

    def days(self) -> list[int]:
        return sorted({*self.files, *self.fresh})

    def sources(self, day: int) -> str:
        state = xxhash.xxh3_128("\n".join(self.files.get(day, [])).encode())
        if day in self.fresh:
            rows = self.fresh[day]
            for name in _NAMES:
                state.update(np.ascontiguousarray(getattr(rows, name)).data)
        return state.hexdigest()


def refresh_days(data: Path, *, full: bool = False, progress: Progress | None = None) -> list[tuple[int, DayEvents]]:
    """Bring the day files up to date with the log and give them all, by day since 1970-01-01 UTC, ascending.

    full: make every day anew. progress(days made, days to make). Call with `refresh_lock` held. DamagedArtifact: the log
    cannot be read; a damaged day file is made anew.
    """
    folder = segments_folder(data) / "events"
    folder.mkdir(parents=True, exist_ok=True)
    known = _State() if full else _read_state(folder)
    for attempt in range(_ATTEMPTS):
        view = _view(data)
        try:
            state = _made(data, folder, known, view, progress)
            break
        except DamagedArtifact:  # a compaction takes the files away that the one before it replaced
            if attempt + 1 == _ATTEMPTS or load_snapshot(data).sequence == view.snapshot.sequence:
                raise
    write_text_atomically(folder / "state.json", state.model_dump_json(indent=1))
    kept = {one.name for one in state.days.values()}
    for path in folder.glob("*.arrow"):
        if path.name not in kept:
            path.unlink()
    return [(day, _open(folder / one.name)) for day, one in sorted(state.days.items())]


def _made(data: Path, folder: Path, known: _State, view: _View, progress: Progress | None) -> _State:
    sources = {day: view.sources(day) for day in view.days()}
    days = {day: known.days[day] for day in sources if _current(folder, known.days.get(day), sources[day])}
    missing = [day for day in sources if day not in days]
    for done, day in enumerate(missing):
        if progress:
            progress(done, len(missing))
        paths = [str(log_folder(data) / path) for path in view.files.get(day, [])]
        logged = _columns(read_files(paths, "events", columns=_COLUMNS))
        events = _joined(logged, view.fresh[day]) if day in view.fresh else logged
        days[day] = _write(folder, day, group_events(events), sources[day])
    if progress:
        progress(len(missing), len(missing))
    return _State(days=dict(sorted(days.items())))


def _current(folder: Path, entry: _Day | None, sources: str) -> bool:
    if entry is None or entry.sources != sources:
        return False
    path = folder / entry.name
    return path.is_file() and checksum(path) == entry.file


def _read_state(folder: Path) -> _State:
    """What was made before; nothing where that cannot be told, which makes all days anew."""
    try:
        return _State.model_validate_json((folder / "state.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return _State()


def _view(data: Path) -> _View:
    for _ in range(_ATTEMPTS):
        snapshot = load_snapshot(data)
        frames = read_journal(data, snapshot.consumed, tables=["events"]).rows.get("events", [])
        # A compaction in between moved frames into files that this snapshot does not list: read again.
        if load_snapshot(data).sequence == snapshot.sequence:
            break
    else:
        raise DamagedArtifact("the log kept changing while it was read", field="log", hint="retry")
    files: dict[int, list[str]] = {}
    for one in snapshot.files:
        if one.table == "events":
            files.setdefault(int(np.datetime64(one.day, "D").astype(np.int64)), []).append(one.path)
    return _View(snapshot, {day: sorted(paths) for day, paths in files.items()}, _by_day(frames))


def _by_day(frames: Iterable[pa.RecordBatch]) -> dict[int, EventColumns]:
    tables = [pa.Table.from_batches([one]).select(_COLUMNS) for one in frames]
    if not tables:
        return {}
    rows = _columns(pa.concat_tables(tables))
    day = rows.at // DAY_US
    order = np.argsort(day, kind="stable")
    first = np.flatnonzero(np.r_[True, day[order][1:] != day[order][:-1]])
    parts = np.split(order, first[1:])
    return {int(day[part[0]]): _taken(rows, part) for part in parts if len(part)}


def _columns(rows: pa.Table) -> EventColumns:
    return EventColumns(
        user=rows["user"].to_numpy(),
        type=rows["type"].to_numpy(),
        at=rows["ts"].to_numpy(),
        event_id=rows["event_id"].to_numpy(),
        ingested_at=rows["ingested_at"].to_numpy(),
        item=rows["item"].combine_chunks().fill_null(0).to_numpy(zero_copy_only=False),
    )


def _taken(rows: EventColumns, places: I64) -> EventColumns:
    return EventColumns(*(getattr(rows, name)[places] for name in _NAMES))


def _joined(a: EventColumns, b: EventColumns) -> EventColumns:
    return EventColumns(*(np.concatenate([getattr(a, name), getattr(b, name)]) for name in _NAMES))


def _write(folder: Path, day: int, events: DayEvents, sources: str) -> _Day:
    arrays = {}
    for name in FIELDS:
        values = pa.array(getattr(events, name))
        arrays[name] = pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
    batch = pa.RecordBatch.from_pydict(arrays)
    aside = folder / ".day.tmp"
    with aside.open("wb") as out, pa.ipc.new_file(out, batch.schema) as writer:
        writer.write_batch(batch)
    with aside.open("rb+") as written:
        os.fsync(written.fileno())
    file = checksum(aside)
    name = f"{day_text(day)}-{file.xxh3}.arrow"
    aside.replace(folder / name)
    return _Day(name=name, file=file, sources=sources)


def _open(path: Path) -> DayEvents:
    """The arrays lie in the file's memory map."""
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    return DayEvents(*(batch.column(name).values.to_numpy(zero_copy_only=True) for name in FIELDS))
