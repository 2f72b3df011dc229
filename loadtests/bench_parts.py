"""Two parts beside others: 100 entities x 50 features against Feast's local online store, and ScaNN as a release uses it
against exact search, hnswlib and faiss, at equal recall.

Others run in the peers' environment (`make bench-peers`); without it they are left out.
Run: ``python -m loadtests.bench_parts --out bench-results``.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import altair as alt
import numpy as np
import numpy.typing as npt
import pandas as pd
import typer
import vl_convert
from rich.console import Console

import loadtests.peers
from loadtests.bench_chain import NOW, build_parts, request_batch
from loadtests.hardware import hardware, hardware_line, write_report
from loadtests.peers.ann import scored
from serve_app.stages.features import Entity, Features, FeatureSpec, FeatureTable, ItemFacts
from serve_app.stages.features.plan import FeaturePlan
from serve_app.stages.retrieval.embeddings import normalise_rows
from serve_app.stages.retrieval.neighbours import ExactNeighbours, build_scann, load_neighbours
from serve_app.vocabulary import Surface

__all__ = ["main", "read_features"]

_PEERS = Path(loadtests.peers.__file__).parent
_DIMENSIONS, _QUERIES, _COUNT = 64, 500, 100
_FEATURE_ITEMS = 5_000


def read_features(entities: int, features: int, rounds: int) -> dict[str, float]:
    """One request with `entities` candidates: look-up, freshness and defaults of `features` item features each."""
    rng = np.random.default_rng(0)
    specs = tuple(FeatureSpec(f"f{n}", Entity.item, max_age_s=86_400) for n in range(features))
    keys = np.arange(_FEATURE_ITEMS, dtype=np.uint64)
    values = rng.normal(size=(_FEATURE_ITEMS, features)).astype(np.float32)
    table = FeatureTable(Entity.item, specs, keys, values, np.full(_FEATURE_ITEMS, NOW, np.int64))
    facts = ItemFacts(np.zeros(_FEATURE_ITEMS, np.int32), np.ones(_FEATURE_ITEMS, np.float32))
    stage = Features({Surface.related: FeaturePlan.compile([one.name for one in specs], specs)}, [table], facts)
    with tempfile.TemporaryDirectory() as folder:
        parts = build_parts(_FEATURE_ITEMS, Path(folder), candidates=entities)
        batches = [parts.retrieval.run(request_batch(parts, 1, seed, entities), parts.context) for seed in range(50)]
        took = []
        for number in range(-20, rounds):
            batch = batches[number % len(batches)]
            began = time.perf_counter()
            made = stage.run(batch, parts.context)
            if number >= 0:
                took.append((time.perf_counter() - began) * 1e6)
    assert made.candidates["features"].shape[1] == features
    return {"p50_us": float(np.percentile(took, 50)), "p99_us": float(np.percentile(took, 99))}


def _peer(python: Path, script: str, *arguments: object) -> Any:
    done = subprocess.run([python, _PEERS / script, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1][:300])
    return json.loads(done.stdout.strip().splitlines()[-1])


def _vectors(items: int) -> npt.NDArray[np.float32]:
    """Clustered, as learned embeddings are."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(items // 200 + 1, _DIMENSIONS))
    return normalise_rows(centres[rng.integers(0, len(centres), items)] + 0.8 * rng.normal(size=(items, _DIMENSIONS)))


