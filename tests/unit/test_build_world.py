"""A build from a world's log: every surface gets heads, and no training row knows its future."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serve_app.release.build.decided import MESSAGE_PROVIDED, PAGE_PROVIDED, message_features, page_features, plan_of
from serve_app.release.build.entity_features import EntityTimelines
from serve_app.release.build.interactions import Interactions, Sessions
from serve_app.release.build.next_items import People, next_items
from serve_app.release.build.pipeline import BuildReport
from serve_app.release.build.retrieval_step import retrieval_stage
from serve_app.release.build.runner import LocalRunner
from serve_app.release.build.sequences import UserSequences
from serve_app.release.build.slates import shown_lists, shown_rows
from serve_app.release.build.steps import Steps
from serve_app.release.build.thing_features import CampaignTimelines, WidgetTimelines
from serve_app.release.build.training import ITEM_FEATURES, ITEM_PROVIDED, ExampleRows, History, item_rows
from serve_app.release.build.workspace import Workspace
from serve_app.release.load import load_release
from serve_app.stages.features import COMPUTED, FeaturePlan, source_specs
from serve_app.stages.retrieval.evidence import EVIDENCE
from serve_app.stages.retrieval.tables import RetrievalTables
from serve_app.vocabulary import Surface
from simulators.world.publish import publish
from simulators.world.settings import world_settings
from tests.unit.release_support import TINY, build

FAR = 1 << 62


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildReport]:
    """A small world's data folder, and the build of a release from it."""
    data = tmp_path_factory.mktemp("world") / "data"
    publish(world_settings(users=300, items=120, days=15, seed=3), data)
    return data, build(data)


@pytest.fixture(scope="module")
def steps(world: tuple[Path, BuildReport]) -> Steps:
    """The finished steps of that build."""
    data, _ = world
    return Steps(data, TINY, LocalRunner(), Workspace(data / "releases" / ".build"), lambda _text: None)


def history_of(log: Interactions, steps: Steps) -> History:
    users = len(steps.rows.users)
    timelines = EntityTimelines.build(log, len(steps.rows.items), users)
    return History(timelines, UserSequences.build(log, users), People.of(steps.rows.users), steps.rows)


def same(left: ExampleRows, right: ExampleRows) -> bool:
    return left.features.tobytes() == right.features.tobytes() and left.weight.tobytes() == right.weight.tobytes()


def test_every_surface_of_the_world_has_heads(world: tuple[Path, BuildReport]) -> None:
    _, report = world
    release = load_release(report.folder)
    release.load_all()
    assert {"related", "gateway", "widgets", "notification", "reviews"} == set(release.manifest.heads)
    assert release.manifest.heads["notification"] == ["p_click", "p_convert", "p_optout", "uplift"]
    assert release.manifest.heads["reviews"] == ["p_helpful"]
    assert {table.entity.value for table in release.features} == {"item", "user", "campaign", "widget", "review"}
    assert len(release.review_model.features) > 0
    plans = release.models.plans(
        [*(spec for table in release.features for spec in table.specs), *COMPUTED, *source_specs(EVIDENCE)]
    )
    assert set(plans) == {Surface[name] for name in release.manifest.heads}


def test_item_rows_do_not_know_what_came_after_them(steps: Steps) -> None:
    retrieval = retrieval_stage(RetrievalTables.load(steps.tables("early", lambda spans: spans.examples_from)))
    plan = FeaturePlan.compile(ITEM_FEATURES, ITEM_PROVIDED)
    spans = steps.spans
    examples = next_items(
        Surface.gateway, Sessions.of(steps.log), spans.examples_from, spans.measured_from, limit=300, seed=1
    )
    past = history_of(steps.log.known_before(int(examples.at.max())), steps)
    rows = [item_rows(examples, retrieval, plan, one, width=100, negatives=10, seed=1) for one in (steps.history, past)]
    assert same(*rows)
    early = history_of(steps.log.known_before(int(np.median(examples.at))), steps)
    assert not same(rows[0], item_rows(examples, retrieval, plan, early, width=100, negatives=10, seed=1))


def test_shown_rows_keep_their_slot_and_do_not_know_their_future(steps: Steps) -> None:
    retrieval = retrieval_stage(RetrievalTables.load(steps.tables("early", lambda spans: spans.examples_from)))
    plan = FeaturePlan.compile(ITEM_FEATURES, ITEM_PROVIDED)
    shown = shown_lists(steps.outcomes, Surface.related, steps.spans.examples_from, FAR, limit=200, seed=1)
    rows = shown_rows(shown, Surface.related, retrieval, plan, steps.history, 100)
    past = history_of(steps.log.known_before(int(shown.at.max())), steps)
    assert 0 < len(rows.slot) <= len(shown)
    assert set(np.unique(rows.slot)) <= set(np.unique(shown.slot))
    assert rows.clicked.sum() <= shown.clicked.sum()
    assert same(rows, shown_rows(shown, Surface.related, retrieval, plan, past, 100))


def test_message_and_page_rows_do_not_know_their_future(steps: Steps) -> None:
    outcomes = steps.outcomes
    middle = int(np.median(outcomes.at))
    earlier = outcomes.take(outcomes.at < middle)
    log = steps.log.known_before(middle)
    past = history_of(log, steps)
    sends = earlier.take((earlier.surface == Surface.notification) & earlier.sent)
    plan = plan_of(MESSAGE_PROVIDED)
    full = message_features(sends, plan, steps.history, steps.campaigns)
    assert len(full) > 0
    assert full.tobytes() == message_features(sends, plan, past, CampaignTimelines.build(log, steps.rows)).tobytes()
    pages = earlier.take(earlier.surface == Surface.widgets)
    plan = plan_of(PAGE_PROVIDED)
    known = page_features(pages, plan, steps.history, steps.widgets)
    assert known.tobytes() == page_features(pages, plan, past, WidgetTimelines.build(earlier, steps.rows)).tobytes()
