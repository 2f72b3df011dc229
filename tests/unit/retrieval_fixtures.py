"""A small catalogue with structured sessions, and batches of item requests over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from serve_app.batch import Batch, Ragged, lengths_to_offsets
from serve_app.stages.retrieval import RetrievalBuild, RetrievalTables, SessionLog
from serve_app.vocabulary import Surface

REGIONS = ("KR", "US", "GB")


def tables(folder: Path, *, items: int = 300, sessions: int = 800, seed: int = 0, **settings: object) -> RetrievalTables:
    """Sessions wander among neighbouring item rows, so that co-visits have structure."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 8, sessions)
    offsets = lengths_to_offsets(lengths)
    start = np.repeat(rng.integers(0, items, sessions), lengths)
    clicked = ((start + rng.integers(0, 12, offsets[-1])) % items).astype(np.int32)
    categories = min(6, items)
    return RetrievalTables.build(
        SessionLog(clicked, offsets, rng.integers(-1, 3, sessions).astype(np.int32), np.ones(len(clicked), np.float32)),
        folder,
        item_hashes=np.arange(items, dtype=np.uint64) * np.uint64(7919) + np.uint64(1),
        item_category=(np.arange(items) % categories).astype(np.int32),
        available=np.ones(items, np.bool_),
        category_hashes=np.arange(1, categories + 1, dtype=np.uint64),
        regions=REGIONS,
        settings=RetrievalBuild(dimensions=16, **settings),  # type: ignore[arg-type]
    )


def requests(count: int, items: int, *, seed: int = 1, surface: Surface = Surface.related, width: int = 200) -> Batch:
    """Random requests: some without anchor, some without recents."""
    rng = np.random.default_rng(seed)
    recents = Ragged.of([rng.integers(0, items, rng.integers(0, 9)) for _ in range(count)], np.int32)
    none = Ragged.empty(count, np.int32)
    return Batch.of_requests(
        surface=np.full(count, surface, np.int8),
        policy=np.zeros(count, np.int16),
        anchor=rng.integers(-1, items, count).astype(np.int32),
        recents=recents,
        region=rng.integers(-1, 3, count).astype(np.int16),
        categories=none,
        excluded=none,
        bought=none,
        width=np.full(count, width, np.int32),
    )


def with_column(batch: Batch, name: str, values: object) -> Batch:
    """The batch with one request column replaced."""
    columns = {key: batch.requests[key] for key in batch.requests} | {name: values}
    return Batch.of_requests(**columns)  # type: ignore[arg-type]
