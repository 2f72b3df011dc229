"""What the chain costs over the bare calls it cannot do without.

Bare: ScaNN `search_batched`, a gather of feature rows, XGBoost `inplace_predict`, `argsort`. Chain: the `Retrieval`,
`Features` and `Ranking` stages in one process, with filters, feature statuses, calibration, the policy's weights and the
selector (temperature, window rule, MMR, propensities). Same index, same booster, same requests, one core, calls taken in
turn so that whatever else the machine does hits both. Run: ``python -m loadtests.bench_chain``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
import xgboost
from hdrh.histogram import HdrHistogram
from rich.console import Console
from rich.table import Table

from loadtests.hardware import hardware, hardware_line
from serve_app.batch import Batch, Ragged
from serve_app.stages.features import COMPUTED, Entity, Features, FeatureSpec, FeatureTable, ItemFacts, source_specs
from serve_app.stages.ranking.calibration import identity_calibration
from serve_app.stages.ranking.heads import Head, HeadSet, Models
from serve_app.stages.ranking.settings import ListSettings
from serve_app.stages.ranking.stage import Identities, Ranking
from serve_app.stages.retrieval.embeddings import normalise_rows
from serve_app.stages.retrieval.evidence import EVIDENCE
from serve_app.stages.retrieval.neighbours import EXACT_BELOW, build_scann
from serve_app.stages.retrieval.stage import Retrieval, SurfaceRetrieval
from serve_app.stages.retrieval.tables import RetrievalBuild, RetrievalTables, SessionLog
from serve_app.stages.stage import Context
from serve_app.vocabulary import Source, Surface

CANDIDATES, FEATURES, TREES, DEPTH, DIMENSIONS, SLOTS = 200, 32, 100, 6, 64, 20
NOW = 1_700_000_000_000_000
F32 = npt.NDArray[np.float32]

ITEM = tuple(FeatureSpec(f"item_{i}", Entity.item, max_age_s=86_400 * (1 + i)) for i in range(16))
USER = tuple(FeatureSpec(f"user_{i}", Entity.user, default=0.0) for i in range(6))
OTHERS = (
    "recent_category_count", "recent_price_ratio", "in_recents", "anchor_same_category", "anchor_price_ratio",
    "context_hour", "source_similar", "source_taste", "source_similar_rank", "retrieval_score",
)  # fmt: skip


@dataclass(frozen=True)
class BenchPolicy:
    """The bench's stand-in for a compiled policy: one setting for every request."""

    lists: ListSettings
    sources: SurfaceRetrieval

    def list_settings(self, surface: Surface, variant: int = 0) -> ListSettings:  # noqa: ARG002 -- the interface
        """Lists with everything switched on."""
        return self.lists

    def retrieval(self, surface: Surface, variant: int = 0) -> SurfaceRetrieval:  # noqa: ARG002 -- the interface
        """The index alone, as the bare calls."""
        return self.sources


@dataclass(frozen=True)
class Parts:
    """What both ways are made of."""

    tables: RetrievalTables
    booster: xgboost.Booster
    matrix: F32
    features: Features
    ranking: Ranking
    retrieval: Retrieval
    context: Context


