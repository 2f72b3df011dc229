"""Training rows from what was decided, for candidates that retrieval does not find: messages and the rows of a page.

Each decided row becomes a request with one candidate, put through the Features stage as of its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Ragged
from serve_app.release.build.entity_features import ITEM_SPECS, USER_SPECS
from serve_app.release.build.next_items import NextItems
from serve_app.release.build.outcomes import Outcomes
from serve_app.release.build.thing_features import (
    CAMPAIGN_SPECS,
    WIDGET_SPECS,
    CampaignTimelines,
    WidgetTimelines,
    widget_rows,
)
from serve_app.release.build.training import History
from serve_app.release.rows import find_rows
from serve_app.stages.features import COMPUTED, Entity, FeaturePlan, Features, FeatureSpec, FeatureTable
from serve_app.stages.features.computed import REQUEST_FEATURES
from serve_app.stages.stage import Context
from serve_app.vocabulary import Surface

__all__ = ["MESSAGE_PROVIDED", "PAGE_PROVIDED", "message_features", "page_features", "plan_of"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

MESSAGE_PROVIDED: tuple[FeatureSpec, ...] = (*CAMPAIGN_SPECS, *USER_SPECS, *ITEM_SPECS, *COMPUTED)
PAGE_PROVIDED: tuple[FeatureSpec, ...] = (*WIDGET_SPECS, *USER_SPECS, *REQUEST_FEATURES)
_NOT_READ = frozenset({"surface", "region", "context_device", "position", "anchor_same_category", "anchor_price_ratio"})
_CHUNK = 20_000


def plan_of(provided: tuple[FeatureSpec, ...]) -> FeaturePlan:
    """Everything provided but codes without an order."""
    return FeaturePlan.compile([spec.name for spec in provided if spec.name not in _NOT_READ], provided)


def message_features(sends: Outcomes, plan: FeaturePlan, history: History, campaigns: CampaignTimelines) -> F32:
    """f32[k, F] of k (would-)sends."""
    parts = [np.empty((0, len(plan)), np.float32)]
    for start in range(0, len(sends), _CHUNK):
        rows = sends.take(np.arange(start, min(start + _CHUNK, len(sends))))
        item = history.rows.item_rows(rows.item)
        at = rows.at
        known = np.maximum(item, 0)
        values: dict[Entity, tuple[tuple[FeatureSpec, ...], F32]] = {
            Entity.campaign: (CAMPAIGN_SPECS, campaigns.features(find_rows(campaigns.hashes, rows.campaign), at)),
            Entity.item: (
                ITEM_SPECS,
                np.where((item >= 0)[:, None], history.timelines.items(known, at), np.float32(np.nan)),
            ),
        }
        candidates: dict[str, npt.NDArray[Any]] = {"item": item, "campaign": rows.campaign, "channel": rows.channel}
        parts.append(_run(rows, Surface.notification, candidates, values, item, plan, history))
    return np.concatenate(parts)


def page_features(pages: Outcomes, plan: FeaturePlan, history: History, widgets: WidgetTimelines) -> F32:
    """f32[k, F] of k rows of pages, all of widgets the catalogue holds."""
    parts = [np.empty((0, len(plan)), np.float32)]
    for start in range(0, len(pages), _CHUNK):
        rows = pages.take(np.arange(start, min(start + _CHUNK, len(pages))))
        widget = widget_rows(history.rows, rows.widget)
        values = {Entity.widget: (WIDGET_SPECS, widgets.features(widget, rows.at))}
        item = np.full(len(rows), -1, np.int32)
        parts.append(_run(rows, Surface.widgets, {"widget": widget, "item": item}, values, item, plan, history))
    return np.concatenate(parts)


def _run(
    rows: Outcomes,
    surface: Surface,
    candidates: Mapping[str, npt.NDArray[Any]],
    values: Mapping[Entity, tuple[tuple[FeatureSpec, ...], F32]],
    item: I32,
    plan: FeaturePlan,
    history: History,
) -> F32:
    n = len(rows)
    user = history.rows.user_rows(rows.user)
    values = {**values, Entity.user: (USER_SPECS, history.timelines.users(user, rows.at))}
    keys = np.zeros(n, np.uint64)
    tables = [FeatureTable(entity, specs, keys, matrix, rows.at) for entity, (specs, matrix) in values.items()]
    own = np.arange(n, dtype=np.int32)
    at = {entity: np.where(user >= 0, own, -1).astype(np.int32) if entity == Entity.user else own for entity in values}
    if Entity.item in at:
        at[Entity.item] = np.where(item >= 0, own, -1).astype(np.int32)
    stage = Features({surface: plan}, tables, history.facts)
    batch = _requests(rows, surface, user, history).with_candidates(np.arange(n + 1, dtype=np.int64), **candidates)
    features: F32 = stage.run(batch, Context(), at).candidates["features"]
    return features


def _requests(rows: Outcomes, surface: Surface, user: I32, history: History) -> Batch:
    n = len(rows)
    nothing = Ragged.empty(n, np.int32)
    asked = NextItems(
        surface=surface,
        user=user,
        at=rows.at,
        anchor=np.full(n, -1, np.int32),
        prefix=nothing,
        prefix_at=np.empty(0, np.int64),
        relevant=nothing,
        bought=np.empty(0, np.bool_),
        session=rows.request_id.view(np.int64),
    )
    return asked.requests(history.people, history.sequences, 1)
