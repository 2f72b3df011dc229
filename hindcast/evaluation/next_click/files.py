"""Click sessions and held-out prefixes as two CSV files, in memory as item rows.

The form is that of Diginetica's public splits: train_sessions.csv(.gz) with `session_id, items` (item ids separated by
blanks, in click order; sessions oldest first) and test_prefixes.csv(.gz) with `row_id, prefix, target`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from serve_app.batch import Ragged, lengths_to_offsets
from serve_app.errors import InvalidInput
from serve_app.ids import hash_ids

__all__ = ["SessionFiles", "prefixes_of", "read_session_files"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SessionFiles:
    """item_hashes u64[items], in order of first appearance. sessions: item rows in click order, oldest session first.
    prefixes: item rows of each held-out request, items unknown to the sessions left out; targets i32[rows] (-1: unknown);
    cluster i64[rows]: which held-out session a row was cut from."""

    item_hashes: npt.NDArray[np.uint64]
    sessions: Ragged
    prefixes: Ragged
    targets: I32
    cluster: I64
    unknown_clicks: int

    def last_sessions(self, count: int) -> SessionFiles:
        """The same with only the newest `count` sessions to learn from; the catalogue stays whole."""
        if count >= len(self.sessions):
            return self
        newest = self.sessions.take(np.arange(len(self.sessions) - count, len(self.sessions)))
        return SessionFiles(self.item_hashes, newest, self.prefixes, self.targets, self.cluster, self.unknown_clicks)

    def some_prefixes(self, count: int, seed: int) -> SessionFiles:
        """The same with a seeded sample of `count` held-out rows, in their order."""
        if count >= len(self.prefixes):
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self.prefixes), count, replace=False))
        picked = self.prefixes.take(rows)
        return SessionFiles(
            self.item_hashes, self.sessions, picked, self.targets[rows], self.cluster[rows], self.unknown_clicks
        )


def read_session_files(folder: Path) -> SessionFiles:
    """Read both files. InvalidInput names the file or column that is missing."""
    train = _read(folder, "train_sessions", ("session_id", "items"))
    test = _read(folder, "test_prefixes", ("row_id", "prefix", "target"))
    clicks = [own for own in (text.split() for text in train["items"].tolist()) if own]
    if not clicks:
        raise InvalidInput("train_sessions has no sessions", field="--from")
    codes, ids = pd.factorize(np.array([one for own in clicks for one in own], dtype=object))
    row_of = {one: row for row, one in enumerate(ids.tolist())}
    sessions = Ragged(codes.astype(np.int32), lengths_to_offsets([len(own) for own in clicks]))
    asked = [own.split() for own in test["prefix"].tolist()]
    wanted = [text.strip() for text in test["target"].tolist()]
    known = [[row_of[one] for one in own if one in row_of] for own in asked]
    return SessionFiles(
        item_hashes=hash_ids(ids.tolist()),
        sessions=sessions,
        prefixes=Ragged.of(known, np.int32),
        targets=np.array([row_of.get(one, -1) for one in wanted], np.int32),
        cluster=_clusters(asked, wanted),
        unknown_clicks=sum(map(len, asked)) - sum(map(len, known)),
    )


def _read(folder: Path, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    for path in (folder / f"{name}.csv.gz", folder / f"{name}.csv"):
        if path.is_file():
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
            lacking = [column for column in columns if column not in frame.columns]
            if lacking:
                raise InvalidInput(f"{path.name} has no column {', '.join(lacking)}", field="--from")
            return frame
    raise InvalidInput(f"{folder} has no {name}.csv.gz or {name}.csv", field="--from")


def _clusters(prefixes: list[list[str]], targets: list[str]) -> I64:
    """i64[rows]: a row belongs to the session of the row before it when its prefix and target are that row's prefix."""
    same = [
        row > 0 and prefixes[row - 1] == [*prefix, target]
        for row, (prefix, target) in enumerate(zip(prefixes, targets, strict=True))
    ]
    return np.cumsum(~np.array(same, np.bool_)) - 1


def prefixes_of(sessions: Ragged) -> tuple[Ragged, I32, I64]:
    """Every cut of every session: what came before it, the click that followed i32[n], and the session i64[n]."""
    lengths = sessions.lengths
    cuts = np.maximum(lengths - 1, 0)
    session = np.repeat(np.arange(len(sessions)), cuts)
    offsets = lengths_to_offsets(cuts)
    length = np.arange(offsets[-1]) - offsets[:-1][session] + 1
    out = lengths_to_offsets(length)
    begin = sessions.offsets[:-1][session]
    flat = np.arange(out[-1]) + np.repeat(begin - out[:-1], length)
    return Ragged(sessions.values[flat], out), sessions.values[begin + length], session
