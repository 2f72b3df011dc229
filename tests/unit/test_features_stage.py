"""The Features stage: right values, right statuses, the same bits for any batch size."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.batch import Batch, Ragged, lengths_to_offsets
from serve_app.errors import InvalidInput
from serve_app.stages.features import (
    COMPUTED,
    Entity,
    FeaturePlan,
    Features,
    FeatureSpec,
    FeatureTable,
    ItemFacts,
    source_specs,
    status_counts,
)
from serve_app.stages.stage import Context
from serve_app.vocabulary import FeatureStatus, Surface


@pytest.fixture(autouse=True, params=["of the whole batch", "of what is said to be read"])
def given(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other processes are sent gives the same features as the batch they are asked for."""
    if request.param == "of what is said to be read":
        run = Features.run
        monkeypatch.setattr(
            Features, "run", lambda self, batch, *rest, **named: run(self, Features.read_of(batch), *rest, **named)
        )


NOW = 1_700_000_000_000_000
SECOND = 1_000_000
ITEM = (
    FeatureSpec("clicks", Entity.item, max_age_s=3600),
    FeatureSpec("stars", Entity.item, default=3.0),
    FeatureSpec("weight_g", Entity.item),
)
USER = (FeatureSpec("orders", Entity.user, default=0.0),)
SOURCES = ("similar", "popular")
PROVIDED = (*ITEM, *USER, *COMPUTED, *source_specs(SOURCES))


def item_table(rows: int = 4) -> FeatureTable:
    values = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    return FeatureTable(Entity.item, ITEM, np.arange(rows, dtype=np.uint64), values, np.full(rows, NOW, np.int64))


def user_table() -> FeatureTable:
    values = np.array([[7.0], [np.nan]], np.float32)
    return FeatureTable(Entity.user, USER, np.array([10, 20], np.uint64), values, np.full(2, NOW, np.int64))


def stage(wanted: list[str], items: FeatureTable | None = None) -> Features:
    plan = FeaturePlan.compile(wanted, PROVIDED)
    facts = ItemFacts(np.array([0, 0, 1, -1], np.int32), np.array([10, 20, 40, np.nan], np.float32))
    return Features({Surface.related: plan}, [items or item_table(), user_table()], facts)


def batch(lengths: list[int], items: list[int], **requests: object) -> Batch:
    n, m = len(lengths), len(items)
    columns: dict[str, object] = {
        "surface": np.full(n, Surface.related, np.int8),
        "decided_at": np.full(n, NOW, np.int64),
        "user_row": np.full(n, -1, np.int32),
        **requests,
    }
    made = Batch.of_requests(**columns)  # type: ignore[arg-type]
    made.meta["sources"] = SOURCES
    scores = np.stack([np.arange(m, dtype=np.float32), np.full(m, np.nan, np.float32)], axis=1)
    return made.with_candidates(
        lengths_to_offsets(lengths),
        item=np.array(items, np.int32),
        source_scores=scores,
        sources=np.full(m, 5, np.uint32),
        retrieval_score=np.arange(m, dtype=np.float64),
    )


def one(wanted: str, made: Batch, **kwargs: object) -> tuple[list[float], list[FeatureStatus]]:
    out = stage([wanted]).run(made, Context(), **kwargs)  # type: ignore[arg-type]
    status = [FeatureStatus(int(s)) for s in out.candidates["feature_status"][:, 0]]
    return out.candidates["features"][:, 0].tolist(), status


def test_values_are_gathered_by_row() -> None:
    assert one("weight_g", batch([2, 1], [3, 0, 1])) == ([11.0, 2.0, 5.0], [FeatureStatus.present] * 3)


def test_a_value_older_than_its_maximum_age_is_stale_and_still_used() -> None:
    made = batch([2, 1], [0, 1, 2], decided_at=np.array([NOW + 3600 * SECOND, NOW + 3601 * SECOND], np.int64))
    assert one("clicks", made) == ([0.0, 3.0, 6.0], [FeatureStatus.present] * 2 + [FeatureStatus.stale])


