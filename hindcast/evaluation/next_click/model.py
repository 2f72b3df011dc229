"""Learn from sessions with the parts that serve: retrieval tables, item features, the `p_click` head, one policy.

The head learns from the newest sessions over tables built from the older ones, so that all evidence is older than what it
is judged by; the tables that answer hold every session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hindcast.evaluation.next_click.files import SessionFiles, prefixes_of
from serve_app.batch import Batch, Ragged
from serve_app.noise import hash_key
from serve_app.policy.compile import compile_policy
from serve_app.policy.document import parse_policy
from serve_app.release.negatives import thin_negatives
from serve_app.stages.features import (
    COMPUTED,
    Entity,
    FeaturePlan,
    Features,
    FeatureSpec,
    FeatureTable,
    ItemFacts,
    source_specs,
)
from serve_app.stages.ranking.heads import HeadSet, Models
from serve_app.stages.ranking.stage import Identities, Ranking
from serve_app.stages.ranking.training import TrainSettings, train_heads
from serve_app.stages.retrieval import EVIDENCE, Retrieval, RetrievalBuild, RetrievalTables, SessionLog
from serve_app.stages.retrieval.evidence import INDEX
from serve_app.stages.retrieval.session_training import SessionEmbedding
from serve_app.stages.stage import Context
from serve_app.vocabulary import Surface

__all__ = ["FULL", "LIST_LENGTH", "QUICK", "Chain", "Effort", "learn", "requests"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

LIST_LENGTH = 20
_CHUNK = 1_024
_STRONG = (("taste", 12), ("session", 6), ("follow", 6))  # negatives within these ranks are hard, and all kept
_EASY_SHARE = 0.2

# Without an anchor and without popularity lists these columns are constant.
_UNUSED = {"similar", "similar_relative", "similar_rank", "popular"}
_ITEM_SPECS = tuple(
    FeatureSpec(f"item_{name}", Entity.item, writer="hindcast evaluate sessions")
    for name in ("clicks", "clicks_last_4000", "clicks_last_16000", "trend", "sessions_since", "entry_share", "repeat_share")
)
_PROVIDED = (*_ITEM_SPECS, *COMPUTED, *source_specs(EVIDENCE))
_FEATURES = (
    *(f"source_{name}" for name in EVIDENCE if name not in _UNUSED),
    "source_count",
    "recents_count",
    *(spec.name for spec in _ITEM_SPECS),
)
_POLICY = {
    "name": "next click: likeliest first, nothing left out",
    "surfaces": {
        "related": {
            "head_weights": {"p_click": 1.0},
            "temperature": 0.0,
            "sources": {"taste": 80, "covisited": 50, "session": 60, "recent": 12},
            "width": 400,
            "slots": LIST_LENGTH,
        }
    },
}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to learn from. history: newest sessions used at all; examples: newest of these that the head learns from, at
    most a fifth; epochs: of the embedding over the older sessions, and on from there over all."""

    history: int
    examples: int
    dimensions: int
    epochs: int
    more_epochs: int
    trees: int
    threads: int = 2
    seed: int = 0


FULL = Effort(history=10**9, examples=35_000, dimensions=96, epochs=5, more_epochs=3, trees=130)
QUICK = Effort(history=30_000, examples=3_500, dimensions=32, epochs=4, more_epochs=1, trees=50)


@dataclass(frozen=True, slots=True)
class Chain:
    """The stages that answer, and the context of every request."""

    retrieval: Retrieval
    features: Features
    ranking: Ranking
    context: Context

    def run(self, batch: Batch) -> Batch:
        """Retrieval, Features, Ranking."""
        for stage in (self.retrieval, self.features, self.ranking):
            batch = stage.run(batch, self.context)
        return batch


def requests(prefixes: Ragged, first: int) -> Batch:
    """Requests of users who have seen `prefixes` and nothing else is known of; `first` is the first's number."""
    n = len(prefixes)
    none = Ragged.empty(n, np.int32)
    return Batch.of_requests(
        request_id=hash_key(1, np.arange(first, first + n)),
        surface=np.full(n, Surface.related, np.int8),
        policy=np.zeros(n, np.int16),
        decided_at=np.zeros(n, np.int64),
        anchor=np.full(n, -1, np.int32),
        recents=prefixes,
        region=np.full(n, -1, np.int16),
        categories=none,
        excluded=none,
        bought=none,
        width=np.full(n, 400, np.int32),
        slots=np.full(n, LIST_LENGTH, np.int32),
    )


