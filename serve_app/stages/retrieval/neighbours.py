"""Nearest neighbours over item embeddings: ScaNN for large catalogues, an exact fixed-order search for small ones.

Neither's answer depends on how many queries share a call: ScaNN is asked query by query, and its brute force, whose bits
vary with the batch, is not used. The ScaNN index is immutable, holds no docids (with them it
would write and read a pickle) and stores relative paths, so its folder can be moved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.kernels import kernel
from serve_app.stages.retrieval.choose import threshold

__all__ = [
    "EXACT_BELOW",
    "ExactNeighbours",
    "Neighbours",
    "ScannNeighbours",
    "build_scann",
    "exact_scores",
    "load_neighbours",
]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

EXACT_BELOW = 4_096
"""Catalogues smaller than this are searched exactly: it is quicker there, and a tree index refuses fewer than 16 items."""


class Neighbours(Protocol):
    """Search by inner product."""

    def search(self, queries: F32, count: int) -> tuple[I32, F32]:
        """queries f32[q, d] -> (rows i32[q, count], scores f32[q, count]), best first; short results end in row -1, NaN."""


@kernel
def exact_scores(queries: F32, transposed: F32, out: F32) -> None:
    """out[q, i] = sum over d of queries[q, d] * transposed[d, i], accumulated in the order of d for every cell alike."""
    for q in range(queries.shape[0]):
        row = out[q]
        row[:] = np.float32(0.0)
        for d in range(queries.shape[1]):
            weight = queries[q, d]
            column = transposed[d]
            for i in range(column.shape[0]):
                row[i] += weight * column[i]


@kernel
def _best(queries: F32, transposed: F32, rows: I32, scores: F32) -> None:
    """The best rows.shape[1] items of every query, ties by row."""
    items, take = transposed.shape[1], rows.shape[1]
    out, copy, keys = np.empty((1, items), np.float32), np.empty(items, np.float32), np.empty(items, np.uint64)
    bits = out[0].view(np.uint32)
    for q in range(len(queries)):
        exact_scores(queries[q : q + 1], transposed, out)
        for i in range(items):
            out[0, i] += np.float32(0.0)  # no negative zero
            copy[i] = out[0, i]
        limit, count = threshold(copy, take), 0
        for i in range(items):
            if out[0, i] >= limit:
                # Bits of floats rise with them, once the sign is seen to; the complement sorts best first, then by row.
                rising = ~bits[i] if bits[i] >> np.uint32(31) else bits[i] | np.uint32(0x80000000)
                keys[count] = (np.uint64(~rising) << np.uint64(32)) | np.uint64(i)
                count += 1
        keys[:count].sort()
        for k in range(take):
            rows[q, k] = np.int32(keys[k] & np.uint64(0xFFFFFFFF))
            scores[q, k] = out[0, rows[q, k]]


class ExactNeighbours:
    """Every item scored."""

    def __init__(self, embeddings: F32) -> None:
        self._transposed = np.ascontiguousarray(embeddings.T, np.float32)

    def search(self, queries: F32, count: int) -> tuple[I32, F32]:
        """See Neighbours."""
        take = min(count, self._transposed.shape[1])
        rows, scores = np.empty((len(queries), take), np.int32), np.empty((len(queries), take), np.float32)
        _best(np.ascontiguousarray(queries, np.float32), self._transposed, rows, scores)
        return _padded(rows, scores, count)


def _padded(rows: I32, scores: F32, count: int) -> tuple[I32, F32]:
    """Filled up to `count` columns with row -1 and NaN."""
    short = count - rows.shape[1]
    if short <= 0:
        return rows, scores
    rows = np.pad(rows, ((0, 0), (0, short)), constant_values=-1)
    return rows, np.pad(scores, ((0, 0), (0, short)), constant_values=np.float32(np.nan))


class ScannNeighbours:
    """A loaded ScaNN index."""

    def __init__(self, searcher: Any, items: int) -> None:
        self._searcher = searcher
        self._items = items

    def search(self, queries: F32, count: int) -> tuple[I32, F32]:
        """See Neighbours. ScaNN pads short results with row 0 and NaN: those become row -1.

        One call a query: with several, which of equally good hashed distances survive to be rescored depends on the
        company (seen: other rows for one query in a hundred). It costs no time, a batched call takes as long per query.
        """
        take = min(count, self._items)
        rows = np.full((len(queries), take), -1, np.int32)
        scores = np.full((len(queries), take), np.nan, np.float32)
        queries = np.ascontiguousarray(queries, np.float32)
        for q in range(len(queries)):
            found, score = self._searcher.search_batched(queries[q : q + 1], final_num_neighbors=take)
            length = found.shape[1]
            rows[q, :length], scores[q, :length] = found[0], score[0]
        rows[np.isnan(scores)] = -1
        return _padded(rows, scores, count)


def build_scann(embeddings: F32, folder: Path) -> None:
    """Train a tree + anisotropic-hash index (Guo et al. 2020) over f32[n, d] and write it to `folder`.

    About sqrt(n) leaves; a quarter of them are searched and the best 400 rescored exactly, which keeps recall@100 above .95.
    """
    from scann.scann_ops.py import scann_ops_pybind

    count = len(embeddings)
    if count < EXACT_BELOW:
        raise InvalidInput(f"{count} items are searched exactly", field="embeddings", hint=f"index from {EXACT_BELOW} up")
    leaves = int(np.sqrt(count))
    index = (
        scann_ops_pybind.builder(np.ascontiguousarray(embeddings, np.float32), 200, "dot_product")
        .tree(num_leaves=leaves, num_leaves_to_search=max(leaves // 4, 16), training_sample_size=min(count, 250_000))
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(400)
        .build()
    )
    folder.mkdir(parents=True, exist_ok=True)
    index.serialize(str(folder), relative_path=True)
    if (folder / "scann_docids.pkl").exists():
        raise DamagedArtifact("ScaNN wrote a pickle", field=str(folder), hint="build without docids")


def load_neighbours(embeddings: F32, folder: Path) -> Neighbours:
    """The index in `folder`, or exact search where the catalogue is small and has none."""
    if len(embeddings) < EXACT_BELOW:
        return ExactNeighbours(embeddings)
    if not (folder / "scann_assets.pbtxt").is_file():
        raise DamagedArtifact("index is missing or incomplete", field=folder.name, hint="rebuild the release")
    if (folder / "scann_docids.pkl").exists():
        raise DamagedArtifact("index holds a pickle, which is never loaded", field=folder.name, hint="rebuild the release")
    from scann.scann_ops.py import scann_ops_pybind

    try:
        searcher = scann_ops_pybind.load_searcher(str(folder), assets_backcompat_shim=False)
    except (ValueError, RuntimeError, OSError) as error:
        raise DamagedArtifact(f"index cannot be loaded: {error}", field=folder.name, hint="rebuild the release") from error
    return ScannNeighbours(searcher, len(embeddings))
