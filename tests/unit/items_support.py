"""Worlds whose lists are logged in full, and policies beside the one that made them."""

from __future__ import annotations

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.log.reader import bucket_groups, read_files
from serve_app.policy.document import PolicyDocument, canonical_json, parse_policy
from serve_app.vocabulary import Surface
from simulators.replay.items.logged import Lists, read_lists
from simulators.replay.items.rewards import EVENT_COLUMNS
from simulators.world.publish import publish, read_world
from simulators.world.settings import WorldSettings

__all__ = ["events_of", "full_world", "lists_of", "logging_policy", "other", "relevance_of"]

TABLES = ("requests", "candidates", "events")


@cache
def full_world(seed: int) -> Path:
    """A small world whose every list is logged with all its candidates."""
    root = Path(mkdtemp(prefix="hindcast-lists-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    settings = WorldSettings(users=700, items=120, days=6, seed=seed, blocks_per_day=2, slate_log_rate=1.0)
    publish(settings, root / "data", code_version="test")
    return root / "data"


def logging_policy(data: Path) -> PolicyDocument:
    """What made the lists."""
    return read_world(data)[1]


def other(document: PolicyDocument, surface: str, **changed: Any) -> PolicyDocument:
    """The same policy with other settings of one surface."""
    plain = orjson.loads(canonical_json(document))
    plain["surfaces"][surface] |= changed
    return parse_policy(plain)


def lists_of(data: Path, surface: Surface) -> list[Lists]:
    """By bucket group."""
    return [part for group in bucket_groups(data, TABLES) for part in read_lists(group, [surface])[0]]


def events_of(data: Path) -> pa.Table:
    """All of them."""
    parts = [read_files(group.files["events"], "events", columns=EVENT_COLUMNS) for group in bucket_groups(data, TABLES)]
    return pa.concat_tables(parts)


def relevance_of(data: Path, lists: Lists) -> np.ndarray[Any, np.dtype[np.float64]]:
    """f64[m]: the true chance of a click on each candidate, once it is looked at."""
    truth = pa.concat_tables([pq.read_table(path) for path in sorted((data / "world" / "slates").glob("*.parquet"))])
    frame = truth.to_pandas().set_index(["user", "request_id", "idx"])["relevance"]
    owner = lists.owner
    idx = np.arange(len(owner)) - lists.offsets[owner]
    keys = list(zip(lists.logged_user[owner], lists.requests["request_id"][owner], idx.astype(np.int32), strict=True))
    return frame.loc[keys].to_numpy(np.float64)
