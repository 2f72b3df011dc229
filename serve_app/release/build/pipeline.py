"""The whole build: from a data folder to a release. The steps and their order stand in `steps`."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serve_app.log.fingerprint import code_version
from serve_app.release.build.extract import log_files
from serve_app.release.build.heads_step import ITEM_SURFACES
from serve_app.release.build.memory import PeakMemory
from serve_app.release.build.retrieval_step import index_recall
from serve_app.release.build.runner import Runner
from serve_app.release.build.settings import BuildSettings
from serve_app.release.build.steps import Figures, Steps, load_figures
from serve_app.release.build.workspace import Observer, Workspace, digest_contents
from serve_app.release.manifest import Lineage, ReleaseNotes, read_manifest, write_release
from serve_app.stages.ranking.heads import HeadSet, Models
from serve_app.stages.retrieval.tables import RetrievalTables
from serve_app.vocabulary import Surface

__all__ = ["BuildReport", "build_release"]

_LOG_TABLES = ("events", "requests", "candidates", "decisions", "users")


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did: the release's folder and version, wall seconds by step, peak resident bytes, rows left out."""

    folder: Path
    version: str
    seconds: dict[str, float]
    peak_bytes: int
    extracted: dict[str, int]
    left_out: dict[str, str]
    metrics: Figures


def build_release(
    data: Path,
    *,
    settings: BuildSettings,
    runner: Runner,
    created_at: int,
    observer: Observer | None = None,
    detail: Callable[[str], None] | None = None,
) -> BuildReport:
    """Build a release of data folder `data` and return what was done; it is not promoted.

    created_at: i64 microseconds UTC for the manifest. observer, detail: told of steps and of what happens inside them.
    Same log, catalogue, settings and code give the same files. InvalidInput: no catalogue, or one without items.
    """
    seconds: dict[str, float] = {}
    with PeakMemory() as memory:
        workspace = Workspace(data / "releases" / ".build", _timed(observer or (lambda _name, _state: None), seconds))
        build = Steps(data, settings, runner, workspace, detail or (lambda _text: None))
        models, figures = _models(build)
        staging = _stage(build, models, figures)
        notes = _notes(build, models, figures, created_at)
        folder = write_release(staging, data / "releases", notes)
        workspace.prune()
    extracted = json.loads((build.extract_folder / "counts.json").read_text())
    version = read_manifest(folder).version
    return BuildReport(folder, version, seconds, memory.peak_bytes, extracted, dict(build.left_out), figures)


def _timed(observer: Observer, seconds: dict[str, float]) -> Observer:
    started: dict[str, float] = {}

    def observe(name: str, state: str) -> None:
        observer(name, state)
        if state == "running":
            started[name] = time.monotonic()
        elif state == "done":
            seconds[name] = time.monotonic() - started[name]

    return observe


def _models(build: Steps) -> tuple[Models, Figures]:
    """Heads of every surface the log allows, with their figures."""
    sets: dict[Surface, HeadSet] = {}
    figures: Figures = {}
    for surface in ITEM_SURFACES:
        heads, fallback = build.heads(surface)
        if fallback:
            build.left_out[f"{surface.name} heads"] = f"{fallback}; ranked in retrieval's order"
        sets[surface] = heads
        figures |= build.figures(surface, heads)
    for surface, table in ((Surface.widgets, build.rows.widgets), (Surface.notification, build.rows.campaigns)):
        if len(table) == 0:
            build.left_out[surface.name] = "the catalogue has none"
            continue
        found = build.decision_heads(surface)
        build.left_out |= found.left_out
        figures |= found.figures
        if found.heads is not None:
            sets[surface] = found.heads
    if len(build.rows.reviews) == 0:
        build.left_out["reviews"] = "the catalogue has none"
    else:
        folder, sets[Surface.reviews], why = build.reviews
        figures |= load_figures(folder)
        if why:
            build.left_out["review_model"] = why
    return Models(sets), figures


def _stage(build: Steps, models: Models, figures: Figures) -> Path:
    """Put the parts together in a folder beside the releases."""
    staging = build.data / "releases" / f".staging-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    shutil.copytree(build.catalogue_folder / "catalogue", staging / "catalogue")
    shutil.copytree(build.tables("all", lambda spans: spans.end), staging / "retrieval")
    end = build.spans.end
    tables = build.history.timelines.tables(build.rows.item_hashes, build.rows.user_hashes, end)
    for table in (*tables, build.campaigns.table(end), build.widgets.table(end)):
        table.save(staging / "features" / table.entity.value)
    if len(build.rows.reviews):
        folder, _, _ = build.reviews
        shutil.copytree(folder / "table", staging / "features" / "review")
        if (folder / "model").is_dir():
            shutil.copytree(folder / "model", staging / "review_model")
    build.history.sequences.now(len(build.rows.users), end).save(staging / "histories")
    models.save(staging / "models")
    index = index_recall(RetrievalTables.load(staging / "retrieval"), build.settings.seed)
    figures["index"] = {"recall@100": index}
    return staging


def _notes(build: Steps, models: Models, figures: Figures, created_at: int) -> ReleaseNotes:
    log = build.log
    return ReleaseNotes(
        created_at=created_at,
        lineage=Lineage(
            log_from=int(log.at.min()) if len(log) else None,
            log_to=int(log.known_at.max()) if len(log) else None,
            log_digest=digest_contents(log_files(build.data, _LOG_TABLES)),
            catalogue_digest=digest_contents(sorted((build.data / "catalogue").glob("*.parquet"))),
            code_version=code_version(),
            seed=build.settings.seed,
            settings=build.settings.model_dump(),
        ),
        heads={surface.name: list(heads.names) for surface, heads in models.by_surface.items()},
        features={surface.name: list(heads.features) for surface, heads in models.by_surface.items()},
        left_out=dict(sorted(build.left_out.items())),
        metrics=figures,
    )
