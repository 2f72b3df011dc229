"""Parts the shop importers share: clocks, hashes of many repeated ids, the rows of a gateway page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from serve_app.catalogue import table_of
from serve_app.errors import InvalidInput
from serve_app.ids import hash_ids

__all__ = ["default_widgets", "hash_column", "local_to_utc", "require", "source_file"]

_WIDGETS = (
    ("for-you", "Picked for you", "taste"),
    ("best", "Popular now", "popular"),
    ("recent", "Seen recently", "recent"),
    ("together", "Bought together", "covisited"),
    ("new", "New in", "fresh"),
)


def source_file(folder: Path, *names: str) -> Path:
    """The first of `names` in `folder`; `folder` itself where it is a file."""
    if folder.is_file():
        return folder
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InvalidInput(f"{folder} has no {' or '.join(names)}", field="--from")


def require(frame: pd.DataFrame, path: Path, *columns: str) -> None:
    """InvalidInput that names the columns `frame` lacks."""
    missing = [one for one in columns if one not in frame.columns]
    if missing:
        raise InvalidInput(f"{path.name} has no column {', '.join(missing)}", field="--from")


def hash_column(texts: pd.Series, prefix: str = "") -> npt.NDArray[np.uint64]:
    """u64 hash of every text, hashing each distinct one once."""
    codes, distinct = pd.factorize(texts)
    hashed: npt.NDArray[np.uint64] = hash_ids(f"{prefix}{one}" for one in distinct.tolist())[codes]
    return hashed


def local_to_utc(local: pd.Series, zone: str) -> tuple[npt.NDArray[np.int64], int]:
    """Wall-clock times -> i64 microseconds UTC, and how many had to be mended: an hour that daylight saving skipped moves
    forward, an hour that came twice is taken as its first coming."""
    stamps = pd.DatetimeIndex(local)
    aware = stamps.tz_localize(zone, ambiguous=np.ones(len(stamps), np.bool_), nonexistent="shift_forward")
    later = stamps.tz_localize(zone, ambiguous=np.zeros(len(stamps), np.bool_), nonexistent="shift_backward")
    utc: npt.NDArray[np.int64] = aware.tz_convert("UTC").as_unit("us").asi8
    return utc, int((aware != later).sum())


def default_widgets() -> pa.Table:
    """Rows of a gateway page for a shop whose data names none."""
    ids, titles, kinds = (list(one) for one in zip(*_WIDGETS, strict=True))
    return table_of("widgets", {"widget_id": ids, "title": titles, "kind": kinds, "argument": [""] * len(ids)})
