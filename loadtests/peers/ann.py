"""Nearest neighbours by hnswlib and faiss, one thread. Runs in the peers' environment.

``python loadtests/peers/ann.py FOLDER COUNT``: FOLDER holds vectors.npy, queries.npy and truth.npy (f32[n, d], f32[q, d],
i64[q, COUNT], inner product); prints recall and microseconds a query of each setting as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["main", "scored"]

_LINKS, _BUILD = 16, 200


def scored(search: Callable[[Any], Any], queries: Any, truth: Any) -> dict[str, float]:
    """One query a call. Recall: share of the true neighbours that were found."""
    took, found = [], 0
    for at, query in enumerate(queries):
        began = time.perf_counter()
        ids = search(query[None, :])
        took.append((time.perf_counter() - began) * 1e6)
        found += len(np.intersect1d(ids, truth[at]))
    return {
        "recall": found / truth.size,
        "p50_us": float(np.percentile(took, 50)),
        "p99_us": float(np.percentile(took, 99)),
    }


def _hnsw(vectors: Any, count: int) -> tuple[float, list[tuple[str, Callable[[Any], Any]]]]:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    began = time.perf_counter()
    index.init_index(max_elements=len(vectors), ef_construction=_BUILD, M=_LINKS)
    index.set_num_threads(1)
    index.add_items(vectors)
    took = time.perf_counter() - began

    def at(ef: int) -> Callable[[Any], Any]:
        def search(query: Any) -> Any:
            index.set_ef(ef)
            return index.knn_query(query, k=count)[0][0]

        return search

    return took, [(f"hnswlib ef={ef}", at(ef)) for ef in (count, 2 * count, 4 * count)]


def _faiss(vectors: Any, count: int) -> tuple[float, list[tuple[str, Callable[[Any], Any]]]]:
    import faiss

    faiss.omp_set_num_threads(1)
    cells = max(16, int(len(vectors) ** 0.5))
    index = faiss.index_factory(vectors.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    began = time.perf_counter()
    index.train(vectors)
    index.add(vectors)
    took = time.perf_counter() - began

    def at(probes: int) -> Callable[[Any], Any]:
        def search(query: Any) -> Any:
            index.nprobe = probes
            return index.search(query, count)[1][0]

        return search

    return took, [(f"faiss IVF{cells} nprobe={n}", at(n)) for n in (4, 16, 64)]


def main(folder: Path, count: int) -> list[dict[str, Any]]:
    """Every setting of every library."""
    vectors, queries, truth = (np.load(folder / f"{name}.npy") for name in ("vectors", "queries", "truth"))
    out = []
    for make in (_hnsw, _faiss):
        build_s, settings = make(vectors, count)
        out += [{"name": name, "build_s": build_s, **scored(search, queries, truth)} for name, search in settings]
    return out


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
