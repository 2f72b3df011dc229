"""Step `extract`: the log's events, by ranges of user buckets in parallel, into interactions in order of sessions."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serve_app.log.reader import bucket_groups, read_files
from serve_app.release.build.interactions import EVENT_COLUMNS, Interactions, interactions_of
from serve_app.release.build.runner import Runner, Task

__all__ = ["extract", "log_files"]


def log_files(data: Path, tables: Sequence[str]) -> list[Path]:
    """Compacted log files of `tables`, each once."""
    groups = bucket_groups(data, tables)
    return sorted({Path(path) for group in groups for paths in group.files.values() for path in paths})


def _extract_group(task: Task) -> Task:
    """One group of buckets: read, select, order, write beside the others."""
    folder = Path(task["folder"])
    events = read_files(json.loads(task["files"]), "events", columns=EVENT_COLUMNS)
    items = np.load(folder / "item_hashes.npy", allow_pickle=False)
    users = np.load(folder / "user_hashes.npy", allow_pickle=False)
    rows, counts = interactions_of(events, items, users)
    rows.save(folder / task["part"])
    return {"counts": json.dumps(counts)}


def extract(data: Path, item_hashes: Path, user_hashes: Path, folder: Path, runner: Runner) -> dict[str, int]:
    """Write all interactions under `folder`/interactions and return what was kept and left out, by reason."""
    parts = folder / "parts"
    parts.mkdir()
    for name, path in (("item_hashes", item_hashes), ("user_hashes", user_hashes)):
        np.save(parts / f"{name}.npy", np.load(path, allow_pickle=False), allow_pickle=False)
    groups = bucket_groups(data, ["events"])
    tasks: list[Task] = [
        {"folder": str(parts), "part": f"{group.low:04d}-{group.high:04d}", "files": json.dumps(group.files["events"])}
        for group in groups
    ]
    total: Counter[str] = Counter()
    for done in runner.map(_extract_group, tasks):
        total.update(json.loads(done["counts"]))
    joined = Interactions.join([Interactions.load(parts / str(task["part"])) for task in tasks] or [Interactions.empty()])
    joined.save(folder / "interactions")
    shutil.rmtree(parts)
    (folder / "counts.json").write_text(json.dumps(total, sort_keys=True))
    return dict(total)
