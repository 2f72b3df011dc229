"""The steps of a build, each restartable, each loaded only when another needs it.

::

    catalogue -> extract -> tables-early -> heads-related, heads-gateway -> figures-... (over tables-past)
              |          '-> tables-all
              '-> outcomes -> heads-notification, heads-widgets
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from serve_app.release.build.catalogue_step import load_rows, prepare_catalogue
from serve_app.release.build.decision_heads import DecisionHeads, message_heads, page_heads
from serve_app.release.build.entity_features import EntityTimelines
from serve_app.release.build.extract import extract, log_files
from serve_app.release.build.figures import model_figures
from serve_app.release.build.heads_step import train_item_heads
from serve_app.release.build.interactions import Interactions, Sessions
from serve_app.release.build.lists_step import measure_lists, measure_shown
from serve_app.release.build.next_items import People, next_items
from serve_app.release.build.outcomes import ATTRIBUTION_US, Outcomes, collect_outcomes
from serve_app.release.build.retrieval_step import build_tables, retrieval_stage
from serve_app.release.build.runner import Runner
from serve_app.release.build.sequences import UserSequences
from serve_app.release.build.settings import BuildSettings
from serve_app.release.build.slates import shown_lists
from serve_app.release.build.spans import Spans
from serve_app.release.build.thing_features import CampaignTimelines, WidgetTimelines
from serve_app.release.build.training import History
from serve_app.release.build.workspace import Workspace, digest_contents
from serve_app.release.manifest import Metric
from serve_app.release.rows import CatalogueRows
from serve_app.reviews import build_review_part
from serve_app.stages.ranking.heads import HeadSet
from serve_app.stages.retrieval.tables import RetrievalTables
from serve_app.vocabulary import Surface

__all__ = ["Figures", "Steps", "load_figures"]

Figures = dict[str, dict[str, Metric]]


@dataclass
class Steps:
    """One build under way: parts are loaded when a step needs them, so an unchanged build loads next to nothing."""

    data: Path
    settings: BuildSettings
    runner: Runner
    workspace: Workspace
    detail: Callable[[str], None]
    left_out: dict[str, str] = field(default_factory=dict)

    @cached_property
    def catalogue_folder(self) -> Path:
        """Step `catalogue`."""
        files = sorted((self.data / "catalogue").glob("*.parquet")) + log_files(self.data, ["users"])
        inputs = {"catalogue": digest_contents(files)}
        return self.workspace.step("catalogue", inputs, [], lambda folder: prepare_catalogue(self.data, folder))

    @cached_property
    def extract_folder(self) -> Path:
        """Step `extract`."""
        items, users = (self.catalogue_folder / f"{name}_hashes.npy" for name in ("item", "user"))
        inputs = {"events": digest_contents(log_files(self.data, ["events"]))}

        def run(folder: Path) -> None:
            extract(self.data, items, users, folder, self.runner)

        return self.workspace.step("extract", inputs, ["catalogue"], run)

    @cached_property
    def outcomes_folder(self) -> Path:
        """Step `outcomes`."""
        files = log_files(self.data, ["requests", "decisions", "candidates", "events"])

        def run(folder: Path) -> None:
            collect_outcomes(self.data, folder, self.runner)

        return self.workspace.step("outcomes", {"log": digest_contents(files)}, [], run)

    @cached_property
    def outcomes(self) -> Outcomes:
        """What was shown or sent, and what came of it."""
        return Outcomes.load(self.outcomes_folder / "outcomes")

    @cached_property
    def campaigns(self) -> CampaignTimelines:
        """Campaigns as of any time."""
        return CampaignTimelines.build(self.log, self.rows)

    @cached_property
    def widgets(self) -> WidgetTimelines:
        """Rows of the page as of any time."""
        return WidgetTimelines.build(self.outcomes, self.rows)

    @cached_property
    def rows(self) -> CatalogueRows:
        """The catalogue in row order."""
        return load_rows(self.catalogue_folder)

    @cached_property
    def log(self) -> Interactions:
        """All interactions."""
        return Interactions.load(self.extract_folder / "interactions")

    @cached_property
    def spans(self) -> Spans:
        """Where the log is cut."""
        return Spans.of(self.log, self.settings)

    @cached_property
    def history(self) -> History:
        """The past, to be asked as of any time."""
        items, users = len(self.rows.items), len(self.rows.users)
        timelines = EntityTimelines.build(self.log, items, users)
        sequences = UserSequences.build(self.log, users)
        return History(timelines, sequences, People.of(self.rows.users), self.rows)

    def sessions_before(self, when: int) -> Sessions:
        """Sessions of what had been received before `when`."""
        return Sessions.of(self.log.known_before(when))

    def tables(self, name: str, when: Callable[[Spans], int]) -> Path:
        """Step `tables-<name>`: retrieval's tables as of a time."""
        _ = self.extract_folder
        settings = self.settings
        inputs = {
            "seed": settings.seed, "dimensions": settings.dimensions, "embedding": settings.embedding,
            "spans": [settings.holdout_days, settings.example_days],
        }  # fmt: skip

        def run(folder: Path) -> None:
            sessions = self.sessions_before(when(self.spans))
            build_tables(sessions, self.rows, folder / "tables", settings, self.detail)

        return self.workspace.step(f"tables-{name}", inputs, ["catalogue", "extract"], run) / "tables"

    def heads(self, surface: Surface) -> tuple[HeadSet, str]:
        """Step `heads-<surface>`: the head set, and why it is a fall-back ("" where it is learned)."""
        early = self.tables("early", lambda spans: spans.examples_from)
        _ = self.outcomes_folder

        def run(folder: Path) -> None:
            retrieval = retrieval_stage(RetrievalTables.load(early))
            self.detail(f"{surface.name}: examples and boosters")
            sessions = Sessions.of(self.log)
            trained = train_item_heads(surface, sessions, self.outcomes, retrieval, self.history, self.spans, self.settings)
            trained.heads.save(folder / "heads")
            (folder / "fallback.txt").write_text(trained.fallback)

        inputs = {"settings": self.settings.model_dump(exclude={"max_measured"}), "surface": surface.name}
        folder = self.workspace.step(
            f"heads-{surface.name}", inputs, ["catalogue", "extract", "tables-early", "outcomes"], run
        )
        return HeadSet.load(folder / "heads"), (folder / "fallback.txt").read_text()

    def figures(self, surface: Surface, heads: HeadSet) -> Figures:
        """Step `figures-<surface>`."""
        past = self.tables("past", lambda spans: spans.measured_from)

        def run(folder: Path) -> None:
            self.detail(f"{surface.name}: lists of the last days")
            spans, settings = self.spans, self.settings
            found = next_items(
                surface,
                Sessions.of(self.log),
                spans.measured_from,
                spans.end,
                limit=settings.max_measured,
                seed=settings.seed,
            )
            retrieval = retrieval_stage(RetrievalTables.load(past))
            known = self.sessions_before(spans.measured_from)
            groups = measure_lists(found, retrieval, heads, self.history, known, settings.width)
            latest = spans.end - ATTRIBUTION_US
            shown = shown_lists(
                self.outcomes, surface, spans.measured_from, latest, limit=settings.max_measured, seed=settings.seed
            )
            groups |= measure_shown(shown, surface, retrieval, heads, self.history, settings.width)
            save_figures(folder, groups)

        inputs = {"settings": self.settings.model_dump(), "surface": surface.name}
        after = ["catalogue", "extract", "tables-past", f"heads-{surface.name}"]
        return load_figures(self.workspace.step(f"figures-{surface.name}", inputs, after, run))

    def decision_heads(self, surface: Surface) -> DecisionHeads:
        """Steps `heads-notification` and `heads-widgets`, with their figures."""
        _ = self.extract_folder, self.outcomes_folder

        def run(folder: Path) -> None:
            self.detail(f"{surface.name}: rows and boosters")
            if surface == Surface.notification:
                found = message_heads(self.outcomes, self.history, self.campaigns, self.spans, self.settings)
            else:
                found = page_heads(self.outcomes, self.history, self.widgets, self.spans, self.settings)
            save_figures(folder, found.figures)
            (folder / "left_out.json").write_text(json.dumps(found.left_out, sort_keys=True))
            if found.heads is not None:
                found.heads.save(folder / "heads")

        inputs = {"settings": self.settings.model_dump(), "surface": surface.name}
        folder = self.workspace.step(f"heads-{surface.name}", inputs, ["catalogue", "extract", "outcomes"], run)
        heads = HeadSet.load(folder / "heads") if (folder / "heads").is_dir() else None
        return DecisionHeads(heads, json.loads((folder / "left_out.json").read_text()), load_figures(folder))

    @cached_property
    def reviews(self) -> tuple[Path, HeadSet, str]:
        """Step `reviews`: folder with the stored scores (`table`) and the model (`model`, where votes suffice), the head
        that is the stored score, and why it is a fall-back ("" where it is not)."""
        _ = self.extract_folder

        def run(folder: Path) -> None:
            self.detail("reviews: the quality model")
            part = build_review_part(self.rows.reviews, self.rows.review_hashes, self.spans.end, seed=self.settings.seed)
            part.table.save(folder / "table")
            part.heads.save(folder / "heads")
            (folder / "left_out.txt").write_text(part.left_out)
            if part.model is not None:
                part.model.save(folder / "model")
            save_figures(folder, {} if part.model is None else {"reviews.p_helpful": model_figures(part.model.metrics)})

        folder = self.workspace.step("reviews", {"seed": self.settings.seed}, ["catalogue", "extract"], run)
        return folder, HeadSet.load(folder / "heads"), (folder / "left_out.txt").read_text()


def save_figures(folder: Path, groups: Figures) -> None:
    plain = {group: {name: one.model_dump() for name, one in figures.items()} for group, figures in groups.items()}
    (folder / "figures.json").write_text(json.dumps(plain, indent=1, sort_keys=True))


def load_figures(folder: Path) -> Figures:
    plain = json.loads((folder / "figures.json").read_text())
    return {group: {name: Metric(**one) for name, one in figures.items()} for group, figures in plain.items()}
