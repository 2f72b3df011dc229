"""Retrieval: quotas, filters, cold start, live availability, and the same bytes whatever the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serve_app.batch import Batch, Ragged
from serve_app.stages.retrieval import EVIDENCE, ItemChange, Overlay, Retrieval, RetrievalTables, drop_unavailable
from serve_app.stages.stage import Context
from serve_app.vocabulary import DropReason, Source, Surface
from tests.unit.retrieval_fixtures import requests, tables, with_column

ITEMS = 300
REGION_ROWS = {0: 0, 1: 1, 2: 2}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> RetrievalTables:
    return tables(tmp_path_factory.mktemp("tables") / "retrieval", items=ITEMS)


@pytest.fixture(scope="module")
def stage(built: RetrievalTables) -> Retrieval:
    return Retrieval(built, REGION_ROWS)


@pytest.fixture(autouse=True, params=["of the whole batch", "of what is said to be read"])
def given(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other processes are sent finds the same candidates as the batch they are asked for."""
    if request.param == "of what is said to be read":
        run = Retrieval.run
        monkeypatch.setattr(Retrieval, "run", lambda self, batch, context: run(self, Retrieval.read_of(batch), context))


def run(stage: Retrieval, batch: Batch, overlay: Overlay | None = None) -> Batch:
    return stage.run(batch, Context(parts={"availability": overlay} if overlay else {}))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_batch_size_changes_no_byte(stage: Retrieval, size: int) -> None:
    batch = requests(1000, ITEMS)
    whole = run(stage, batch)
    for start in range(0, 1000 if size > 1 else 60, size):
        rows = np.arange(start, min(start + size, 1000))
        part, expected = run(stage, batch.take(rows)), whole.take(rows)
        assert part.offsets.tolist() == expected.offsets.tolist()
        for name in expected.candidates:
            assert part.candidates[name].tobytes() == expected.candidates[name].tobytes(), name


def test_an_item_is_a_candidate_once(stage: Retrieval) -> None:
    out = run(stage, requests(50, ITEMS))
    for row in range(50):
        items = out.candidates["item"][out.offsets[row] : out.offsets[row + 1]]
        assert len(np.unique(items)) == len(items)


def test_every_source_gives_no_more_than_its_quota(stage: Retrieval) -> None:
    out = run(stage, requests(100, ITEMS, surface=Surface.gateway))
    bits = out.candidates["sources"]
    for row in range(100):
        own = bits[out.offsets[row] : out.offsets[row + 1]]
        assert (own & int(Source.popular) > 0).sum() <= 60
        assert (own & int(Source.taste) > 0).sum() <= 80
        assert (own & int(Source.covisited) > 0).sum() <= 100, "two lists of fifty"
        assert (own > 0).all(), "every candidate says where it came from"


def test_excluded_items_are_dropped_with_that_reason(stage: Retrieval) -> None:
    batch = requests(40, ITEMS)
    first = run(stage, batch)
    leading = [first.candidates["item"][first.offsets[r] : first.offsets[r] + 5] for r in range(40)]
    out = run(stage, with_column(batch, "excluded", Ragged.of(leading, np.int32)))
    for row in range(40):
        inside = slice(out.offsets[row], out.offsets[row + 1])
        hit = np.isin(out.candidates["item"][inside], leading[row])
        reasons = out.candidates["drop_reason"][inside][hit]
        assert np.isin(reasons, [DropReason.excluded, DropReason.anchor]).all()


def test_the_anchor_itself_is_never_kept(stage: Retrieval) -> None:
    batch = requests(60, ITEMS)
    out = run(stage, batch)
    anchors = batch.requests["anchor"][out.owner]
    kept = out.candidates["drop_reason"] == DropReason.kept
    assert not (kept & (anchors == out.candidates["item"]) & (anchors >= 0)).any()


def test_a_category_limit_drops_other_categories(stage: Retrieval, built: RetrievalTables) -> None:
    out = run(stage, with_column(requests(30, ITEMS), "categories", Ragged.of([[2]] * 30, np.int32)))
    kept = out.candidates["drop_reason"] == DropReason.kept
    assert kept.any()
    assert (built.item_category[out.candidates["item"][kept]] == 2).all()


