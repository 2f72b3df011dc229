"""Heads of the item surfaces: trained on what followed past requests, or retrieval's own order where that is too little."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.release.build.interactions import Sessions
from serve_app.release.build.next_items import next_items
from serve_app.release.build.outcomes import ATTRIBUTION_US, Outcomes
from serve_app.release.build.settings import BuildSettings
from serve_app.release.build.slates import shown_lists, shown_rows
from serve_app.release.build.spans import Spans
from serve_app.release.build.training import ITEM_FEATURES, ITEM_PROVIDED, ExampleRows, History, item_rows
from serve_app.stages.features import FeaturePlan
from serve_app.stages.ranking.calibration import Calibration
from serve_app.stages.ranking.heads import Head, HeadSet
from serve_app.stages.ranking.training import TrainSettings, train_heads
from serve_app.stages.retrieval.stage import Retrieval
from serve_app.vocabulary import Surface

__all__ = ["ITEM_SURFACES", "LEAST_EXAMPLES", "by_retrieval_order", "constant_head", "train_item_heads"]

ITEM_SURFACES = (Surface.related, Surface.gateway)
LEAST_EXAMPLES = 100
LEAST_CLICKS = 200
UNSHOWN_SLOT = 20
LEAST_PURCHASES = 20
_BEST_BLEND = 6.0  # above the sum of retrieval's blending weights


@dataclass(frozen=True, slots=True)
class Trained:
    """A head set, and why it is not a learned one ("" where it is)."""

    heads: HeadSet
    fallback: str = ""


def by_retrieval_order() -> HeadSet:
    """Heads that keep retrieval's order: `p_click` and `p_convert` rise with its blended score. Not probabilities."""
    rising = (Head(name, -1, 0, _line(top), "retrieval_score") for name, top in (("p_click", 0.1), ("p_convert", 0.02)))
    return HeadSet(("retrieval_score",), tuple(rising), ())


def _line(top: float) -> Calibration:
    return Calibration(np.array([0.0, _BEST_BLEND]), np.array([0.0, top]))


def train_item_heads(
    surface: Surface,
    sessions: Sessions,
    outcomes: Outcomes,
    retrieval: Retrieval,
    history: History,
    spans: Spans,
    settings: BuildSettings,
) -> Trained:
    """`p_click` and `p_convert` of one surface, from examples in [spans.examples_from, spans.measured_from); retrieval's
    tables end where these begin.

    Without logged lists p_click means that any interaction followed in the session, p_convert that a purchase did. With
    them, both mean what came of a shown slot; the slot is a feature, and candidates that were not shown stand among the rows
    as if shown far below, so that the heads also know what lists never hold.
    """
    plan = FeaturePlan.compile(ITEM_FEATURES, ITEM_PROVIDED)
    begin, end = spans.examples_from, spans.measured_from
    examples = next_items(surface, sessions, begin, end, limit=settings.max_examples, seed=settings.seed)
    if len(examples) < LEAST_EXAMPLES:
        return Trained(by_retrieval_order(), f"{len(examples)} examples, {LEAST_EXAMPLES} are needed")
    rows = item_rows(
        examples, retrieval, plan, history, width=settings.width, negatives=settings.negatives, seed=settings.seed
    )
    if int(rows.clicked.sum()) < LEAST_CLICKS:
        return Trained(
            by_retrieval_order(), f"{int(rows.clicked.sum())} positives among the candidates, {LEAST_CLICKS} needed"
        )
    shown = shown_lists(outcomes, surface, begin, end - ATTRIBUTION_US, limit=settings.max_examples, seed=settings.seed)
    if int(shown.clicked.sum()) < LEAST_CLICKS:
        return Trained(_fit(rows, settings, None))
    seen = shown_rows(shown, surface, retrieval, plan, history, settings.width)
    rows = ExampleRows.join([seen, rows])
    return Trained(_fit(rows, settings, np.where(rows.slot < 0, UNSHOWN_SLOT, rows.slot)))


def _fit(rows: ExampleRows, settings: BuildSettings, slot: npt.NDArray[np.int32] | None) -> HeadSet:
    labels = {"p_click": rows.clicked}
    enough = int(rows.bought.sum()) >= LEAST_PURCHASES
    if enough:
        labels["p_convert"] = rows.bought
    heads = train_heads(
        rows.features,
        rows.names,
        labels,
        users=rows.group,
        position=slot,
        weight=rows.weight,
        seed=settings.seed,
        settings=TrainSettings(trees=settings.trees, depth=settings.depth, threads=settings.threads),
    )
    if enough:
        return heads
    rate = float((rows.weight * rows.bought).sum() + 1) / float(rows.weight.sum() + 100)
    return heads.with_heads_of(constant_head(heads.features, "p_convert", rate))


def constant_head(features: tuple[str, ...], name: str, value: float) -> HeadSet:
    """A head that always says `value`; it reads a feature that is never missing."""
    flat = Calibration(np.array([0.0, 1.0]), np.array([value, value]))
    return HeadSet(features, (Head(name, -1, 0, flat, "recents_count"),), ())
