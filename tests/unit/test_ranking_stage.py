"""The Ranking stage: heads, value, lists, and the same bits for any batch size through features and ranking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from serve_app.batch import Batch, Ragged, lengths_to_offsets
from serve_app.errors import InvalidInput
from serve_app.stages.features import COMPUTED, Entity, Features, FeatureSpec, FeatureTable, ItemFacts, source_specs
from serve_app.stages.ranking.heads import HeadSet, Models
from serve_app.stages.ranking.settings import ListSettings
from serve_app.stages.ranking.stage import Identities, Ranking
from serve_app.stages.ranking.training import TrainSettings, train_heads
from serve_app.stages.stage import Context, Stage
from serve_app.vocabulary import DropReason, Surface

ITEMS, NOW = 500, 1_700_000_000_000_000
SPECS = tuple(FeatureSpec(f"item_{i}", Entity.item, max_age_s=60) for i in range(4))
WANTED = (*(s.name for s in SPECS), "recent_category_count", "recent_price_ratio", "source_similar", "context_hour")
PROVIDED = (*SPECS, *COMPUTED, *source_specs(["similar"]))


@dataclass(frozen=True)
class OnePolicy:
    """A policy that only knows lists."""

    settings: ListSettings

    def list_settings(self, surface: Surface, variant: int = 0) -> ListSettings:
        """The same everywhere."""
        return self.settings


LISTS = ListSettings(
    (("p_click", 1.0), ("p_convert", 4.0)), temperature=0.05, salt=3, window=3, per_window=1, mmr_lambda=0.8
)
CONTEXT = Context(policies=(OnePolicy(LISTS),))


@pytest.fixture(scope="module")
def chain() -> tuple[Features, Ranking]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1_000, len(WANTED))).astype(np.float32)
    click = (rng.random(1_000) < 1 / (1 + np.exp(-x[:, 0]))).astype(np.float32)
    heads = train_heads(
        x,
        WANTED,
        {"p_click": click, "p_convert": click * (rng.random(1_000) < 0.4)},
        users=np.arange(1_000, dtype=np.uint64),
        seed=1,
        position=rng.integers(0, 9, 1_000),
        settings=TrainSettings(trees=20, depth=4),
    )
    models = Models({Surface.related: heads, Surface.gateway: heads, Surface.notification: heads})
    values = rng.normal(size=(ITEMS, 4)).astype(np.float32)
    values[::9, 1] = np.nan
    table = FeatureTable(Entity.item, SPECS, np.arange(ITEMS, dtype=np.uint64), values, NOW - rng.integers(0, 10**8, ITEMS))
    facts = ItemFacts(rng.integers(-1, 8, ITEMS).astype(np.int32), rng.random(ITEMS).astype(np.float32))
    identities = Identities(item=rng.integers(0, 2**63, ITEMS).astype(np.uint64))
    return Features(models.plans(PROVIDED), [table], facts), Ranking(models, identities)


def requests(n: int, surface: Surface = Surface.related) -> Batch:
    rng = np.random.default_rng(42)
    lengths = rng.integers(0, 40, n)
    m = int(lengths.sum())
    batch = Batch.of_requests(
        surface=np.full(n, surface, np.int8),
        policy=np.zeros(n, np.int16),
        request_id=rng.integers(0, 2**63, n).astype(np.uint64),
        decided_at=np.full(n, NOW, np.int64),
        slots=rng.integers(0, 12, n).astype(np.int32),
        context_hour=rng.integers(0, 24, n).astype(np.int8),
        recents=Ragged.of([rng.integers(0, ITEMS, k) for k in rng.integers(0, 9, n)], np.int32),
    )
    batch.meta["sources"] = ("similar",)
    items = np.concatenate([rng.permutation(ITEMS)[:k] for k in lengths] or [np.empty(0)]).astype(np.int32)
    return batch.with_candidates(
        lengths_to_offsets(lengths),
        item=items,
        category=rng.integers(0, 6, m).astype(np.uint64),
        drop_reason=np.where(rng.random(m) < 0.2, DropReason.seen, DropReason.kept).astype(np.int8),
        sources=np.ones(m, np.uint32),
        source_scores=rng.random((m, 1)).astype(np.float32),
        retrieval_score=rng.random(m),
    )


def through(chain: tuple[Features, Ranking], batch: Batch) -> Batch:
    for stage in chain:
        assert isinstance(stage, Stage)
        batch = stage.run(batch, CONTEXT)
    return batch


def test_a_thousand_requests_give_the_same_bytes_as_one_or_seven_at_a_time(chain: tuple[Features, Ranking]) -> None:
    batch = requests(1_000)
    whole = through(chain, batch)
    for size in (1, 7):
        parts = [through(chain, batch.take(np.arange(i, min(i + size, 1_000)))) for i in range(0, 1_000, size)]
        joined = Batch.concat(parts)
        for name in ("features", "feature_status", "heads", "value", "slot", "p_slot"):
            assert joined.candidates[name].tobytes() == whole.candidates[name].tobytes(), name


def test_dropped_candidates_are_neither_scored_nor_chosen(chain: tuple[Features, Ranking]) -> None:
    out = through(chain, requests(100))
    dropped = out.candidates["drop_reason"] != DropReason.kept
    assert dropped.any()
    assert np.isnan(out.candidates["heads"][dropped]).all()
    assert np.isnan(out.candidates["value"][dropped]).all()
    assert (out.candidates["slot"][dropped] == -1).all()


def test_value_is_the_policys_weighted_sum_of_heads(chain: tuple[Features, Ranking]) -> None:
    out = through(chain, requests(20))
    heads = out.candidates["heads"].astype(np.float64)
    assert out.meta["heads"] == ("p_click", "p_convert")
    np.testing.assert_array_equal(out.candidates["value"], 1.0 * heads[:, 0] + 4.0 * heads[:, 1])


def test_every_request_gets_the_slots_it_asked_for_as_far_as_candidates_go(chain: tuple[Features, Ranking]) -> None:
    batch = requests(200)
    out = through(chain, batch)
    owner = out.owner
    kept = np.bincount(owner[out.candidates["drop_reason"] == 0], minlength=200)
    got = np.bincount(owner[out.candidates["slot"] >= 0], minlength=200)
    assert got.tolist() == np.minimum(kept, batch.requests["slots"]).tolist()


def test_notifications_get_heads_and_no_list(chain: tuple[Features, Ranking]) -> None:
    out = through(chain, requests(5, Surface.notification))
    assert "heads" in out.candidates
    assert "slot" not in out.candidates


def test_explain_gives_the_distributions_the_slots_were_drawn_from(chain: tuple[Features, Ranking]) -> None:
    out = through(chain, requests(30))
    again = chain[1].explain(out, CONTEXT)
    assert again.slot.tobytes() == out.candidates["slot"].tobytes()
    assert again.p_slot.tobytes() == out.candidates["p_slot"].tobytes()
    assert again.distributions is not None
    for table in again.distributions:
        np.testing.assert_allclose(np.sum(table, axis=1), 1.0, atol=1e-12)


def test_the_fall_back_is_retrieval_order_with_certainty(chain: tuple[Features, Ranking]) -> None:
    batch = requests(40)
    out = chain[1].fall_back(batch)
    for r in range(40):
        rows = np.arange(batch.offsets[r], batch.offsets[r + 1])
        kept = rows[batch.candidates["drop_reason"][rows] == 0]
        wanted = kept[np.argsort(-batch.candidates["retrieval_score"][kept])][: batch.requests["slots"][r]]
        chosen = rows[out.candidates["slot"][rows] >= 0]
        assert chosen[np.argsort(out.candidates["slot"][chosen])].tolist() == wanted.tolist()
        assert (out.candidates["p_slot"][chosen] == 1.0).all()
    assert np.isnan(out.candidates["heads"]).all()


def test_a_head_the_policy_weighs_and_no_model_gives_is_named(chain: tuple[Features, Ranking]) -> None:
    features, ranking = chain
    context = Context(policies=(OnePolicy(ListSettings((("p_return", 1.0),))),))
    with pytest.raises(InvalidInput, match="p_return"):
        ranking.run(features.run(requests(3), context), context)


def test_a_request_pinned_to_a_policy_that_is_not_there_is_named(chain: tuple[Features, Ranking]) -> None:
    batch = chain[0].run(requests(3), CONTEXT)
    with pytest.raises(InvalidInput, match="policy"):
        chain[1].run(batch, Context())


def test_surfaces_of_different_head_sets_do_not_share_a_batch(chain: tuple[Features, Ranking]) -> None:
    reviews = HeadSet.of_feature("p_helpful", "quality")
    ranking = Ranking(Models({**chain[1].models.by_surface, Surface.reviews: reviews}), Identities())
    batch = requests(2)
    batch.requests["surface"] = np.array([Surface.related, Surface.reviews], np.int8)
    with pytest.raises(InvalidInput, match="surface"):
        ranking.run(batch, CONTEXT)


def test_a_stored_score_can_be_a_head() -> None:
    models = Models({Surface.reviews: HeadSet.of_feature("p_helpful", "quality")})
    ranking = Ranking(models, Identities(review=np.arange(3, dtype=np.uint64)))
    batch = Batch.of_requests(
        surface=np.full(1, Surface.reviews, np.int8),
        policy=np.zeros(1, np.int16),
        request_id=np.ones(1, np.uint64),
        slots=np.full(1, 2, np.int32),
    ).with_candidates(
        np.array([0, 3]),
        review=np.arange(3, dtype=np.int32),
        features=np.array([[0.25], [0.75], [0.5]], np.float32),
        drop_reason=np.zeros(3, np.int8),
    )
    batch.meta["features"] = ("quality",)
    out = ranking.run(batch, Context(policies=(OnePolicy(ListSettings((("p_helpful", 1.0),))),)))
    assert out.candidates["heads"][:, 0].tolist() == [0.25, 0.75, 0.5]
    assert out.candidates["slot"].tolist() == [-1, 0, 1]


def test_an_item_without_identity_is_refused(chain: tuple[Features, Ranking]) -> None:
    features, ranking = chain
    batch = features.run(requests(3), CONTEXT)
    context = Context(policies=CONTEXT.policies, parts={"identities": Identities(item=np.zeros(1, np.uint64))})
    with pytest.raises(InvalidInput, match="item"):
        ranking.run(batch, context)


def test_empty_batches_pass(chain: tuple[Features, Ranking]) -> None:
    assert len(through(chain, requests(1_000).take(np.empty(0, np.int64)))) == 0
