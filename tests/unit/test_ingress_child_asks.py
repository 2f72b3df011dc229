"""Requests for the widgets of a page are what they would be if each had been asked by itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from serve_app.batch import Batch, Ragged
from serve_app.ingress.asks import Ask, Known, request_batch, users_of
from serve_app.ledger.columns import Recents, UserState
from serve_app.ledger.memory import MemoryLedger
from serve_app.noise import hash_key, salt_of
from serve_app.serving.list_requests import PageFill, Shelves, child_batch
from serve_app.vocabulary import Surface
from tests.unit.decision_support import at
from tests.unit.sweep_support import Shop, open_shop

NOW = at("2026-03-10T12:00:00")
USERS = ["ann", None, "bob", "nobody"]
ARMS = [{"id": "a", "percent": 50, "overrides": {}}, {"id": "b", "percent": 50, "overrides": {}}]
POLICY = {
    "experiments": [{"id": "widths", "salt": "w", "arms": ARMS}],
    "surfaces": {"gateway": {"width": 80, "min_width": 20}},
}


@pytest.fixture(params=[{"surfaces": {}}, POLICY], ids=["plain", "experiment"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    made = open_shop(tmp_path, MemoryLedger())
    made.with_policy(**request.param)
    made.put("ann", "bob")
    return made


def known_of(shop: Shop, asks: list[Ask]) -> Known:
    """What the owner says of the asks' users."""
    users = users_of(asks)
    return Known(shop.ledger.recents(users), shop.ledger.read(users).state)


LIMITS: list[tuple[str, ...]] = [(), ("shoes",), ("socks", "shoes"), ("never heard of",)]
SHOWN = [[2, 0, 1], [1], [], [0, 1]]
"""Rows of the widgets each page shows, in order."""


def roots() -> list[Ask]:
    return [
        Ask(
            Surface.widgets, 1000 + row, NOW, NOW + 1, user, slots=3, region="KR" if row == 2 else None, device="app",
            categories=LIMITS[row],
        )
        for row, user in enumerate(USERS)
    ]  # fmt: skip


def children_of(root: Ask, parent: int, shown: list[int], slots: int) -> list[Ask]:
    """What a caller would ask who knew the page."""
    asked = []
    for place, widget in enumerate(shown):
        limit = root.categories
        if widget == 1:
            limit = ("socks",) if not limit or "socks" in limit else ("nobody's",)
        request_id = int(hash_key(salt_of("child request of a page"), np.uint64(parent), np.array([place], np.uint64))[0])
        asked.append(
            dataclasses.replace(
                root, surface=Surface.gateway, request_id=request_id, slots=slots, categories=limit,
            )
        )  # fmt: skip
    return asked


def pages_of(batch: Batch, rows: list[int], *, every: bool) -> Batch:
    """The pages ranked, under other request ids, as a fall-back gives them. every: with the widgets that are not shown."""
    widgets, slots = [], []
    for row in rows:
        own = {widget: place for place, widget in enumerate(SHOWN[row])}
        listed = range(3) if every else sorted(own)
        widgets.append(list(listed))
        slots += [own.get(widget, -1) for widget in listed]
    found = Ragged.of(widgets, np.int32)
    pages = batch.with_candidates(found.offsets, widget=found.values, slot=np.array(slots, np.int32))
    requests = pages.requests.copy()
    requests["request_id"] = pages.requests["request_id"] + np.uint64(7)
    return Batch(requests, pages.candidates, pages.offsets)


def taken(known: Known, rows: list[int]) -> Known:
    at_rows = np.array(rows)
    spans = [np.arange(known.recents.offsets[row], known.recents.offsets[row + 1]) for row in rows]
    flat = np.concatenate(spans).astype(np.int64)
    offsets = np.cumsum([0, *map(len, spans)])
    state = UserState(**{one.name: getattr(known.state, one.name)[at_rows] for one in dataclasses.fields(known.state)})
    return Known(Recents(known.recents.items[flat], known.recents.at[flat], offsets), state)


def bits(batch: Batch) -> dict[str, object]:
    return {
        name: (values.values.tobytes(), values.offsets.tolist())
        if isinstance(values, Ragged)
        else (values.dtype, values.tobytes())
        for name, values in batch.requests.items()
    }


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("quality", [1.0, 0.5])
@pytest.mark.parametrize("rows", [[0], [1], [0, 1, 2, 3], [3, 2, 0]])
def test_a_child_is_asked_as_it_would_be_by_itself(shop: Shop, rows: list[int], quality: float, every: bool) -> None:
    asks = [roots()[row] for row in rows]
    known = known_of(shop, asks)
    batch = request_batch(asks, shop.edition, known, recents_kept=50, log_rate=0.5)
    pages = pages_of(batch, rows, every=every)
    shelves = Shelves.of(pages)
    fill = PageFill(np.array([4 + row for row in rows], np.int32), [ask.categories for ask in asks], quality)
    made = child_batch(pages, shelves, batch, fill, shop.edition)
    owners = [at for at, row in enumerate(rows) for _ in SHOWN[row]]
    parents = pages.requests["request_id"].tolist()
    children = [
        child
        for ask, row, parent in zip(asks, rows, parents, strict=True)
        for child in children_of(ask, parent, SHOWN[row], 4 + row)
    ]
    alone = request_batch(children, shop.edition, taken(known, owners), recents_kept=50, log_rate=0.5, quality=quality)
    alone.requests["root_id"] = alone.requests["parent_request_id"] = pages.requests["request_id"][owners]
    assert bits(made) == bits(alone)
    assert made.candidates.rows == 0
    assert len(made.offsets) == len(children) + 1
    assert shelves.widget.tolist() == [widget for row in rows for widget in SHOWN[row]]
    assert [list(shelves.of_page(at)) for at in range(len(rows))] == [
        [row for row, owner in enumerate(owners) if owner == at] for at in range(len(rows))
    ]


def test_the_page_itself_stays_as_it_was(shop: Shop) -> None:
    asks = roots()
    batch = request_batch(asks, shop.edition, known_of(shop, asks), recents_kept=50, log_rate=1.0)
    before = bits(batch)
    pages = pages_of(batch, [0, 1, 2, 3], every=True)
    child_batch(pages, Shelves.of(pages), batch, PageFill(np.full(4, 5, np.int32), LIMITS, 1.0), shop.edition)
    assert bits(batch) == before
