"""Send decisions under another release's scores: its models on the features logged with every candidate."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.batch import Batch
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.log.reader import BucketGroup, read_files
from serve_app.noise import hash_key
from serve_app.stages.ranking.heads import HeadSet
from serve_app.vocabulary import Surface
from simulators.replay.opportunities import Opportunities
from simulators.replay.partition import Partition
from simulators.replay.rescoring import heads_of, opened_release, rescored
from simulators.replay.spec import ReplaySpec

__all__ = ["scored_again"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_CANDIDATES = ("user", "request_id", "idx", "features")
_REQUESTS = ("user", "request_id", "surface", "feature_names")


def scored_again(partition: Partition, group: BucketGroup, spec: ReplaySpec) -> tuple[Partition, tuple[str, ...]]:
    """(the partition with the release's heads beside the logged ones, their names). Candidates that nothing scored stay so.
    Raises InvalidInput naming features that were not logged."""
    heads = _models(spec.data, spec.release)
    if not group.files.get("candidates"):
        raise InvalidInput(
            "packs hold no features to score again", field="release", hint="keep the log, or replay without --release"
        )
    scores = _scores(partition.asked, group, heads)
    lost = _scored(partition.asked.batch) & np.isnan(scores).all(axis=1)
    if lost.any():
        raise InvalidInput(
            f"{int(lost.sum())} scored candidates have no features in the log", field="release",
            hint="replay the days whose features were logged (--from, --to), or without --release",
        )  # fmt: skip
    return partition.with_asked(replace(partition.asked, rescored=(heads.names, scores))), heads.names


def _scored(batch: Batch) -> npt.NDArray[np.bool_]:
    """bool[m]: candidates that a model scored when they were decided about."""
    if "heads" not in batch.candidates:
        return np.zeros(batch.candidates.rows, np.bool_)
    return ~np.isnan(batch.candidates["heads"]).all(axis=1)


@lru_cache(maxsize=2)
def _models(data: str, release: str) -> HeadSet:
    return heads_of(opened_release(Path(data), release, ("models",)), Surface.notification)


def _scores(asked: Opportunities, group: BucketGroup, heads: HeadSet) -> F32:
    """f32[m, H] of the candidates in order; NaN where no features were logged."""
    requests = read_files(group.files["requests"], "requests", columns=_REQUESTS)
    requests = requests.filter(pc.equal(requests["surface"], int(Surface.notification)))
    ids = requests["request_id"].combine_chunks()
    out = np.full((len(asked.batch.owner), len(heads.names)), np.nan, np.float32)
    names, codes = _feature_names(requests)
    by_request = _Places(requests["user"], requests["request_id"])
    by_asked = _Places(pa.array(asked.batch.requests["user"]), pa.array(asked.batch.requests["request_id"]))
    for path in group.files["candidates"]:
        rows = read_files([path], "candidates", columns=_CANDIDATES)
        rows = rows.filter(pc.is_in(rows["request_id"], ids))
        lists = rows["features"].combine_chunks()
        request = by_request.of(rows["user"], rows["request_id"])
        mine = by_asked.of(rows["user"], rows["request_id"])
        counts = np.diff(lists.offsets.to_numpy())
        place = asked.batch.offsets[np.maximum(mine, 0)] + rows["idx"].to_numpy()
        for code, text in enumerate(names):
            known = text.split(",") if text else []
            some = np.flatnonzero((mine >= 0) & (request >= 0) & (counts > 0) & (codes[np.maximum(request, 0)] == code))
            if len(some):
                out[place[some]] = rescored(heads, _matrix(lists, some, len(known)), known)
    return out


def _matrix(lists: pa.ListArray, rows: I64, width: int) -> F32:
    picked = lists.take(pa.array(rows))
    values: F32 = picked.flatten().to_numpy(zero_copy_only=False)
    if len(values) != len(rows) * width:
        raise DamagedArtifact(f"{len(values)} values for {len(rows)} rows of {width}", field="log.candidates.features")
    return values.reshape(len(rows), width)


def _feature_names(requests: pa.Table) -> tuple[list[str], I64]:
    column = requests["feature_names"].combine_chunks()
    column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    return column.dictionary.to_pylist(), column.indices.to_numpy(zero_copy_only=False).astype(np.int64)


class _Places:
    """Rows of (user, request id)."""

    def __init__(self, user: pa.ChunkedArray, request: pa.ChunkedArray) -> None:
        keys = hash_key(0, user.to_numpy(), request.to_numpy())
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def of(self, user: pa.ChunkedArray, request: pa.ChunkedArray) -> I64:
        """i64[n]; -1: none."""
        wanted = hash_key(0, user.to_numpy(), request.to_numpy())
        if not len(self._keys):
            return np.full(len(wanted), -1, np.int64)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[at] == wanted, self._order[at], -1)
