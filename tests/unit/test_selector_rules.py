"""The selector's rules hold for any batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.batch import lengths_to_offsets
from serve_app.errors import InvalidInput
from serve_app.stages.ranking.selector import Selection, SelectorInput, frozen, select
from serve_app.stages.ranking.settings import ListSettings, Redundancy, Relax


@st.composite
def some_settings(draw: st.DrawFn) -> ListSettings:
    window = draw(st.integers(0, 5))
    return ListSettings(
        (),
        temperature=draw(st.sampled_from([0.0, 1e-6, 0.01, 0.3, 5.0, 1e6])),
        salt=draw(st.integers(0, 2**64 - 1)),
        window=window,
        per_window=draw(st.integers(1, window)) if window else 1,
        mmr_lambda=draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])),
        redundancy=draw(st.sampled_from(Redundancy)),
        relax=draw(st.sampled_from(Relax)),
    )


@st.composite
def some_batch(draw: st.DrawFn) -> SelectorInput:
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=5))
    n, m = len(lengths), sum(lengths)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    allowed = rng.random(m) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    value = np.where(allowed, np.round(rng.normal(size=m) * draw(st.sampled_from([1e-3, 1.0, 1e3])), 2), np.nan)
    vectors = rng.normal(size=(9, 6)).astype(np.float32)
    vectors /= np.sqrt(np.sum(vectors**2, axis=1, keepdims=True))
    return SelectorInput(
        lengths_to_offsets(lengths),
        rng.integers(0, 2**63, n).astype(np.uint64),
        rng.integers(-1, 15, n).astype(np.int32),
        rng.integers(0, 2, n).astype(np.int32),
        rng.permutation(10 * m + 1)[:m].astype(np.uint64),
        rng.integers(0, 4, m).astype(np.uint64),
        value,
        allowed,
        vectors,
        rng.integers(-1, 9, m).astype(np.int32),
    )


def each(batch: SelectorInput, made: Selection):  # type: ignore[no-untyped-def]
    """Per request: candidate indices in slot order, and the request's index."""
    for r in range(len(batch.offsets) - 1):
        rows = np.arange(batch.offsets[r], batch.offsets[r + 1])
        rows = rows[made.slot[rows] >= 0]
        yield r, rows[np.argsort(made.slot[rows])]


@given(some_batch(), some_settings(), some_settings())
@settings(max_examples=150, deadline=None)
def test_lists_are_sound(batch: SelectorInput, one: ListSettings, two: ListSettings) -> None:
    made = select(batch, [one, two], distributions=True)
    assert made.distributions is not None
    assert not made.slot[~batch.allowed].clip(0).any(), "a candidate dropped by a filter was chosen"
    assert ((made.slot >= 0) == ~np.isnan(made.p_slot)).all()
    for r, rows in each(batch, made):
        rules = (one, two)[batch.setting[r]]
        assert made.slot[rows].tolist() == list(range(len(rows)))
        kept = batch.allowed[batch.offsets[r] : batch.offsets[r + 1]].sum()
        if rules.relax == Relax.least_violating or rules.window == 0:
            assert len(rows) == min(kept, max(batch.slots[r], 0))
        table = made.distributions[r]
        assert len(table) == len(rows)
        np.testing.assert_allclose(np.sum(table, axis=1), 1.0, atol=1e-12)
        local = rows - batch.offsets[r]
        assert table[np.arange(len(rows)), local].tolist() == made.p_slot[rows].tolist()
        assert (made.p_slot[rows] > 0).all()
        for t in range(1, len(rows)):
            assert not table[t, local[:t]].any(), "a chosen candidate still had a chance"
        assert not table[:, ~batch.allowed[batch.offsets[r] : batch.offsets[r + 1]]].any()


