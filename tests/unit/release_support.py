"""Tiny shops for release tests: a catalogue and a log on disk, small enough to build in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from serve_app.catalogue import Catalogue, table_of, write_catalogue
from serve_app.ids import bucket_of, hash_ids
from serve_app.log.rows import fill
from serve_app.log.writer import LogWriter
from serve_app.release.build.pipeline import BuildReport, build_release
from serve_app.release.build.runner import LocalRunner
from serve_app.release.build.settings import BuildSettings
from serve_app.release.build.workspace import Observer
from serve_app.vocabulary import EventType

DAY_US = 86_400_000_000
START = 1_760_000_000_000_000
TINY = BuildSettings(dimensions=8, trees=5, depth=3, negatives=10)


def make_shop(data: Path, *, items: int = 30, users: int = 40, sessions: int = 600, seed: int = 5) -> None:
    """Write a catalogue of `items` and a log of `sessions` in which items of one category go together."""
    draw = np.random.default_rng(seed)
    item_ids = [f"item-{i}" for i in range(items)]
    user_ids = [f"user-{u}" for u in range(users)]
    goods = {
        "item_id": item_ids,
        "title": [f"Item {i}" for i in range(items)],
        "category": [f"kind {i % 3}" for i in range(items)],
        "price": draw.integers(1, 99, items).astype(float),
        "currency": ["GBP"] * items,
        "created_at": [0] * items,
        "available": [True] * items,
    }
    people = {
        "user_id": user_ids,
        "zone": ["Europe/London"] * users,
        "region": ["GB"] * users,
        "created_at": [START] * users,
    }
    write_catalogue(Catalogue(table_of("items", goods), table_of("users", people)), data / "catalogue")
    if sessions and items:
        _write_events(data, draw, hash_ids(item_ids), hash_ids(user_ids), sessions)


def _write_events(
    data: Path, draw: np.random.Generator, item_hashes: np.ndarray, user_hashes: np.ndarray, sessions: int
) -> None:
    items, length = len(item_hashes), 5
    rows = sessions * length
    session = np.repeat(np.arange(sessions), length)
    kind = draw.integers(0, 3, sessions)[session]
    item = (kind + 3 * draw.integers(0, max(items // 3, 1), rows)) % items
    ts = START + session * (60 * DAY_US // sessions) + np.tile(np.arange(length), sessions) * 60_000_000
    user = (
        user_hashes[draw.integers(0, len(user_hashes), sessions)][session] if len(user_hashes) else np.zeros(rows, np.uint64)
    )
    columns = {
        "user": user,
        "user_bucket": bucket_of(user),
        "ts": ts,
        "ingested_at": ts + 1_000,
        "event_id": hash_ids(f"event-{i}" for i in range(rows)),
        "type": np.where(draw.random(rows) < 0.3, EventType.conversion, EventType.view).astype(np.int8),
        "item": item_hashes[item],
        "session": hash_ids(f"session-{s}" for s in session),
        "quantity": np.ones(rows, np.int32),
        "amount": np.full(rows, 2.5),
    }
    with LogWriter(data) as writer:
        writer.write("events", fill("events", rows, columns))


def build(data: Path, settings: BuildSettings = TINY, created_at: int = 1, observer: Observer | None = None) -> BuildReport:
    """Build in this process."""
    return build_release(data, settings=settings, runner=LocalRunner(), created_at=created_at, observer=observer)