def test_more_than_the_width_is_dropped_as_over_width(stage: Retrieval) -> None:
    out = run(stage, requests(30, ITEMS, width=10))
    for row in range(30):
        reasons = out.candidates["drop_reason"][out.offsets[row] : out.offsets[row + 1]]
        assert (reasons == DropReason.kept).sum() <= 10
    assert (out.candidates["drop_reason"] == DropReason.over_width).any()


def test_an_unknown_user_gets_what_is_popular_in_the_region(stage: Retrieval, built: RetrievalTables) -> None:
    batch = with_column(requests(3, ITEMS, surface=Surface.gateway), "anchor", np.full(3, -1, np.int32))
    batch = with_column(batch, "recents", Ragged.empty(3, np.int32))
    batch = with_column(batch, "region", np.array([0, 1, 2], np.int16))
    out = run(stage, batch)
    for row in range(3):
        k = built.popular.list_of(row, -1)
        expected = built.popular.items[built.popular.offsets[k] : built.popular.offsets[k + 1]][:60]
        got = out.candidates["item"][out.offsets[row] : out.offsets[row + 1]]
        assert set(got) == set(expected)


def test_unavailable_items_leave_and_new_items_come(stage: Retrieval, built: RetrievalTables) -> None:
    batch = with_column(requests(20, ITEMS), "anchor", np.full(20, 7, np.int32))
    gone = int(run(stage, batch).candidates["item"][0])
    overlay = Overlay.of_release(np.asarray(built.available), built.vectors.shape[1]).apply(
        [
            (ItemChange(seq=1, item=1, available=False), gone),
            (ItemChange(seq=2, item=999, available=True, item_id="new", category=1, embedding=built.vectors[7].copy()), -1),
        ]
    )
    out = run(stage, batch, overlay)
    items, reasons = out.candidates["item"], out.candidates["drop_reason"]
    assert (reasons[items == gone] == DropReason.unavailable).all()
    fresh = items == ITEMS
    assert fresh.sum() == 20, "the new item is a candidate of all twenty"
    assert (out.candidates["sources"][fresh] & int(Source.fresh) > 0).all()
    assert drop_unavailable(out, overlay).sum() == (items == gone).sum()


def test_a_change_applied_twice_or_late_changes_nothing(built: RetrievalTables) -> None:
    base = Overlay.of_release(np.asarray(built.available), built.vectors.shape[1])
    off = (ItemChange(seq=4, item=1, available=False), 3)
    once = base.apply([off])
    assert once.apply([off]) is once
    assert once.apply([(ItemChange(seq=2, item=1, available=True), 3)]) is once, "an older change must not undo a newer one"


def test_ten_thousand_recents_are_answered(stage: Retrieval) -> None:
    many = Ragged.of([np.arange(10_000) % ITEMS], np.int32)
    out = run(stage, with_column(requests(1, ITEMS), "recents", many))
    assert out.candidates.rows > 0


def test_evidence_is_finite_and_named(stage: Retrieval) -> None:
    out = run(stage, requests(100, ITEMS))
    assert out.candidates["source_scores"].shape == (out.candidates.rows, len(EVIDENCE))
    assert np.isfinite(out.candidates["source_scores"]).all()
    assert out.meta["sources"] == EVIDENCE


def test_a_catalogue_of_one_item_answers(tmp_path: Path) -> None:
    one = tables(tmp_path / "one", items=1, sessions=3)
    out = Retrieval(one, REGION_ROWS).run(requests(5, 1), Context())
    kept = out.candidates["drop_reason"] == DropReason.kept
    anchored = requests(5, 1).requests["anchor"][out.owner] == 0
    assert not (kept & anchored).any()
    assert set(out.candidates["item"]) == {0}


def test_live_changes_compile_nothing_anew(stage: Retrieval, built: RetrievalTables) -> None:
    from serve_app.stages.retrieval.gather import gather

    run(stage, requests(2, ITEMS))
    known = len(gather.signatures)  # type: ignore[attr-defined]
    new = ItemChange(seq=9, item=998, available=True, item_id="n", category=1, embedding=built.vectors[3].copy())
    base = Overlay.of_release(np.asarray(built.available), built.vectors.shape[1])
    run(stage, requests(2, ITEMS), base.apply([(new, -1)]))
    assert len(gather.signatures) == known  # type: ignore[attr-defined]