@given(some_batch(), some_settings())
@settings(max_examples=150, deadline=None)
def test_the_window_rule_is_broken_only_where_it_says_it_was_relaxed(batch: SelectorInput, rules: ListSettings) -> None:
    made = select(batch, [rules, rules])
    for _, rows in each(batch, made):
        categories = batch.category[rows]
        for t, row in enumerate(rows):
            window = categories[max(0, t - rules.window + 1) : t + 1]
            crowd = (window == categories[t]).sum() if categories[t] else 0
            if rules.window and crowd > rules.per_window:
                assert made.relaxed[row]
                assert rules.relax == Relax.least_violating


@given(some_batch(), some_settings())
@settings(max_examples=60, deadline=None)
def test_a_request_alone_gets_the_list_it_gets_among_others(batch: SelectorInput, rules: ListSettings) -> None:
    whole = select(batch, [rules, rules])
    for r in range(len(batch.offsets) - 1):
        rows = slice(batch.offsets[r], batch.offsets[r + 1])
        lone = select(
            replace(
                batch,
                offsets=batch.offsets[r : r + 2] - batch.offsets[r],
                request_id=batch.request_id[r : r + 1],
                slots=batch.slots[r : r + 1],
                setting=batch.setting[r : r + 1],
                identity=batch.identity[rows],
                category=batch.category[rows],
                value=batch.value[rows],
                allowed=batch.allowed[rows],
                vector_row=batch.vector_row[rows] if batch.vector_row is not None else None,
            ),
            [rules, rules],
        )
        assert lone.slot.tobytes() == whole.slot[rows].tobytes()
        assert lone.p_slot.tobytes() == whole.p_slot[rows].tobytes()