def search(items: int, python: Path | None, left_out: dict[str, str]) -> list[dict[str, Any]]:
    """Recall@100 and time of a query, one thread, one query a call."""
    vectors = _vectors(items)
    picked = np.random.default_rng(1).integers(0, items, _QUERIES)
    queries = normalise_rows(vectors[picked] + 0.1 * np.random.default_rng(2).normal(size=(_QUERIES, _DIMENSIONS)))
    exact = ExactNeighbours(vectors)
    truth = exact.search(queries, _COUNT)[0].astype(np.int64)

    def rows_of(index: Any) -> Callable[[Any], Any]:
        return lambda query: index.search(query, _COUNT)[0][0]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        build_scann(vectors, folder / "scann")
        build_s = time.perf_counter() - began
        scann = load_neighbours(vectors, folder / "scann")
        for index in (exact, scann):
            scored(rows_of(index), queries[:20], truth[:20])  # warm
        found = [
            {"name": "ScaNN, as a release builds it", "build_s": build_s, **scored(rows_of(scann), queries, truth)},
            {"name": "exact (our kernel)", "build_s": 0.0, **scored(rows_of(exact), queries[:100], truth[:100])},
        ]
        if python is None:
            left_out["hnswlib, faiss"] = "the peers' environment is not set up: make bench-peers"
            return found
        for array, values in (("vectors", vectors), ("queries", queries), ("truth", truth)):
            np.save(folder / f"{array}.npy", values)
        try:
            found += _peer(python, "ann.py", folder, _COUNT)
        except RuntimeError as error:
            left_out["hnswlib, faiss"] = str(error)
    return found


def main(
    items: Annotated[int, typer.Option(min=5_000, help="Vectors to search.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=20, help="Feature reads measured.")] = 2_000,
    peers: Annotated[Path, typer.Option(help="The peers' environment.")] = Path(".venv-peers"),
    out: Annotated[Path, typer.Option(help="JSON, Markdown and plot go below this folder.")] = Path("bench-results"),
) -> None:
    """Measure, and write parts.json, parts.md, parts.svg."""
    console = Console()
    python = (peers / "bin" / "python").absolute()
    known, left_out = python if python.exists() else None, dict[str, str]()
    report: dict[str, Any] = {"hardware": hardware(), "items": items, "left_out": left_out}
    with console.status("features"):
        report["features"] = [{"name": "Hindcast, in process", **read_features(100, 50, rounds)}]
        if known is None:
            left_out["Feast"] = "the peers' environment is not set up: make bench-peers"
        else:
            try:
                feast = _peer(known, "feast_read.py", 100, 50, min(rounds, 200))
                report["features"].append({"name": f"Feast {feast.pop('version')}, local online store", **feast})
            except RuntimeError as error:
                left_out["Feast"] = str(error)
    with console.status(f"{items:,} vectors"):
        report["search"] = search(items, known, left_out)
    write_report(out, "parts", report, _markdown(report), console)
    (out / "parts.svg").write_text(_plot(report["search"]))


def _markdown(report: dict[str, Any]) -> str:
    lines = ["# Parts beside others", "", hardware_line(report), "",
             "## 100 entities x 50 features", "", "| | p50 us | p99 us |", "|---|---|---|"]  # fmt: skip
    lines += [f"| {one['name']} | {one['p50_us']:,.0f} | {one['p99_us']:,.0f} |" for one in report["features"]]
    if len(report["features"]) == 2:
        ours, theirs = report["features"]
        lines.append(f"\np50: {theirs['p50_us'] / ours['p50_us']:,.0f} times faster (target: 20).")
    lines += [
        "",
        f"## {_COUNT} nearest of {report['items']:,}",
        "",
        "| | recall | p50 us | p99 us | build s |",
        "|---" * 5 + "|",
    ]
    lines += [
        f"| {one['name']} | {one['recall']:.4f} | {one['p50_us']:,.0f} | {one['p99_us']:,.0f} | {one['build_s']:.1f} |"
        for one in report["search"]
    ]
    lines += [f"\nLeft out: {name}: {why}" for name, why in report["left_out"].items()]
    return "\n".join(lines) + "\n"


def _plot(rows: list[dict[str, Any]]) -> str:
    frame = pd.DataFrame([{**row, "library": row["name"].split(" ")[0].strip(",")} for row in rows])
    chart = alt.Chart(frame).mark_point(filled=True, size=80).encode(
        x=alt.X("recall:Q", scale=alt.Scale(zero=False)),
        y=alt.Y("p50_us:Q", scale=alt.Scale(type="log"), title="p50 us a query"),
        color=alt.Color("library:N", title=None),
    ).properties(width=420, height=280)  # fmt: skip
    text: str = vl_convert.vegalite_to_svg(chart.to_json())
    return text


if __name__ == "__main__":
    typer.run(main)