def test_each_value_has_its_own_age_where_the_table_says_so() -> None:
    items = item_table()
    as_of = np.full(items.values.shape, NOW, np.int64)
    as_of[2, 0] -= 3601 * SECOND
    items = FeatureTable(Entity.item, ITEM, items.keys, items.values, as_of)
    out = stage(["weight_g", "clicks"], items).run(batch([3], [1, 2, 3]), Context())
    assert out.candidates["feature_status"].tolist() == [[0, 0], [0, 1], [0, 0]]


def test_unknown_is_the_default_where_one_is_declared_and_nan_where_not() -> None:
    items = item_table()
    items.values[1] = np.nan
    out = stage(["stars", "weight_g"], items).run(batch([3], [1, -1, 4]), Context())
    np.testing.assert_array_equal(out.candidates["features"], [[3.0, np.nan]] * 3)
    assert out.candidates["feature_status"].tolist() == [[FeatureStatus.defaulted, FeatureStatus.missing]] * 3


def test_user_values_reach_every_candidate_of_the_request() -> None:
    made = batch([2, 1, 1], [0, 1, 2, 3], user_row=np.array([0, 1, -1], np.int32))
    values, status = one("orders", made)
    assert values == [7.0, 7.0, 0.0, 0.0]
    assert status == [FeatureStatus.present] * 2 + [FeatureStatus.defaulted] * 2


def test_source_scores_are_features() -> None:
    made = batch([2], [0, 1])
    assert one("source_similar", made)[0] == [0.0, 1.0]
    assert one("source_popular", made)[1] == [FeatureStatus.missing] * 2
    assert one("source_count", made)[0] == [2.0, 2.0]
    assert one("retrieval_score", made)[0] == [0.0, 1.0]


def test_a_source_that_retrieval_did_not_give_is_named() -> None:
    made = batch([1], [0])
    made.meta["sources"] = ("similar",)
    made.candidates["source_scores"] = np.zeros((1, 1), np.float32)
    with pytest.raises(InvalidInput, match="source_popular"):
        stage(["source_popular"]).run(made, Context())


RECENTS = {"recents": Ragged.of([[2, 0, 1, 0], []], np.int32), "recents_age_s": Ragged.of([[9, 7, 5, 3], []], np.float32)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("recent_category_count", [3.0, 1.0, 0.0, 0.0]),
        ("recent_category_share", [0.75, 0.25, np.nan, np.nan]),
        ("recent_price_ratio", [0.5, 2.0, np.nan, np.nan]),
        ("in_recents", [1.0, 1.0, 0.0, 0.0]),
        ("recent_steps", [0.0, 3.0, np.nan, np.nan]),
        ("recent_age_s", [3.0, 9.0, np.nan, np.nan]),
        ("last_same_category", [1.0, 0.0, np.nan, np.nan]),
        ("recents_count", [4.0, 4.0, 4.0, 0.0]),
    ],
)
def test_recents_become_features(name: str, expected: list[float]) -> None:
    values, _ = one(name, batch([3, 1], [0, 2, 3, 0], **RECENTS))
    np.testing.assert_array_equal(values, expected)


def test_purchases_and_the_anchor_become_features() -> None:
    made = batch([2], [1, 2], bought=Ragged.of([[1, 1]], np.int32), anchor=np.array([0], np.int32))
    assert one("bought_before", made)[0] == [1.0, 0.0]
    assert one("bought_category_count", made)[0] == [2.0, 0.0]
    assert one("anchor_same_category", made)[0] == [1.0, 0.0]
    assert one("anchor_price_ratio", made)[0] == [2.0, 4.0]


