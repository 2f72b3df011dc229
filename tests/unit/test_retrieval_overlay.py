"""Live changes over a release: a batch of changes is what they are one by one, and is copied for once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.stages.retrieval import ItemChange, Overlay, availability

RELEASE = 3
"""Items of the release: rows 0, 1, 2 are those with hashes 0, 1, 2."""
DIMENSIONS = 2

Change = tuple[ItemChange, int]


def release() -> Overlay:
    return Overlay.of_release(np.array([True, False, True]), DIMENSIONS)


def same(one: Overlay, other: Overlay) -> None:
    """To the bit, and of the same types."""
    for name in (field.name for field in fields(Overlay)):
        left, right = getattr(one, name), getattr(other, name)
        if isinstance(left, np.ndarray):
            assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes()), name
        else:
            assert left == right, name


def bits_of(overlay: Overlay) -> list[bytes]:
    return [
        value.tobytes() for value in (getattr(overlay, one.name) for one in fields(Overlay)) if isinstance(value, np.ndarray)
    ]


def oracle(changes: Sequence[Change]) -> Overlay:
    """The rule in plain words: an item is a row from its first change on, and what a change leaves unsaid stays."""
    unavailable, sides, seq = [False, True, False], {}, 0
    for change, row in changes:
        if change.seq <= seq:
            continue
        seq = change.seq
        if row >= 0:
            unavailable[row] = not change.available
        elif change.item not in sides:
            sides[change.item] = [change.category, change.category_hash, change.price, change.embedding, change]
            unavailable.append(not change.available)
        else:
            unavailable[RELEASE + list(sides).index(change.item)] = not change.available
            side = sides[change.item]
            if change.category >= 0:
                side[:2] = change.category, change.category_hash
                side[3] = side[3] if change.embedding is None else change.embedding
            if not np.isnan(change.price):
                side[2] = change.price
    empty = np.empty((0, DIMENSIONS), np.float32)
    vectors = [np.zeros(DIMENSIONS) if side[3] is None else side[3] for side in sides.values()]
    return Overlay(
        seq,
        RELEASE,
        np.array(unavailable),
        np.array(list(sides), np.uint64),
        np.array([side[0] for side in sides.values()], np.int32),
        np.array([side[1] for side in sides.values()], np.uint64),
        np.array([side[2] for side in sides.values()], np.float32),
        np.array(vectors, np.float32) if vectors else empty,
        tuple(side[4].item_id for side in sides.values()),
        tuple(side[4].title for side in sides.values()),
    )


@st.composite
def histories(draw: st.DrawFn) -> list[Change]:
    """Changes of few items, numbered with gaps, now and then one that came before."""
    out, seq = [], 0
    for at in range(draw(st.integers(0, 25))):
        seq += draw(st.sampled_from([1, 1, 1, 2, 0, -1]))
        item = draw(st.integers(0, 8))
        category = draw(st.integers(-1, 2))
        change = ItemChange(
            seq=seq,
            item=item if item < RELEASE else 2**64 - item,
            available=draw(st.booleans()),
            item_id=f"item-{item}",
            category=category,
            category_hash=draw(st.integers(0, 2**64 - 1)),
            price=draw(st.sampled_from([float("nan"), 0.1, 2.0])),
            title=f"title {at}",
            embedding=draw(st.sampled_from([None, np.full(DIMENSIONS, at, np.float32)])),
        )
        out.append((change, item if item < RELEASE else -1))
    return out


@given(histories(), st.lists(st.integers(0, 25), max_size=3))
def test_changes_in_any_batches_are_what_they_are_one_by_one(changes: list[Change], cuts: list[int]) -> None:
    expected = release()
    for change in changes:
        expected = expected.apply([change])
    same(expected, oracle(changes))
    got, edges = release(), [0, *sorted(cuts), len(changes)]
    for start, end in pairwise(edges):
        before, bits = got, bits_of(got)
        got = got.apply(changes[start:end])
        assert bits_of(before) == bits, "an overlay is a value: what was handed out never changes"
    same(got, expected)


def test_a_batch_of_new_items_is_copied_for_once_and_not_once_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    replace = availability.replace
    monkeypatch.setattr(availability, "replace", lambda *a, **k: made.append(1) or replace(*a, **k))
    vector = np.ones(DIMENSIONS, np.float32)
    changes = [
        (ItemChange(n + 1, 100 + n % 300, n % 2 == 0, category=1, price=1.0, embedding=vector), -1) for n in range(900)
    ]
    assert release().apply(changes).rows == RELEASE + 300
    assert len(made) <= 2


@pytest.mark.parametrize("asked", [0, 1, 64, 65, 500])
@pytest.mark.parametrize("sides", [0, 1, 200])
def test_many_side_items_are_found_as_one_by_one(asked: int, sides: int) -> None:
    hashes = np.random.default_rng(1).permutation(400).astype(np.uint64)
    overlay = release().apply([(ItemChange(n + 1, int(hashes[n]), True), -1) for n in range(sides)])
    items = np.arange(asked, dtype=np.uint64)
    found = overlay.side_rows(items)
    assert found.dtype == np.int32
    assert found.tolist() == [overlay.side_row(item) for item in items.tolist()]
