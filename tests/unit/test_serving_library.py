"""A process's library: what it keeps of live changes, and what its editions stand for."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import orjson
import pytest

from serve_app.catalogue import Catalogue, table_of
from serve_app.errors import DamagedArtifact, NotReady
from serve_app.ids import hash_id
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import CatalogueChange
from serve_app.policy.document import PolicyDocument
from serve_app.release.rows import CatalogueRows, in_row_order
from serve_app.serving import editions, live
from serve_app.serving import library as module
from serve_app.serving.library import Held, Library, Pins, Role
from serve_app.serving.live import ITEM_CHANGE, ItemsView, encode_item_change
from tests.unit.decision_support import document

ITEMS = 40


def policy(revision: str) -> PolicyDocument:
    return document(name=revision, surfaces={})


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """Releases `one`, `two`, ... of the same forty items, without models; policies `p`, `q`, ..."""
    n = ITEMS
    items = {
        "item_id": [f"item-{i}" for i in range(n)], "title": [""] * n, "category": ["socks"] * n, "price": [1.0] * n,
        "currency": ["GBP"] * n, "created_at": [0] * n, "available": [True] * n,
    }  # fmt: skip
    rows = CatalogueRows(in_row_order(Catalogue(table_of("items", items))))

    def held(release: object, roles: object) -> Held:
        base = ItemsView.of_release(rows, np.zeros((2, 4), np.float32))
        return Held(release, base, {}, None, None, None, {})  # type: ignore[arg-type]

    monkeypatch.setattr(module, "release_folder", lambda data, version: data / version)
    monkeypatch.setattr(module, "load_release", lambda *_: SimpleNamespace(load_all=lambda: None))
    monkeypatch.setattr(module, "hold", held)
    made = Library(tmp_path, [Role.worker], policy)
    made.policies.prepare("p")
    made.releases.prepare("one")
    return made


def put(seq: int, item: str, *, available: bool = False) -> CatalogueChange:
    said = encode_item_change(item, available=available, title="t", category="socks", price=2.0)
    return CatalogueChange(seq, ITEM_CHANGE, said)


def told(seq: int, name: str, text: str) -> CatalogueChange:
    said = {"campaign_id": name, "text": text, "message_class": "informational", "channels": ["push"]}
    return CatalogueChange(seq, "campaign", orjson.dumps(said))


def changes_held() -> int:
    gc.collect()
    return sum(type(one) is CatalogueChange for one in gc.get_objects())


def test_memory_follows_the_items_and_campaigns_and_not_the_changes(library: Library) -> None:
    before, seq = changes_held(), 0
    for _ in range(200):
        page = [put(seq + n + 1, f"item-{n % 60}", available=n % 7 > 0) for n in range(80)]
        page += [told(seq + 81 + n, f"campaign-{n}", f"text {seq}") for n in range(20)]
        library.learn(page)
        seq += 100
    del page
    assert library.seq == seq == 20_000
    assert changes_held() - before <= live._RECENT + 2 * 60 + 1
    edition = library.edition(Pins("one", "p", seq))
    assert (edition.view.seq, len(edition.view.hashes), len(edition.documents)) == (seq, 60, 20)
    assert {one.text for one in edition.documents.values()} == {f"text {seq - 100}"}


def test_a_pin_is_answered_with_all_that_is_known_and_never_with_less(library: Library) -> None:
    library.learn([put(1, "item-0"), put(2, "item-1")])
    newest = library.edition(Pins("one", "p", 0))
    assert newest.view.seq == 2
    assert library.edition(Pins("one", "p", 2)) is newest
    with pytest.raises(NotReady, match="knows 2 catalogue changes"):
        library.edition(Pins("one", "p", 3))
    library.learn([put(2, "item-9"), put(3, "item-2")])
    assert library.edition(Pins("one", "p", 3)).view.overlay.unavailable.sum() == 3, "what is known is passed over"


def test_an_edition_in_use_stays_as_it_was_while_the_library_goes_on(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_RECENT", 4)
    library.learn([put(1, "new"), put(2, "item-1"), told(3, "c", "then")])
    held = library.edition(Pins("one", "p", 3))
    overlay = held.view.overlay
    bits = [overlay.unavailable.tobytes(), overlay.side_prices.tobytes(), overlay.side_hashes.tobytes()]
    library.learn([*(put(4 + n, f"other-{n}") for n in range(50)), told(54, "c", "now"), put(55, "item-1", available=True)])
    later = library.edition(Pins("one", "p", 55))
    assert [overlay.unavailable.tobytes(), overlay.side_prices.tobytes(), overlay.side_hashes.tobytes()] == bits
    assert (held.view.seq, held.documents["c"].text, later.documents["c"].text) == (3, "then", "now")
    assert later.view.rows_of(np.array([hash_id("new"), hash_id("other-0")], np.uint64)).tolist() == [ITEMS, ITEMS + 1]


def test_every_process_gives_new_items_the_same_rows_whenever_it_came_to_know_them(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_RECENT", 5)
    draw = np.random.default_rng(3)
    for seq in range(1, 300):
        library.learn([put(seq, f"new-{draw.integers(30)}", available=bool(draw.integers(2)))])
        if seq % 7 == 0:
            library.edition(Pins("one", "p", seq))  # step by step
    library.releases.prepare("two")  # all at once
    one, two = library.edition(Pins("one", "p", 299)).view, library.edition(Pins("two", "p", 299)).view
    assert one.overlay.side_ids == two.overlay.side_ids
    assert one.overlay.unavailable.tobytes() == two.overlay.unavailable.tobytes()


def test_a_release_takes_in_the_changes_when_it_is_loaded_and_not_when_a_request_comes(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.learn([put(1, "item-0"), put(2, "new")])
    library.releases.prepare("two")
    given: list[int] = []
    apply = ItemsView.apply

    def counted(view: ItemsView, changes: list[CatalogueChange]) -> ItemsView:
        given.append(len(changes))
        return apply(view, changes)

    monkeypatch.setattr(ItemsView, "apply", counted)
    assert library.edition(Pins("two", "p", 2)).view.overlay.side_ids == ("new",)
    assert sum(given) == 0


def test_another_policy_of_a_release_goes_on_from_the_same_view(library: Library) -> None:
    library.learn([put(1, "item-0"), put(2, "new")])
    library.policies.prepare("q")
    first = library.edition(Pins("one", "p", 2))
    assert library.edition(Pins("one", "q", 2)).view is first.view
    library.learn([put(3, "item-3")])
    assert library.edition(Pins("one", "q", 3)).view.seq == 3
    assert first.view.seq == 2


def test_campaigns_alone_move_an_edition_on_and_it_is_made_once(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_RECENT", 1)
    library.learn([put(1, "item-0"), told(2, "c", "a"), told(3, "c", "b")])
    edition = library.edition(Pins("one", "p", 3))
    assert (edition.view.seq, edition.documents["c"].text) == (3, "b")
    assert library.edition(Pins("one", "p", 3)) is edition


def test_a_process_that_starts_learns_page_by_page(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editions, "_PAGE", 10)
    ledger, pages = MemoryLedger(), []
    for seq in range(1, 36):
        ledger.append_catalogue_change(ITEM_CHANGE, put(seq, f"item-{seq}").payload)

    async def call(method: str, after: int, limit: int) -> list[CatalogueChange]:
        assert after == library.seq, "what came before is learned before more is asked for"
        pages.append(getattr(ledger, method)(after, limit))
        return pages[-1]  # type: ignore[no-any-return]

    asyncio.run(editions.catch_up(library, call))
    assert ([len(page) for page in pages], library.seq) == ([10, 10, 10, 5], 35)
    asyncio.run(editions.catch_up(library, call))
    assert [len(page) for page in pages[4:]] == [0]


def test_a_release_is_refused_while_a_change_cannot_be_read(library: Library) -> None:
    library.learn([put(1, "item-0"), CatalogueChange(2, ITEM_CHANGE, b"{}"), put(3, "item-0")])
    with pytest.raises(DamagedArtifact, match="change 2"):
        library.releases.prepare("two")