def build_parts(items: int, folder: Path, seed: int = 0, *, candidates: int = CANDIDATES, trees: int = TREES) -> Parts:
    """A catalogue of `items` with random embeddings, tables and a booster trained on noise."""
    rng = np.random.default_rng(seed)
    sessions = 20_000
    log = SessionLog(
        rng.integers(0, items, sessions * 5).astype(np.int32),
        np.arange(sessions + 1, dtype=np.int64) * 5,
        np.full(sessions, -1, np.int32),
        np.ones(sessions * 5, np.float32),
    )
    # Clustered, as learned embeddings are: the tree index then searches as it would in earnest.
    centres = rng.normal(size=(items // 200 + 1, DIMENSIONS))
    vectors = normalise_rows(centres[rng.integers(0, len(centres), items)] + 0.8 * rng.normal(size=(items, DIMENSIONS)))
    category = rng.integers(0, 40, items).astype(np.int32)
    hashes = np.sort(rng.integers(0, 2**63, items)).astype(np.uint64)
    RetrievalTables.build(
        log,
        folder / "retrieval",
        item_hashes=hashes,
        item_category=category,
        available=np.ones(items, np.bool_),
        category_hashes=rng.integers(1, 2**63, 40).astype(np.uint64),
        regions=(),
        settings=RetrievalBuild(dimensions=DIMENSIONS),
    )
    tables = _with_vectors(folder / "retrieval", vectors)
    names = (*(s.name for s in ITEM), *(s.name for s in USER), *OTHERS)
    assert len(names) == FEATURES
    booster = _booster(rng, trees)
    head = Head("p_click", 0, 0, identity_calibration())
    models = Models({Surface.related: HeadSet(names, (head,), (booster,))})
    keys = np.arange(items, dtype=np.uint64)
    item_table = FeatureTable(
        Entity.item, ITEM, keys, rng.normal(size=(items, 16)).astype(np.float32), np.full(items, NOW, np.int64)
    )
    user_values = rng.normal(size=(1_000, 6)).astype(np.float32)
    user_table = FeatureTable(Entity.user, USER, keys[:1_000], user_values, np.full(1_000, NOW, np.int64))
    facts = ItemFacts(category, rng.random(items).astype(np.float32))
    plans = models.plans((*ITEM, *USER, *COMPUTED, *source_specs(EVIDENCE)))
    policy = BenchPolicy(
        ListSettings((("p_click", 1.0),), temperature=0.02, salt=1, window=5, per_window=2, mmr_lambda=0.8),
        SurfaceRetrieval({Source.similar: candidates + 1}),  # one more: the anchor itself is dropped
    )
    return Parts(
        tables,
        booster,
        rng.normal(size=(items, FEATURES)).astype(np.float32),
        Features(plans, [item_table, user_table], facts),
        Ranking(models, Identities(item=hashes)),
        Retrieval(tables),
        Context(policies=(policy,)),
    )


def _with_vectors(folder: Path, vectors: F32) -> RetrievalTables:
    """The saved tables with other embeddings and their index."""
    np.save(folder / "vectors.npy", vectors, allow_pickle=False)
    shutil.rmtree(folder / "scann")
    build_scann(vectors, folder / "scann")
    return RetrievalTables.load(folder)


def _booster(rng: np.random.Generator, trees: int) -> xgboost.Booster:
    x = rng.normal(size=(20_000, FEATURES)).astype(np.float32)
    y = rng.random(20_000) < 1 / (1 + np.exp(2 - np.sum(x[:, :4], axis=1)))
    parameters = {"objective": "binary:logistic", "max_depth": DEPTH, "nthread": 1, "tree_method": "hist"}
    booster = xgboost.train(parameters, xgboost.DMatrix(x, y), trees)
    booster.set_param({"nthread": 1})
    return booster


def request_batch(parts: Parts, size: int, seed: int, candidates: int = CANDIDATES) -> Batch:
    """`size` requests for related items, with five recents each."""
    rng = np.random.default_rng(seed)
    items = len(parts.tables.vectors)
    empty = Ragged.empty(size, np.int32)
    return Batch.of_requests(
        surface=np.full(size, Surface.related, np.int8),
        policy=np.zeros(size, np.int16),
        request_id=rng.integers(0, 2**63, size).astype(np.uint64),
        decided_at=np.full(size, NOW, np.int64),
        user_row=rng.integers(-1, 1_000, size).astype(np.int32),
        anchor=rng.integers(0, items, size).astype(np.int32),
        recents=Ragged.of([rng.integers(0, items, 5) for _ in range(size)], np.int32),
        bought=empty,
        excluded=empty,
        categories=empty,
        region=np.full(size, -1, np.int16),
        width=np.full(size, candidates, np.int32),
        slots=np.full(size, SLOTS, np.int32),
        context_hour=rng.integers(0, 24, size).astype(np.int8),
    )


def chain(parts: Parts, batch: Batch) -> Batch:
    """The three stages."""
    out = parts.retrieval.run(batch, parts.context)
    return parts.ranking.run(parts.features.run(out, parts.context), parts.context)


def bare(parts: Parts, batch: Batch) -> npt.NDArray[np.int64]:
    """The four calls."""
    queries = parts.tables.vectors[batch.requests["anchor"]]
    rows, _ = parts.tables.neighbours.search(queries, CANDIDATES)
    scores = parts.booster.inplace_predict(parts.matrix[rows.ravel()])
    return np.argsort(-scores.reshape(rows.shape), axis=1)


def measure(parts: Parts, size: int, rounds: int, warm_up: int = 30) -> dict[str, Any]:
    """Both ways in turn over the same requests; wall and processor time per request, in microseconds."""
    ways: Mapping[str, Callable[[Parts, Batch], object]] = {"bare": bare, "chain": chain}
    wall = {name: HdrHistogram(1, 60_000_000, 3) for name in ways}
    cpu = dict.fromkeys(ways, 0)
    for step in range(-warm_up, rounds):
        batch = request_batch(parts, size, step % 200)
        for name in sorted(ways, reverse=bool(step % 2)):  # in turns, so that neither always finds a warm cache
            began, used = time.perf_counter_ns(), time.process_time_ns()
            ways[name](parts, batch)
            used, took = time.process_time_ns() - used, time.perf_counter_ns() - began
            if step >= 0:
                wall[name].record_value(max(1, took // 1_000))
                cpu[name] += used
    found: dict[str, Any] = {"batch": size, "rounds": rounds}
    for name, histogram in wall.items():
        own = {f"p{p:g}": histogram.get_value_at_percentile(p) / size for p in (50, 90, 99)}
        found[name] = {**own, "cpu_mean": cpu[name] / rounds / size / 1_000}
    found["ratio_p50"] = found["chain"]["p50"] / found["bare"]["p50"]
    found["ratio_cpu"] = found["chain"]["cpu_mean"] / found["bare"]["cpu_mean"]
    return found


def main(
    items: Annotated[int, typer.Option(min=EXACT_BELOW, help="Size of the catalogue.")] = 100_000,
    rounds: Annotated[int, typer.Option(help="Calls measured per batch size.")] = 400,
    limit: Annotated[float, typer.Option(help="Fail above this ratio of chain to bare calls.")] = 1.5,
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")] = None,
) -> None:
    """Measure the chain against the bare calls, for batches of 1 and 32."""
    console = Console()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        with console.status(f"building an index of {items:,} items"):
            parts = build_parts(items, Path(folder))
        results = []
        for size in (1, 32):
            with console.status(f"batches of {size}"):
                results.append(measure(parts, size, rounds if size == 1 else max(rounds // 10, 20)))
    report = {"hardware": hardware(), "items": items, "candidates": CANDIDATES, "features": FEATURES, "trees": TREES}
    report |= {"dimensions": DIMENSIONS, "slots": SLOTS, "limit": limit, "results": results}
    _print(console, report)
    if out is not None:
        out.write_text(json.dumps(report, indent=1))
    if max(min(one["ratio_p50"], one["ratio_cpu"]) for one in results) > limit:
        console.print(f"[red]the chain costs more than {limit} x the bare calls[/]")
        sys.exit(1)


def _print(console: Console, report: Mapping[str, Any]) -> None:
    table = Table(
        title=f"{report['candidates']} candidates, {report['features']} features, {report['trees']} trees, one core"
    )
    table.caption = "microseconds per request: wall time (p50, p90, p99) and processor time (mean); ratio: chain / bare"
    for heading in ("batch", "way", "p50", "p90", "p99", "cpu", "ratio p50", "ratio cpu"):
        table.add_column(heading, justify="right")
    for one in report["results"]:
        for way in ("bare", "chain"):
            own = one[way]
            ratios = (f"{one['ratio_p50']:.2f}", f"{one['ratio_cpu']:.2f}") if way == "chain" else ("", "")
            figures = [f"{own[key]:,.0f}" for key in ("p50", "p90", "p99", "cpu_mean")]
            table.add_row(str(one["batch"]), way, *figures, *ratios)
    console.print(table)
    console.print(hardware_line(report))


if __name__ == "__main__":
    typer.run(main)