@given(some_batch(), some_settings(), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_lists_of_one_page_are_made_one_after_the_other_without_what_stands_before(
    batch: SelectorInput, rules: ListSettings, seed: int
) -> None:
    rng, n = np.random.default_rng(seed), len(batch.slots)
    page = rng.integers(-1, 2, n).astype(np.int32)
    thing = rng.integers(0, 9, len(batch.value)).astype(np.int32)
    value, allowed = batch.value.tobytes(), batch.allowed.tobytes()
    made = select(replace(batch, page=page, thing=thing), [rules, rules])
    assert (batch.value.tobytes(), batch.allowed.tobytes()) == (value, allowed), "what was given was changed"
    shown: dict[int, set[int]] = {}
    for r in range(n):
        rows = np.arange(batch.offsets[r], batch.offsets[r + 1])
        before = shown.setdefault(int(page[r]), set()) if page[r] >= 0 else set()
        repeated = np.isin(thing[rows], list(before))
        alone = select(
            replace(
                batch,
                offsets=np.array([0, len(rows)]),
                request_id=batch.request_id[r : r + 1],
                slots=batch.slots[r : r + 1],
                setting=batch.setting[r : r + 1],
                identity=batch.identity[rows],
                category=batch.category[rows],
                value=np.where(repeated, np.nan, batch.value[rows]),
                allowed=batch.allowed[rows] & ~repeated,
                vector_row=batch.vector_row[rows] if batch.vector_row is not None else None,
            ),
            [rules, rules],
        )
        assert made.repeated[rows].tolist() == repeated.tolist()
        assert made.slot[rows].tobytes() == alone.slot.tobytes()
        assert made.p_slot[rows].tobytes() == alone.p_slot.tobytes()
        before |= set(thing[rows[made.slot[rows] >= 0]].tolist())


def simple(value: list[float], category: list[int], slots: int, **more: object) -> SelectorInput:
    m = len(value)
    return SelectorInput(
        np.array([0, m]),
        np.array([5], np.uint64),
        np.array([slots], np.int32),
        np.zeros(1, np.int32),
        np.arange(m, dtype=np.uint64)[::-1].copy(),
        np.array(category, np.uint64),
        np.array(value, np.float64),
        np.ones(m, np.bool_),
        **more,  # type: ignore[arg-type]
    )


def test_temperature_zero_takes_the_best_with_certainty() -> None:
    made = select(simple([0.1, 0.9, 0.5], [0, 0, 0], 2), [ListSettings(())])
    assert made.slot.tolist() == [-1, 0, 1]
    assert made.p_slot[1:].tolist() == [1.0, 1.0]


def test_equal_scores_go_to_the_smaller_identity_whatever_the_order() -> None:
    assert select(simple([0.5, 0.5, 0.5], [0, 0, 0], 1), [ListSettings(())]).slot.tolist() == [-1, -1, 0]


def test_a_slot_no_candidate_may_take_is_relaxed_or_ends_the_list() -> None:
    given = simple([0.9, 0.8, 0.7], [1, 1, 1], 3)
    relaxed = select(given, [ListSettings((), window=2, per_window=1)])
    assert relaxed.slot.tolist() == [0, 1, 2]
    assert relaxed.relaxed.tolist() == [False, True, True]
    ended = select(given, [ListSettings((), window=2, per_window=1, relax=Relax.end_list)])
    assert ended.slot.tolist() == [0, -1, -1]


def test_relaxing_takes_the_category_that_exceeds_the_rule_least() -> None:
    # After two of category 1, a third would exceed two-in-three by one; category 2 does not exceed it.
    given = simple([0.9, 0.8, 0.7, 0.1], [1, 1, 1, 2], 4)
    made = select(given, [ListSettings((), window=3, per_window=2)])
    assert made.slot.tolist() == [0, 1, 3, 2]
    assert not made.relaxed.any()


def test_mmr_prefers_what_is_unlike_the_list_so_far() -> None:
    vectors = np.array([[1, 0], [0.99, np.sqrt(1 - 0.99**2)], [0, 1]], np.float32)
    given = simple([1.0, 0.9, 0.5], [0, 0, 0], 3, vectors=vectors, vector_row=np.arange(3, dtype=np.int32))
    rules = ListSettings((), mmr_lambda=0.5, redundancy=Redundancy.embedding)
    assert select(given, [rules]).slot.tolist() == [0, 2, 1]
    assert select(given, [replace(rules, mmr_lambda=1.0)]).slot.tolist() == [0, 1, 2]


def test_weights_far_below_the_first_choice_keep_their_precision() -> None:
    """After the one far ahead is gone, the rest is drawn among itself, though exp underflowed beside the first."""
    given = simple([5_000.0, 1.0, 1.0], [0, 0, 0], 2)
    made = select(given, [ListSettings((), temperature=1.0)], distributions=True)
    assert made.distributions is not None
    np.testing.assert_allclose(made.distributions[0], [[1, 0, 0], [0, 0.5, 0.5]])


def test_a_list_the_rules_forbid_has_propensity_zero() -> None:
    given = simple([0.9, 0.8, 0.7], [1, 1, 2], 2)
    made = select(given, [ListSettings((), temperature=1.0, window=2)], follow=np.array([0, 1, -1], np.int32))
    assert made.p_slot[1] == 0.0


def test_redundancy_by_embedding_needs_embeddings() -> None:
    with pytest.raises(InvalidInput, match="redundancy"):
        select(simple([1.0], [0], 1), [ListSettings((), mmr_lambda=0.5, redundancy=Redundancy.embedding)])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"mmr_lambda": 1.5},
        {"window": 2, "per_window": 3},
        {"window": -1},
        {"salt": -1},
        {"weights": (("a", float("inf")),)},
        {"weights": (("a", 1.0), ("a", 2.0))},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        ListSettings(**{"weights": (), **wrong})  # type: ignore[arg-type]


def test_a_table_of_all_items_is_seen_and_not_copied() -> None:
    kept = np.zeros((3, 2), np.float32)
    mapped = kept.view()
    mapped.flags.writeable = False
    for table in (kept, mapped):
        assert np.shares_memory(frozen(table), kept)
        assert not frozen(table).flags.writeable
    assert kept.flags.writeable