def test_a_user_with_ten_thousand_events_is_read_by_the_newest() -> None:
    made = batch([2], [0, 2], recents=Ragged.of([[2] * 9_990 + [0] * 50], np.int32))
    assert one("recent_category_count", made)[0] == [50.0, 0.0]


def test_facts_of_the_context_cover_items_newer_than_the_release() -> None:
    facts = ItemFacts(np.array([0, 0, 1, -1, 1], np.int32), np.ones(5, np.float32))
    made = batch([1], [4], recents=Ragged.of([[2]], np.int32))
    out = stage(["recent_category_count"]).run(made, Context(parts={"item_facts": facts}))
    assert out.candidates["features"].tolist() == [[1.0]]


def test_training_reads_rows_as_of_each_example() -> None:
    rows = {Entity.item: np.array([2, 0], np.int32)}
    assert one("weight_g", batch([2], [0, 0]), rows=rows)[0] == [8.0, 2.0]


def test_the_position_is_the_declared_constant() -> None:
    assert one("position", batch([2], [0, 1])) == ([0.0, 0.0], [FeatureStatus.defaulted] * 2)


def test_statuses_are_counted_by_feature() -> None:
    out = stage(["stars", "weight_g"]).run(batch([3], [1, -1, 2]), Context())
    counts = status_counts(out)
    assert counts["stars"] == {"present": 2, "stale": 0, "missing": 0, "defaulted": 1}
    assert counts["weight_g"] == {"present": 2, "stale": 0, "missing": 1, "defaulted": 0}


def test_the_input_batch_is_left_alone() -> None:
    made = batch([1], [0])
    stage(["stars"]).run(made, Context())
    assert "features" not in made.candidates
    assert "features" not in made.meta


@pytest.mark.parametrize("lengths", [[], [0], [0, 2, 0]])
def test_requests_without_candidates_pass(lengths: list[int]) -> None:
    made = batch(lengths, [0] * sum(lengths))
    out = stage(["stars", "recent_steps", "context_hour", "source_count"]).run(made, Context())
    assert out.candidates["features"].shape == (sum(lengths), 4)


def test_a_surface_without_a_model_is_named() -> None:
    with pytest.raises(InvalidInput, match="widgets"):
        stage(["stars"]).run(batch([1], [0], surface=np.array([Surface.widgets], np.int8)), Context())


def test_a_planned_feature_that_no_table_holds_is_named_at_load() -> None:
    plan = FeaturePlan.compile(["stars"], PROVIDED)
    facts = ItemFacts(np.empty(0, np.int32), np.empty(0, np.float32))
    with pytest.raises(InvalidInput, match="stars"):
        Features({Surface.related: plan}, [user_table()], facts)


def test_campaigns_are_found_by_key_in_any_order() -> None:
    spec = FeatureSpec("ctr", Entity.campaign)
    keys = np.array([9, 2**63 + 1, 4], np.uint64)
    table = FeatureTable(Entity.campaign, (spec,), keys, np.array([[1], [2], [3]], np.float32), np.zeros(3, np.int64))
    facts = ItemFacts(np.empty(0, np.int32), np.empty(0, np.float32))
    features = Features({Surface.notification: FeaturePlan.compile(["ctr"], [spec])}, [table], facts)
    made = Batch.of_requests(surface=np.full(1, Surface.notification, np.int8), decided_at=np.zeros(1, np.int64))
    made = made.with_candidates(np.array([0, 4]), campaign=np.array([2**63 + 1, 4, 9, 5], np.uint64))
    out = features.run(made, Context()).candidates["features"][:, 0]
    np.testing.assert_array_equal(out, [2, 3, 1, np.nan])


def test_read_only_columns_off_the_wire_are_accepted() -> None:
    made = batch([2], [0, 1])
    made.candidates["item"].flags.writeable = False
    made.offsets.flags.writeable = False
    assert stage(["weight_g", "in_recents"]).run(made, Context()).candidates["features"].shape == (2, 2)
