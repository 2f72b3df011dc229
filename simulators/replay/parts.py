"""A replay's parts: one file a bucket group, whole or absent, and the tasks that make those which are missing."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from serve_app.errors import DamagedArtifact
from serve_app.log.reader import BucketGroup
from serve_app.release.manifest import write_text_atomically
from simulators.replay.counts import COUNTS

__all__ = [
    "Task",
    "counts_as_bytes",
    "counts_from_bytes",
    "group_of",
    "make_missing",
    "part_arrays",
    "part_file",
    "parts_folder",
    "task_of",
    "write_part",
]

Array = npt.NDArray[Any]
Task = dict[str, Any]


def parts_folder(out: Path, name: str, said: Mapping[str, Any], groups: Sequence[BucketGroup]) -> Path:
    """The folder of a replay's parts, with what it is of. name: a digest of all that the result follows from."""
    folder = out / "parts" / name
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**said, "groups": [(group.low, group.high) for group in groups]}
    write_text_atomically(folder / "replay.json", orjson.dumps(whole, option=orjson.OPT_INDENT_2).decode())
    return folder


def part_file(folder: Path, group: BucketGroup) -> Path:
    """Where a group's part stands, or would."""
    return folder / f"buckets-{group.low:04d}-{group.high:04d}.npz"


def write_part(path: Path, arrays: Mapping[str, Array]) -> None:
    """Replace `path` in one step."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    with aside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    os.replace(aside, path)


@contextmanager
def part_arrays(path: Path) -> Iterator[dict[str, Array]]:
    """The arrays of a part. What cannot be read of it, within the context too, raises DamagedArtifact."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        yield arrays
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, pa.ArrowException, KeyError) as error:
        raise DamagedArtifact(f"this part of a replay cannot be read: {error}", field=str(path), hint="delete it") from None


def counts_as_bytes(counts: pa.Table) -> Array:
    """u8: a table of counts as an Arrow stream."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, COUNTS) as writer:
        writer.write_table(counts)
    return np.frombuffer(stream.getvalue(), np.uint8)


def counts_from_bytes(stream: Array) -> pa.Table:
    """The table again."""
    return pa.ipc.open_stream(stream.tobytes()).read_all().cast(COUNTS)


def task_of(group: BucketGroup, **more: Any) -> Task:
    """A group as a row of Ray Data."""
    files = orjson.dumps({name: list(paths) for name, paths in group.files.items()})
    return {"low": group.low, "high": group.high, "files": files, **more}


def group_of(task: Task) -> BucketGroup:
    """The group of such a row."""
    files = {name: tuple(paths) for name, paths in orjson.loads(task["files"]).items()}
    return BucketGroup(int(task["low"]), int(task["high"]), files)


def make_missing(
    run: Callable[[Task], Task], tasks: Sequence[Task], of: int, progress: Callable[[int, int], None], *, local: bool
) -> None:
    """Run the tasks of the parts that are missing among `of`, on Ray or (local) in this process, one after the other.
    progress: see `simulators.replay.job.run_replay`."""
    done = of - len(tasks)
    progress(done, of)
    for _ in map(run, tasks) if local else _on_ray(run, tasks):
        done += 1
        progress(done, of)


def _on_ray(run: Callable[[Task], Task], tasks: Sequence[Task]) -> Any:
    """Results as they come."""
    if not tasks:
        return ()
    import ray.data

    return ray.data.from_items(list(tasks), override_num_blocks=len(tasks)).map(run).iter_rows()
