"""Requests for the widgets of a page are what they would be if each had been asked by itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from serve_app.batch import Batch, Ragged
from serve_app.ingress.asks import Ask, Known, child_batch, request_batch, users_of
from serve_app.ingress.gateway import child_request_ids
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Recents, UserState
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


def roots() -> list[Ask]:
    return [
        Ask(Surface.widgets, 1000 + row, NOW, NOW + 1, user, slots=3, region="KR" if row == 2 else None, device="app")
        for row, user in enumerate(USERS)
    ]


def children_of(root: Ask) -> list[Ask]:
    names = [(), ("\0nothing",), ()]
    return [
        dataclasses.replace(
            root, surface=Surface.gateway, request_id=one, root_id=root.request_id, parent_request_id=root.request_id,
            slots=slots, categories=limit,
        )
        for one, limit, slots in zip(child_request_ids(root.request_id, 3), names, (6, None, 4), strict=True)
    ]  # fmt: skip


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


@pytest.mark.parametrize("quality", [1.0, 0.5])
@pytest.mark.parametrize("rows", [[0], [1], [0, 1, 2, 3], [3, 2]])
def test_a_child_is_asked_as_it_would_be_by_itself(shop: Shop, rows: list[int], quality: float) -> None:
    asks = [roots()[row] for row in rows]
    known = known_of(shop, asks)
    batch = request_batch(asks, shop.edition, known, recents_kept=50, log_rate=0.5)
    owners = [row for row in range(len(asks)) for _ in range(3)]
    children = [child for ask in asks for child in children_of(ask)]
    made = child_batch(batch, owners, children, shop.edition, quality=quality)
    alone = request_batch(children, shop.edition, taken(known, owners), recents_kept=50, log_rate=0.5, quality=quality)
    assert bits(made) == bits(alone)
    assert made.candidates.rows == 0
    assert len(made.offsets) == len(children) + 1


def test_the_page_itself_stays_as_it_was(shop: Shop) -> None:
    asks = roots()
    batch = request_batch(asks, shop.edition, known_of(shop, asks), recents_kept=50, log_rate=1.0)
    before = bits(batch)
    child_batch(batch, [0, 0, 0], children_of(asks[0]), shop.edition)
    assert bits(batch) == before
