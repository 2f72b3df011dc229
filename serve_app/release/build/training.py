"""Training rows for the heads that rank items: the serving stages run on examples, with every feature as of its example.

Retrieval's tables must be older than the examples. Negatives are a seeded sample of what retrieval gave, weighted back to
all of it, so that calibrated scores keep their level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.noise import hash_key, uniform
from serve_app.release.build.entity_features import ITEM_SPECS, USER_SPECS, EntityTimelines
from serve_app.release.build.next_items import NextItems, People, labels
from serve_app.release.build.sequences import UserSequences
from serve_app.release.rows import CatalogueRows
from serve_app.stages.features import COMPUTED, Entity, FeaturePlan, Features, FeatureTable, ItemFacts, source_specs
from serve_app.stages.retrieval.evidence import EVIDENCE
from serve_app.stages.retrieval.stage import Retrieval
from serve_app.stages.stage import Context
from serve_app.vocabulary import DropReason, Surface

__all__ = ["ITEM_FEATURES", "ITEM_PROVIDED", "ExampleRows", "History", "as_of_features", "item_rows"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

ITEM_PROVIDED = (*ITEM_SPECS, *USER_SPECS, *COMPUTED, *source_specs(EVIDENCE))
# Codes without an order say nothing to a tree.
_NOT_READ = frozenset({"surface", "region", "context_device"})
ITEM_FEATURES: tuple[str, ...] = tuple(spec.name for spec in ITEM_PROVIDED if spec.name not in _NOT_READ)

_CHUNK = 400


@dataclass(frozen=True, slots=True)
class History:
    """All that is known of the past, to be asked as of a time."""

    timelines: EntityTimelines
    sequences: UserSequences
    people: People
    rows: CatalogueRows

    @property
    def facts(self) -> ItemFacts:
        """Category and price of each item."""
        return ItemFacts(self.rows.item_category, self.rows.item_price)


@dataclass(frozen=True, slots=True)
class ExampleRows:
    """m candidates of example requests: features f32[m, F] in the order of `names`, clicked and bought bool[m], weight
    f32[m], request i64[m] (example number), group u64[m] (what must not be split between training and test: the user, or
    the request where the user is unknown), slot i32[m] it was shown in (-1: it was not shown)."""

    names: tuple[str, ...]
    features: F32
    clicked: Bools
    bought: Bools
    weight: F32
    request: I64
    group: U64
    slot: npt.NDArray[np.int32]

    @classmethod
    def join(cls, parts: list[ExampleRows]) -> ExampleRows:
        """One after the other."""
        columns = ("features", "clicked", "bought", "weight", "request", "group", "slot")
        return cls(parts[0].names, *(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


def as_of_features(batch: Batch, plan: FeaturePlan, history: History) -> Batch:
    """Run the Features stage with item and user values as of each request's `decided_at`: one table row per candidate, and
    one per request for users."""
    at = batch.requests["decided_at"]
    owner, item = batch.owner, batch.candidates["item"]
    item_values = history.timelines.items(item, at[owner])
    user_values = history.timelines.users(batch.requests["user_row"], at)
    tables = [
        FeatureTable(Entity.item, ITEM_SPECS, history.rows.item_hashes[item], item_values, at[owner]),
        FeatureTable(Entity.user, USER_SPECS, batch.requests["user"], user_values, at),
    ]
    surface = Surface(int(batch.requests["surface"][0]))
    stage = Features({surface: plan}, tables, history.facts)
    known = np.where(batch.requests["user_row"] >= 0, np.arange(len(batch)), -1)
    rows = {Entity.item: np.arange(len(item), dtype=np.int32), Entity.user: known[owner].astype(np.int32)}
    return stage.run(batch, Context(), rows)


def item_rows(
    examples: NextItems, retrieval: Retrieval, plan: FeaturePlan, history: History, *, width: int, negatives: int, seed: int
) -> ExampleRows:
    """Candidates of `examples` with features, labels and weights: all positives, `negatives` of the rest per request.

    Clicked means that any interaction followed in the session, bought that a purchase did. Raises InvalidInput when
    `examples` is empty.
    """
    parts: list[ExampleRows] = []
    first = 0
    for chunk in examples.chunks(_CHUNK):
        batch = retrieval.run(chunk.requests(history.people, history.sequences, width), Context())
        batch = batch.select(batch.candidates["drop_reason"] == DropReason.kept)
        clicked, bought = labels(batch, chunk.relevant), labels(batch, chunk.relevant, chunk.bought)
        keep, weight = _sample(batch, clicked, negatives, seed)
        batch = as_of_features(batch.select(keep), plan, history)
        owner = batch.owner
        group = np.where(batch.requests["user_row"] >= 0, batch.requests["user"], batch.requests["request_id"])[owner]
        features = batch.candidates["features"]
        slot = np.full(len(owner), -1, np.int32)
        parts.append(
            ExampleRows(plan.names, features, clicked[keep], bought[keep], weight[keep], owner + first, group, slot)
        )
        first += len(chunk)
    return ExampleRows.join(parts)


def _sample(batch: Batch, positive: Bools, negatives: int, seed: int) -> tuple[Bools, F32]:
    """Positives, and per request the `negatives` others of smallest hash; weight of a negative: others / kept."""
    owner = batch.owner
    draw = uniform(hash_key(seed, 3, batch.requests["request_id"][owner], batch.candidates["item"]))
    order = np.lexsort((draw, positive, owner))  # within a request: negatives first, in random order
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - batch.offsets[owner[order]]
    others = np.bincount(owner[~positive], minlength=len(batch))
    weight = np.where(positive, 1.0, np.maximum(others / negatives, 1.0)[owner])
    return positive | (place < negatives), weight.astype(np.float32)
