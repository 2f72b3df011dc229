"""The catalogue changes that are kept bring every view to where all changes would have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.catalogue import Catalogue, table_of
from serve_app.errors import DamagedArtifact
from serve_app.ledger.protocol import CatalogueChange
from serve_app.release.rows import CatalogueRows, in_row_order
from serve_app.serving import live
from serve_app.serving.live import ITEM_CHANGE, ItemsView, KeptChanges, encode_item_change
from serve_app.stages.retrieval import Overlay

VECTORS = np.arange(12, dtype=np.float32).reshape(6, 2)


def release(**categories: str) -> ItemsView:
    """A release of items in categories."""
    n = len(categories)
    items = {
        "item_id": list(categories), "title": [""] * n, "category": list(categories.values()), "price": [1.0] * n,
        "currency": ["GBP"] * n, "created_at": [0] * n, "available": [True] * n,
    }  # fmt: skip
    rows = CatalogueRows(in_row_order(Catalogue(table_of("items", items))))
    return ItemsView.of_release(rows, VECTORS[: len(rows.category_names) + 1])


# Items a to e and categories x, y, z are known to some release and not to another.
RELEASES = [release(a="x", b="y"), release(b="y", c="z", d="z"), release(a="z")]


def change(seq: int, item: str, **said: object) -> CatalogueChange:
    base = {"available": True, "title": None, "category": None, "price": None}
    return CatalogueChange(seq, ITEM_CHANGE, encode_item_change(item, **(base | said)))  # type: ignore[arg-type]


def same(one: ItemsView, other: ItemsView) -> None:
    """To the bit."""
    for name in (field.name for field in fields(Overlay)):
        left, right = getattr(one.overlay, name), getattr(other.overlay, name)
        if isinstance(left, np.ndarray):
            assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes()), name
        else:
            assert left == right, name
    assert one.hashes.tobytes() == other.hashes.tobytes()
    for left, right in zip(vars_of(one), vars_of(other), strict=True):
        assert left.tobytes() == right.tobytes()


def vars_of(view: ItemsView) -> list[np.ndarray]:
    return [getattr(view.facts, field.name) for field in fields(view.facts)]


def kept_of(changes: Sequence[CatalogueChange]) -> KeptChanges:
    kept = KeptChanges()
    for one in changes:
        kept.take(one)
    return kept


said = st.fixed_dictionaries(
    {
        "available": st.booleans(),
        "title": st.sampled_from([None, "first", "second"]),
        "category": st.sampled_from([None, None, "", "x", "y", "z", "nowhere"]),
        "price": st.sampled_from([None, 0.1, 2.0]),
    }
)
entries = st.one_of(st.tuples(st.sampled_from("abcd"), said), st.tuples(st.sampled_from("abcd"), said), st.just("campaign"))


@given(st.lists(entries, min_size=4, max_size=16), st.sampled_from([1, 3, 1000]), st.sampled_from(RELEASES))
def test_what_is_kept_does_what_all_changes_do(
    log: list[tuple[str, dict[str, object]] | str], recent: int, base: ItemsView
) -> None:
    changes = [
        CatalogueChange(at, one, b"{}") if isinstance(one, str) else change(at, one[0], **one[1])
        for at, one in enumerate(log, 1)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "_RECENT", recent)
        kept = kept_of(changes)
    assert kept.newest == len(changes)
    expected = base.apply(changes)
    for seen in range(len(changes) + 1):
        view = base.apply(changes[:seen])
        lacking = kept.after(view.seq)
        assert [one.seq for one in lacking] == sorted({one.seq for one in lacking})
        assert all(one is changes[one.seq - 1] and one.seq > view.seq for one in lacking)
        same(view.apply(lacking), expected)


@pytest.mark.parametrize(
    "stated",
    [
        (None, "x", None),
        (None, "x", "z", None),
        ("z", "x", "z", None),
        ("x", "nowhere", "z", "nowhere"),
        (None, "nowhere", ""),
    ],
)
def test_of_categories_stated_one_after_another_each_release_takes_the_last_it_knows(
    stated: tuple[str | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_RECENT", 1)
    changes = [change(at, "new", category=one, price=at if at == 2 else None) for at, one in enumerate(stated, 1)]
    for base in RELEASES:
        same(base.apply(kept_of(changes).after(0)), base.apply(changes))


def test_side_rows_are_numbered_by_first_changes_however_much_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_RECENT", 1)
    kept = kept_of([change(1, "new"), change(2, "newer"), change(3, "newest"), change(4, "newer"), change(5, "new")])
    assert RELEASES[0].apply(kept.after(0)).overlay.side_ids == ("new", "newer", "newest")


def test_as_many_changes_are_kept_as_there_are_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_RECENT", 10)
    puts = [change(n, f"item-{n % 7}", available=n % 3 > 0, category="x", price=n) for n in range(1, 5_000)]
    assert len(kept_of(puts).after(0)) == 14, "the first and the newest of each"
    assert kept_of([*puts, *[CatalogueChange(5_000 + n, "campaign", b"{}") for n in range(99)]]).after(0)[-1].seq == 5_098


def test_a_change_that_cannot_be_read_is_refused_by_every_view_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_RECENT", 1)
    damaged = [CatalogueChange(2, ITEM_CHANGE, b"{"), CatalogueChange(2, ITEM_CHANGE, b'{"item": "a", "category": 5}')]
    for one in damaged:
        kept = kept_of([change(1, "a"), one, change(3, "a"), change(4, "a")])
        with pytest.raises(DamagedArtifact, match="change 2"):
            RELEASES[0].apply(kept.after(1))
