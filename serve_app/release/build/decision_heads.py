"""Heads of notifications and of page rows, from what was sent or shown and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from serve_app.noise import hash_key
from serve_app.release.build.decided import MESSAGE_PROVIDED, PAGE_PROVIDED, message_features, page_features, plan_of
from serve_app.release.build.figures import model_figures, score_figures
from serve_app.release.build.heads_step import constant_head
from serve_app.release.build.outcomes import ATTRIBUTION_US, Outcomes
from serve_app.release.build.settings import BuildSettings
from serve_app.release.build.spans import Spans
from serve_app.release.build.thing_features import CampaignTimelines, WidgetTimelines
from serve_app.release.build.training import History
from serve_app.release.manifest import Metric
from serve_app.stages.ranking.heads import HeadSet
from serve_app.stages.ranking.training import TrainSettings, train_heads, train_uplift
from serve_app.vocabulary import Surface

__all__ = ["DecisionHeads", "message_heads", "page_heads"]

F32 = npt.NDArray[np.float32]

LEAST_POSITIVES = 50
LEAST_RARE = 10
LEAST_HELD_OUT = 100


@dataclass(frozen=True, slots=True)
class DecisionHeads:
    """heads: None where the log cannot give any. left_out: part -> why. figures: by group, on the measured span."""

    heads: HeadSet | None
    left_out: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, Metric]] = field(default_factory=dict)


def message_heads(
    outcomes: Outcomes, history: History, campaigns: CampaignTimelines, spans: Spans, settings: BuildSettings
) -> DecisionHeads:
    """`p_click`, `p_convert`, `p_optout` per send, and `uplift`: what a send adds to the chance that the user buys anything
    within the attribution window, learned from the holdouts' would-sends."""
    messages = outcomes.take(outcomes.surface == Surface.notification)
    sends = messages.take(messages.sent)
    past = _settled(sends, spans.begin, spans.measured_from, settings)
    if int(past.clicked.sum()) < LEAST_POSITIVES:
        why = f"{int(past.clicked.sum())} clicked messages in the log, {LEAST_POSITIVES} are needed"
        return DecisionHeads(None, {"notification": why})
    plan = plan_of(MESSAGE_PROVIDED)
    features = message_features(past, plan, history, campaigns)
    labels = {"p_click": past.clicked, "p_convert": past.converted, "p_optout": past.opted_out}
    heads, left_out = _probabilities(features, plan.names, labels, past, settings, "notification")
    uplift, why = _uplift(messages, plan.names, history, campaigns, spans, settings)
    if why:
        left_out["notification uplift"] = why
    heads = heads.with_heads_of(uplift)
    later = _settled(sends, spans.measured_from, spans.end, settings)
    held = message_features(later, plan, history, campaigns)
    actual = {"p_click": later.clicked, "p_convert": later.converted, "p_optout": later.opted_out}
    figures = _figures("notification", heads, held, actual, later, history)
    if not why:
        figures["notification.uplift"] = model_figures(uplift.metrics["uplift"])
    return DecisionHeads(heads, left_out, figures)


def page_heads(
    outcomes: Outcomes, history: History, widgets: WidgetTimelines, spans: Spans, settings: BuildSettings
) -> DecisionHeads:
    """`p_widget`: the chance that a row of the page is clicked; its smoothed click rate where the log has too few pages."""
    pages = outcomes.take((outcomes.surface == Surface.widgets) & (outcomes.widget != 0))
    pages = pages.take(np.isin(pages.widget, history.rows.widget_hashes))
    past = _settled(pages, spans.begin, spans.measured_from, settings)
    if int(past.clicked.sum()) < LEAST_POSITIVES:
        why = f"{int(past.clicked.sum())} clicked page rows in the log, {LEAST_POSITIVES} are needed; smoothed click rates"
        return DecisionHeads(HeadSet.of_feature("p_widget", "widget_click_rate"), {"widgets heads": why})
    plan = plan_of(PAGE_PROVIDED)
    features = page_features(past, plan, history, widgets)
    heads = train_heads(
        features, plan.names, {"p_widget": past.clicked}, users=past.user, position=past.slot, seed=settings.seed,
        settings=_train_settings(settings),
    )  # fmt: skip
    later = _settled(pages, spans.measured_from, spans.end, settings)
    held = page_features(later, plan, history, widgets)
    held = np.concatenate([held, later.slot[:, None].astype(np.float32)], axis=1)  # judged at the slot it was shown in
    return DecisionHeads(heads, {}, _figures("widgets", heads, held, {"p_widget": later.clicked}, later, history))


