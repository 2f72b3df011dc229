"""One small world, made once for all tests that read its log."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.log.reader import read_log
from serve_app.policy.document import PolicyDocument, load_policy
from simulators.world.publish import BEHAVIOUR, publish
from simulators.world.settings import WorldSettings

__all__ = ["SETTINGS", "behaviour", "column", "log_table", "world_data"]

SETTINGS = WorldSettings(users=1_200, items=300, days=9, seed=11, blocks_per_day=4)


@cache
def world_data() -> Path:
    """The data folder of the world."""
    root = Path(tempfile.mkdtemp(prefix="hindcast-world-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    publish(SETTINGS, root / "data", code_version="test")
    return root / "data"


@cache
def log_table(name: str) -> pa.Table:
    """All rows of one table of its log."""
    return read_log(world_data(), name)


def column(table: pa.Table, name: str) -> npt.NDArray[np.generic]:
    """One column as numpy; list columns of one width become a matrix."""
    values = table[name].combine_chunks()
    if pa.types.is_list(values.type):
        flat = values.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(values), -1) if len(values) else flat.reshape(0, 0)
    return values.to_numpy(zero_copy_only=False)


@cache
def behaviour() -> PolicyDocument:
    """The policy in force."""
    return load_policy(BEHAVIOUR)
