"""Click sessions in the form of Diginetica's public splits: train_sessions.csv(.gz) with `session_id, items` (item numbers
separated by blanks, in click order), test_prefixes.csv(.gz) with `row_id, prefix, target`.

Only the training sessions enter the log; the test file is what `hindcast evaluate sessions` holds out. The data has no
clock: a session is given one minute, a click one second, from 2016-01-01 on, and the watermark says so. No users either.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hindcast.importers.report import ImportReport
from hindcast.importers.shop import default_widgets, hash_column, require, source_file
from hindcast.importers.staging import Imported
from serve_app.catalogue import Catalogue, table_of
from serve_app.errors import InvalidInput
from serve_app.ids import hash_ids
from serve_app.log.rows import fill
from serve_app.vocabulary import EventType

__all__ = ["load"]

_START_US = 1_451_606_400_000_000  # 2016-01-01 UTC
_SESSION_US = 60_000_000
_CLICK_US = 1_000_000


def load(folder: Path) -> Imported:
    """Catalogue (items without titles) and view events of the sessions in `folder`."""
    path = source_file(folder, "train_sessions.csv.gz", "train_sessions.csv")
    held_out = source_file(folder, "test_prefixes.csv.gz", "test_prefixes.csv")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    require(frame, path, "session_id", "items")
    report = ImportReport("sessions", rows_in=len(frame), synthetic_clock=True)
    frame["clicks"] = frame["items"].str.split()
    empty = frame["clicks"].str.len() == 0
    repeated = frame["session_id"].duplicated() & ~empty
    if empty.any():
        report.refused["session without items"] = int(empty.sum())
    if repeated.any():
        report.refused["session id that stood before"] = int(repeated.sum())
    frame = frame[~empty & ~repeated].reset_index(drop=True)
    if len(frame) == 0:
        raise InvalidInput(f"{path.name} has no sessions", field="--from")
    report.kept = {"session": len(frame)}
    report.notes += [
        "times are synthetic: the order of sessions and of clicks is the data's, the distances are made up",
        "there are no users: every session is anonymous (user 0)",
        f"{_rows(held_out):,} rows of {held_out.name} were left out: they are the test",
    ]
    item_ids, codes, session, position = _flatten(frame["clicks"])
    catalogue = Catalogue(items=_items(item_ids, codes, session), widgets=default_widgets())
    return Imported(catalogue, report, {"events": _events(frame["session_id"], item_ids, codes, session, position)})


def _rows(path: Path) -> int:
    frame = pd.read_csv(path, usecols=["row_id"])
    return len(frame)


def _flatten(
    clicks: pd.Series,
) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct item ids, and per click: index into them, session row, position in the session."""
    lengths = clicks.str.len().to_numpy().astype(np.int64)
    codes, distinct = pd.factorize(np.array([one for click in clicks for one in click], dtype=object), sort=True)
    session = np.repeat(np.arange(len(clicks)), lengths)
    position = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return [str(one) for one in distinct], codes.astype(np.int64), session, position


def _clock(session: npt.NDArray[np.int64], position: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int64]:
    out: npt.NDArray[np.int64] = _START_US + session * _SESSION_US + position * _CLICK_US
    return out


def _items(item_ids: list[str], codes: npt.NDArray[np.int64], session: npt.NDArray[np.int64]) -> object:
    n = len(item_ids)
    first = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(first, codes, session)
    blank = [""] * n
    return table_of(
        "items",
        {
            "item_id": item_ids,
            "title": blank,
            "category": blank,
            "price": np.zeros(n),
            "currency": blank,
            "created_at": _clock(first, 0),
            "available": np.ones(n, np.bool_),
        },
    )


def _events(
    session_ids: pd.Series,
    item_ids: list[str],
    codes: npt.NDArray[np.int64],
    session: npt.NDArray[np.int64],
    position: npt.NDArray[np.int64],
) -> object:
    n = len(codes)
    ts = _clock(session, position)
    hashed = hash_column(session_ids, "sessions/")
    columns = {
        "user": np.zeros(n, np.uint64),
        "ts": ts,
        "ingested_at": ts,
        "event_id": hash_ids(
            f"sessions/{one}/{at}" for one, at in zip(session_ids.to_numpy()[session], position, strict=True)
        ),
        "type": np.full(n, EventType.view, np.int8),
        "item": hash_ids(item_ids)[codes],
        "session": hashed[session],
        "position": position.astype(np.int32),
    }
    return fill("events", n, columns)