def _settled(rows: Outcomes, begin: int, end: int, settings: BuildSettings) -> Outcomes:
    """Rows decided in [begin, end) whose attribution window ended before `end`; a seeded sample where there are too many."""
    rows = rows.take((rows.at >= begin) & (rows.at + ATTRIBUTION_US < end))
    most = settings.max_decisions
    if len(rows) <= most:
        return rows
    draw = hash_key(settings.seed, rows.user, rows.request_id, rows.slot)
    return rows.take(np.sort(np.argsort(draw, kind="stable")[:most]))


def _train_settings(settings: BuildSettings) -> TrainSettings:
    return TrainSettings(trees=settings.trees, depth=settings.depth, threads=settings.threads)


def _probabilities(
    features: F32, names: tuple[str, ...], labels: dict[str, npt.NDArray[np.bool_]], rows: Outcomes, settings: BuildSettings,
    surface: str,
) -> tuple[HeadSet, dict[str, str]]:  # fmt: skip
    """Heads where there is something to learn; the others say the log's smoothed rate, for everyone alike."""
    rare = {name: int(label.sum()) for name, label in labels.items() if int(label.sum()) < LEAST_RARE}
    known = {name: label for name, label in labels.items() if name not in rare}
    heads = train_heads(features, names, known, users=rows.user, seed=settings.seed, settings=_train_settings(settings))
    left_out = {}
    for name, count in rare.items():
        heads = heads.with_heads_of(constant_head(names, name, (count + 1) / (len(rows) + 100)))
        left_out[f"{surface} {name}"] = f"{count} in the log, {LEAST_RARE} are needed; the log's rate for everyone"
    return heads, left_out


def _uplift(
    messages: Outcomes, names: tuple[str, ...], history: History, campaigns: CampaignTimelines, spans: Spans,
    settings: BuildSettings,
) -> tuple[HeadSet, str]:  # fmt: skip
    """The uplift head, and why it is 0 for everyone ("" where it is learned)."""
    trial = _settled(messages.take(messages.trial), spans.begin, spans.end, settings)
    trial = trial.take((trial.p_sent > 0) & (trial.p_sent < 1))
    held_out = int((~trial.sent).sum())
    if held_out < LEAST_HELD_OUT:
        return constant_head(
            names, "uplift", 0.0
        ), f"{held_out} held-out messages in the log, {LEAST_HELD_OUT} are needed; 0"
    features = message_features(trial, plan_of(MESSAGE_PROVIDED), history, campaigns)
    heads = train_uplift(
        features, names, trial.bought, trial.sent, trial.p_sent, users=trial.user, seed=settings.seed,
        settings=_train_settings(settings),
    )  # fmt: skip
    return heads, ""


def _figures(
    surface: str, heads: HeadSet, features: F32, labels: dict[str, npt.NDArray[np.bool_]], rows: Outcomes, history: History
) -> dict[str, dict[str, Metric]]:
    if len(rows) == 0:
        return {}
    scores = heads.predict(features).astype(np.float64)
    users = history.rows.user_rows(rows.user)
    return {
        f"{surface}.{name}": dict(score_figures(scores[:, heads.names.index(name)], label, users))
        for name, label in labels.items()
    }