def learn(files: SessionFiles, folder: Path, effort: Effort, progress: Callable[[str], None]) -> Chain:
    """Build, train, and return what answers. Tables are written under `folder`."""
    files = files.last_sessions(effort.history)
    count = len(files.sessions)
    cut = count - min(effort.examples, count // 5)
    older, newer = files.sessions.take(np.arange(cut)), files.sessions.take(np.arange(cut, count))
    tables = _tables(older, files.item_hashes, folder / "older", effort, None, progress)
    heads = _train(_stages(tables, older), newer, effort, progress)
    tables = _tables(files.sessions, files.item_hashes, folder / "all", effort, tables.session_embedding, progress)
    retrieval, features, context = _stages(tables, files.sessions)
    models = Models({Surface.related: heads})
    return Chain(retrieval, features, Ranking(models, Identities(item=files.item_hashes)), context)


def _tables(
    sessions: Ragged, item_hashes: npt.NDArray[np.uint64], folder: Path, effort: Effort, start: SessionEmbedding | None,
    progress: Callable[[str], None],
) -> RetrievalTables:  # fmt: skip
    epochs = effort.epochs if start is None else effort.more_epochs
    build = RetrievalBuild("session", effort.dimensions, epochs=epochs, seed=effort.seed)
    nobody = np.full(len(sessions), -1, np.int32)
    return RetrievalTables.build(
        SessionLog(sessions.values, sessions.offsets, nobody, np.ones(len(sessions.values), np.float32)),
        folder,
        item_hashes=item_hashes,
        item_category=np.full(len(item_hashes), -1, np.int32),
        available=np.ones(len(item_hashes), np.bool_),
        category_hashes=np.empty(0, np.uint64),
        regions=(),
        settings=build,
        start=start,
        progress=lambda step: progress(f"{len(sessions):,} sessions: {step}"),
    )


def _stages(tables: RetrievalTables, sessions: Ragged) -> tuple[Retrieval, Features, Context]:
    """Stages over these tables, and a context with the evaluation's policy."""
    count = len(tables.item_hashes)
    plan = FeaturePlan.compile(_FEATURES, _PROVIDED)
    facts = ItemFacts(np.full(count, -1, np.int32), np.zeros(count, np.float32))
    features = Features({Surface.related: plan}, [_item_table(sessions, np.asarray(tables.item_hashes))], facts)
    policy = compile_policy(parse_policy(_POLICY), heads={"related": ("p_click",)})
    return Retrieval(tables), features, Context(policies=(policy,))


def _item_table(sessions: Ragged, item_hashes: npt.NDArray[np.uint64]) -> FeatureTable:
    """What the sessions say of each item: clicks (all, in the newest 4,000 and 16,000 sessions, their ratio), thousand
    sessions since its last, share of its clicks that opened a session or repeated the click before."""
    items, offsets, count = sessions.values, sessions.offsets, len(item_hashes)
    owner = np.repeat(np.arange(len(sessions)), sessions.lengths)
    clicks, newest, newer = (
        np.bincount(items[owner >= len(sessions) - last], minlength=count) for last in (len(sessions), 4_000, 16_000)
    )
    last = np.full(count, -1, np.int64)
    np.maximum.at(last, items, owner)
    opens = np.zeros(len(items), np.bool_)
    opens[offsets[:-1][sessions.lengths > 0]] = True
    repeats = np.r_[False, (items[1:] == items[:-1]) & (owner[1:] == owner[:-1])]
    values = np.stack(
        [
            clicks, newest, newer, (newest + 0.5) / (newer + 2.0), (len(sessions) - last) / 1000.0,
            np.bincount(items[opens], minlength=count) / np.maximum(clicks, 1),
            (np.bincount(items[repeats], minlength=count) + 1.0) / (clicks + 10.0),
        ],
        axis=1,
    )  # fmt: skip
    return FeatureTable(Entity.item, _ITEM_SPECS, item_hashes, values.astype(np.float32), np.zeros(count, np.int64))


def _train(
    stages: tuple[Retrieval, Features, Context], sessions: Ragged, effort: Effort, progress: Callable[[str], None]
) -> HeadSet:
    """The `p_click` head from every cut of `sessions`: was the candidate the next click?"""
    retrieval, features, context = stages
    prefixes, targets, session = prefixes_of(sessions)
    parts: list[tuple[F32, npt.NDArray[np.bool_], F32, I64]] = []
    for start in range(0, len(targets), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(targets)))
        progress(f"training examples: {rows[-1] + 1:,} of {len(targets):,}")
        batch = retrieval.run(requests(prefixes.take(rows), start), context)
        positive = batch.candidates["item"] == targets[rows][batch.owner]
        keep, weight = _kept(batch, positive, effort.seed)
        batch = features.run(batch.select(keep), context)
        parts.append((batch.candidates["features"], positive[keep], weight[keep], session[rows][batch.owner]))
    matrix, clicked, mass, owner = (np.concatenate(column) for column in zip(*parts, strict=True))
    del parts
    progress(f"{effort.trees} trees over {len(clicked):,} candidates, {int(clicked.sum()):,} of them clicked")
    settings = TrainSettings(
        trees=effort.trees, depth=6, learning_rate=0.1, min_child_weight=10.0, row_share=0.8, column_share=0.6, l2=2.0,
        calibrate_share=0.05, test_share=0.05, threads=effort.threads,
    )  # fmt: skip
    return train_heads(
        matrix, _FEATURES, {"p_click": clicked}, users=hash_key(2, owner), weight=mass, seed=effort.seed, settings=settings
    )


def _kept(batch: Batch, positive: npt.NDArray[np.bool_], seed: int) -> tuple[npt.NDArray[np.bool_], F32]:
    """Candidates to train on, and weights: of requests whose next click was found, all hard ones and a share of the rest."""
    scores: F32 = batch.candidates["source_scores"]
    always = positive.copy()
    for name, rank in _STRONG:
        always |= scores[:, INDEX[f"{name}_rank"]] <= rank
    owner = batch.owner
    found = np.bincount(owner[positive], minlength=len(batch)) > 0
    keep, weight = thin_negatives(
        batch.requests["request_id"][owner], batch.candidates["item"], always, share=_EASY_SHARE, seed=seed
    )
    return keep & found[owner], weight
