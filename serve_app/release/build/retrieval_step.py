"""Steps that build retrieval's tables as of a time, and judge the nearest-neighbour index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from serve_app.noise import hash_key
from serve_app.regions import region_index
from serve_app.release.build.interactions import Sessions
from serve_app.release.build.settings import BuildSettings
from serve_app.release.manifest import Metric
from serve_app.release.rows import CatalogueRows
from serve_app.stages.retrieval.neighbours import ExactNeighbours, ScannNeighbours
from serve_app.stages.retrieval.stage import Retrieval
from serve_app.stages.retrieval.tables import RetrievalBuild, RetrievalTables, SessionLog

__all__ = ["build_tables", "index_recall", "release_regions", "retrieval_stage"]

INDEX_DEPTH = 100
_PROBES = 1_000


def release_regions(rows: CatalogueRows) -> tuple[str, ...]:
    """Region codes of the catalogue's users, ascending; popularity lists are kept for each."""
    return tuple(sorted(code for code in pc.unique(rows.users["region"]).to_pylist() if code))


def retrieval_stage(tables: RetrievalTables) -> Retrieval:
    """The stage that serves, over these tables."""
    return Retrieval(tables, {region_index(code): row for row, code in enumerate(tables.regions)})


def build_tables(
    sessions: Sessions, rows: CatalogueRows, folder: Path, settings: BuildSettings, progress: Callable[[str], None]
) -> None:
    """Retrieval's tables from `sessions` into `folder`."""
    regions = release_regions(rows)
    row_of = {code: row for row, code in enumerate(regions)}
    user_region = np.array([row_of.get(code, -1) for code in rows.users["region"].to_pylist()] + [-1], np.int32)
    log = SessionLog(sessions.items, sessions.offsets, user_region[sessions.user], sessions.strength)
    RetrievalTables.build(
        log,
        folder,
        item_hashes=rows.item_hashes,
        item_category=rows.item_category,
        available=rows.item_available,
        category_hashes=rows.category_hashes,
        regions=regions,
        settings=RetrievalBuild(embedding=settings.embedding, dimensions=settings.dimensions, seed=settings.seed),
        progress=progress,
    )


def index_recall(tables: RetrievalTables, seed: int) -> Metric:
    """Recall@100 of the index at serving settings against exact search, over a seeded sample of the release's own items."""
    count = len(tables.item_hashes)
    if not isinstance(tables.neighbours, ScannNeighbours):
        return Metric(value=1.0, cases=count)
    probes = np.argsort(hash_key(seed, np.arange(count)), kind="stable")[:_PROBES]
    queries = np.ascontiguousarray(tables.vectors[probes], np.float32)
    found, _ = tables.neighbours.search(queries, INDEX_DEPTH)
    _, exact = ExactNeighbours(np.asarray(tables.vectors)).search(queries, INDEX_DEPTH)
    # By score, not by row: among items of equal similarity neither search is wrong.
    vectors = np.asarray(tables.vectors)
    hits = np.empty(len(probes))
    for row, (own, floor) in enumerate(zip(found, exact[:, -1], strict=True)):
        known = own[own >= 0]
        similarity = np.einsum("ij,j->i", vectors[known], queries[row])
        hits[row] = np.count_nonzero(similarity >= floor - 1e-5) / exact.shape[1]
    half = 1.96 * float(hits.std()) / np.sqrt(len(hits))
    return Metric(
        value=float(hits.mean()), low=float(hits.mean() - half), high=min(float(hits.mean() + half), 1.0), cases=len(hits)
    )
