"""Answer held-out prefixes with the serving stages, and judge the lists: Recall@20 and MRR@20 with intervals, by source, the
ceiling that candidates set, latency."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hindcast.evaluation.next_click.files import SessionFiles
from hindcast.evaluation.next_click.model import LIST_LENGTH, Chain, requests
from serve_app.stages.retrieval.evidence import INDEX, RANKED
from serve_app.stages.stage import Stage
from serve_app.vocabulary import DropReason

__all__ = ["Answers", "Figure", "answer", "figures", "latency"]

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_CHUNK = 1_024
_RESAMPLES = 1_000
_SOURCES = tuple(name for name in RANKED if name != "similar")  # nothing is anchored here
_LENGTHS = ((1, 1), (2, 3), (4, 7), (8, 10**9))


@dataclass(frozen=True, slots=True)
class Answers:
    """Per held-out row: rank i32[rows] of the target in the list (0: not in it), its rank by each single source, whether it
    was a candidate at all; candidates: how many there were on average."""

    ranking: I32
    by_source: dict[str, I32]
    candidate: npt.NDArray[np.bool_]
    candidates: float


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over rows with its 95 % interval, resampled by session."""

    value: float
    low: float
    high: float


def answer(chain: Chain, files: SessionFiles, progress: Callable[[str], None]) -> Answers:
    """One list per prefix."""
    n = len(files.prefixes)
    ranking, found, total = np.zeros(n, np.int32), np.zeros(n, np.bool_), 0
    by_source = {name: np.zeros(n, np.int32) for name in _SOURCES}
    for start in range(0, n, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, n))
        batch = chain.run(requests(files.prefixes.take(rows), start))
        total += batch.candidates.rows
        hit = np.flatnonzero(batch.candidates["item"] == files.targets[rows][batch.owner])
        at = rows[batch.owner[hit]]
        ranking[at] = batch.candidates["slot"][hit] + 1
        found[at] = batch.candidates["drop_reason"][hit] == DropReason.kept
        for name in _SOURCES:
            rank = batch.candidates["source_scores"][hit, INDEX[f"{name}_rank"]]
            by_source[name][at] = np.where(rank <= LIST_LENGTH, rank, 0)
        progress(f"{rows[-1] + 1:,} of {n:,} prefixes answered")
    return Answers(ranking, by_source, found, total / max(n, 1))


def figures(answers: Answers, files: SessionFiles, seed: int) -> dict[str, dict[str, Figure]]:
    """Recall@20 and MRR@20 of the ranked list, of each source alone, by length of the prefix; the ceiling."""
    weights = _resamples(files.cluster, seed)

    def both(rank: I32, rows: npt.NDArray[np.bool_] | None = None) -> dict[str, Figure]:
        inside = (rank > 0) & (rank <= LIST_LENGTH)
        reciprocal = np.where(inside, 1.0 / np.maximum(rank, 1), 0.0)
        mask = np.ones(len(rank), np.bool_) if rows is None else rows
        return {
            f"recall@{LIST_LENGTH}": _figure(inside.astype(np.float64), mask, files.cluster, weights),
            f"mrr@{LIST_LENGTH}": _figure(reciprocal, mask, files.cluster, weights),
        }

    out = {"ranking": both(answers.ranking)}
    out |= {f"source {name}": both(rank) for name, rank in answers.by_source.items()}
    everyone = np.ones(len(answers.candidate), np.bool_)
    out["ceiling"] = {"recall": _figure(answers.candidate.astype(np.float64), everyone, files.cluster, weights)}
    for low, high in _LENGTHS:
        rows = (files.prefixes.lengths >= low) & (files.prefixes.lengths <= high)
        if rows.any():
            name = f"{low}" if low == high else f"{low} to {high}" if high < 10**9 else f"{low} or more"
            out[f"prefix of {name}"] = both(answers.ranking, rows)
    return out


def _resamples(cluster: I64, seed: int) -> I32:
    """i32[resamples, clusters]: how often each session is drawn (cluster bootstrap, Efron and Tibshirani 1993)."""
    groups = int(cluster.max(initial=-1)) + 1
    draw = np.random.default_rng(seed)
    drawn = (draw.integers(0, groups, groups) for _ in range(_RESAMPLES))
    return np.stack([np.bincount(one, minlength=groups) for one in drawn]).astype(np.int32)


def _figure(values: F64, rows: npt.NDArray[np.bool_], cluster: I64, weights: I32) -> Figure:
    groups = weights.shape[1]
    total = np.bincount(cluster[rows], weights=values[rows], minlength=groups)
    count = np.bincount(cluster[rows], minlength=groups)
    means = (weights * total).sum(axis=1) / np.maximum((weights * count).sum(axis=1), 1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Figure(float(values[rows].mean()), float(low), float(high))


def latency(chain: Chain, files: SessionFiles, size: int, batches: int, seed: int) -> dict[str, float]:
    """Milliseconds per request of one thread, in batches of `size`: median of each stage, median and 99th percentile of the
    whole chain."""
    rows = np.random.default_rng(seed).integers(0, len(files.prefixes), (batches, size))
    spent = np.empty((batches, 3))
    for k in range(batches):
        batch = requests(files.prefixes.take(rows[k]), 0)
        stages: tuple[Stage, ...] = (chain.retrieval, chain.features, chain.ranking)
        for column, stage in enumerate(stages):
            begin = time.perf_counter()
            batch = stage.run(batch, chain.context)
            spent[k, column] = (time.perf_counter() - begin) * 1e3 / size
    whole = spent.sum(axis=1)
    each = dict(zip(("retrieval_ms", "features_ms", "ranking_ms"), np.median(spent, axis=0).tolist(), strict=True))
    return {**each, "p50_ms": float(np.median(whole)), "p99_ms": float(np.quantile(whole, 0.99))}
