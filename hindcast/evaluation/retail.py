"""`hindcast evaluate retail`: an invoice log imported, built into a release, and its lists judged on the last fortnight."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["evaluate", "register"]

_SURFACES = ("related", "gateway")
_RIVALS = ("popularity", "co_occurrence")


def register(group: typer.Typer) -> None:
    """Add the subcommand."""
    group.command("retail")(retail_command)


def retail_command(
    source: Annotated[Path, typer.Option("--from", help="Folder with Online Retail, or invoices of the same columns.")],
    out: Annotated[Path | None, typer.Option("--out", help="Also write everything as JSON.", dir_okay=False)] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, max=256, help="Threads of training.")] = 2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Fixes every sample and start vector.")] = 7,
) -> None:
    """Next items of a basket (related) and of a visit (gateway): Recall@20, NDCG@20, MRR@20 with intervals, against the
    best-sellers and co-occurrence. The last 14 days are held out; all lists come from the classes that serve."""
    from rich.console import Console

    console = Console()
    with console.status("importing") as status:
        result = evaluate(source, threads=threads, seed=seed, progress=status.update)
    _print(console, result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
        console.print(f"written: {out}")


def evaluate(
    source: Path, *, threads: int = 2, seed: int = 7, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """All figures, as the JSON holds them: `metrics` by group, rows kept, seconds by phase, peak memory. Raises
    InvalidInput for what cannot be read."""
    from hindcast.importers.online_retail import load
    from hindcast.importers.staging import import_into
    from serve_app.clock import now_us
    from serve_app.release.build.pipeline import build_release
    from serve_app.release.build.runner import LocalRunner
    from serve_app.release.build.settings import BuildSettings

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hindcast-retail-") as scratch:
        data = Path(scratch) / "data"
        import_into(data, lambda: load(source), progress=progress)
        imported = time.monotonic()
        settings = BuildSettings(seed=seed, threads=threads)
        report = build_release(
            data,
            settings=settings,
            runner=LocalRunner(),
            created_at=now_us(),
            observer=lambda name, _state: progress(name),
            detail=progress,
        )
        built = time.monotonic()
        first = _first_answer(report.folder)
    return {
        "data": report.extracted,
        "held_out_days": settings.holdout_days,
        "metrics": {
            group: {name: one.model_dump() for name, one in figures.items()} for group, figures in report.metrics.items()
        },
        "left_out": report.left_out,
        "seconds": {
            "import": imported - began,
            "build": built - imported,
            "first_answer": time.monotonic() - built,
            "steps": report.seconds,
        },
        "first_answer": first,
        "peak_memory_bytes": report.peak_bytes,
        "settings": settings.model_dump(),
    }


def _first_answer(folder: Path) -> list[str]:
    """Titles related to the release's best-seller: opened, verified and asked as a server would."""
    import numpy as np

    from serve_app.batch import Batch, Ragged
    from serve_app.release.load import load_release
    from serve_app.stages.features import COMPUTED, Features, ItemFacts, source_specs
    from serve_app.stages.retrieval.evidence import EVIDENCE
    from serve_app.stages.retrieval.stage import Retrieval
    from serve_app.stages.stage import Context
    from serve_app.vocabulary import Surface

    release = load_release(folder)
    rows, tables = release.catalogue, release.features
    provided = [*(spec for table in tables for spec in table.specs), *COMPUTED, *source_specs(EVIDENCE)]
    plans = release.models.plans(provided)
    none = Ragged.empty(1, np.int32)
    batch = Batch.of_requests(
        request_id=np.ones(1, np.uint64),
        surface=np.full(1, Surface.related, np.int8),
        policy=np.zeros(1, np.int16),
        decided_at=np.full(1, release.manifest.lineage.log_to or 0, np.int64),
        user_row=np.full(1, -1, np.int32),
        region=np.full(1, -1, np.int16),
        anchor=release.retrieval.popular.items[:1].astype(np.int32),
        recents=none,
        bought=none,
        excluded=none,
        categories=none,
        width=np.full(1, 200, np.int32),
    )
    batch = Retrieval(release.retrieval).run(batch, Context())
    batch = batch.select(batch.candidates["drop_reason"] == 0)
    batch = Features(plans, tables, ItemFacts(rows.item_category, rows.item_price)).run(batch, Context())
    heads = release.models[Surface.related]
    score = heads.predict(batch.candidates["features"])[:, heads.names.index("p_convert")]
    best = batch.candidates["item"][np.argsort(-score, kind="stable")[:10]]
    titles: list[str] = rows.items["title"].take(best).to_pylist()
    return titles


def _print(console: Console, result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("surface", "figure", "ours", *(rival.replace("_", "-") for rival in _RIVALS), "ahead of the better one by")
    metrics = result["metrics"]
    for surface in _SURFACES:
        for name in ("recall@20", "ndcg@20", "mrr@20"):
            cells = [_cell(metrics[group][name]) for group in (surface, *(f"{surface}.{rival}" for rival in _RIVALS))]
            table.add_row(surface, name, *cells, _cell(metrics[f"{surface}.ahead"][name]))
    console.print(table)
    console.print(f"index recall@100 against exact search: {metrics['index']['recall@100']['value']:.4f}")
    seconds = result["seconds"]
    console.print(
        f"import {seconds['import']:.1f} s, build {seconds['build']:.1f} s, first answer {seconds['first_answer']:.1f} s; "
        f"peak memory {result['peak_memory_bytes'] / 1e6:,.0f} MB"
    )


def _cell(one: dict[str, Any]) -> str:
    between = "" if one["low"] is None else f" ({one['low']:.4f} to {one['high']:.4f})"
    return f"{one['value']:.4f}{between}"
