"""The honesty benchmark: do the intervals cover the truth as often as they say?

``python -m simulators.estimators.coverage`` runs 2,000 small worlds from a fixed seed list, each with fresh users: a world
of choices (IPS to rejection replay, against a closed form) and a world of frequency (cells, and per-decision IPS beside it,
against the closed loop). It counts how often 95 % intervals hold the true value: user-clustered ones among all
worlds and among those not refused, and row-level ones, which pretend that rows are independent. Policies without overlap
must be refused every time. Results go to a JSON file; ``--plot`` draws them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from simulators.estimators import (
    DM,
    DR,
    IPS,
    LOGGED,
    SNDR,
    SNIPS,
    Cells,
    EstimateSettings,
    Per,
    RejectionReplay,
    Standing,
    Suite,
    cap_worlds,
    choice_worlds,
)
from simulators.estimators.cap_worlds import CAP_WORLDS, CapWorld, cap_rows, true_epoch
from simulators.estimators.choice_worlds import CHOICE_WORLDS, ChoiceWorld, true_value, world_rows

__all__ = ["Outcome", "Summary", "refused_without_overlap", "run_worlds", "summary_of", "world_outcomes"]

_TARGET = ["target"]
_SETTINGS = EstimateSettings()


@dataclass(frozen=True, slots=True)
class Outcome:
    """One interval in one world: where it stood to the truth. half_width, error of the estimate; design_effect: variance of
    the clustered over the row-level interval (choice worlds)."""

    world: str
    seed: int
    estimator: str
    metric: str
    covered: bool
    refused: bool
    error: float
    half_width: float
    design_effect: float = 1.0


@dataclass(frozen=True, slots=True)
class Summary:
    """Coverage of one estimator over worlds: among all, among those not refused (NaN: none), with their numbers; bias in
    half-widths; mean design effect."""

    estimator: str
    metric: str
    world: str
    worlds: int
    coverage: float
    kept: int
    coverage_kept: float
    bias_in_half_widths: float
    design_effect: float


def world_outcomes(seed: int) -> list[Outcome]:
    """Every interval of one seed's two worlds; which worlds follows from the seed."""
    return [
        *_choice_outcomes(CHOICE_WORLDS[seed % len(CHOICE_WORLDS)], seed),
        *_cap_outcomes(CAP_WORLDS[seed % len(CAP_WORLDS)], seed),
    ]


def _choice_outcomes(world: ChoiceWorld, seed: int) -> Iterator[Outcome]:
    metrics = choice_worlds.METRICS
    rows = world_rows(world, seed)
    plain = [kind(_TARGET, metrics) for kind in (IPS, SNIPS, DR, SNDR, DM)]
    suite = Suite([*plain, RejectionReplay(_TARGET, metrics, bound=world.largest_weight())])
    suite.update(rows)
    alone = IPS(_TARGET, metrics)
    alone.update(replace(rows, user=np.arange(len(rows), dtype=np.uint64)))
    truth, gain = true_value(world), true_value(world) - true_value(world, world.logged())
    for metric in metrics:
        per_row, by_row = alone.interval("target", metric, Per.decision)
        clustered = suite["ips"].interval("target", metric, Per.decision)[1]
        effect = (clustered.half_width / by_row.half_width) ** 2
        for label in suite.labels:
            refused = suite.verdict(label, "target", metric, _SETTINGS).standing is Standing.refused
            found = [(label, truth, *suite[label].interval("target", metric, Per.decision))]
            if label == "ips":
                found.append(("ips by rows", truth, per_row, by_row))
            if label in ("snips", "dr"):
                paired = suite[label].interval("target", metric, Per.decision, versus=LOGGED)
                found.append((f"{label}, difference", gain, *paired))
            for name, true, value, interval in found:
                yield Outcome(world.name, seed, name, metric, interval.covers(true), refused, value - true,
                              interval.half_width, effect)  # fmt: skip


def _cap_outcomes(world: CapWorld, seed: int) -> Iterator[Outcome]:
    metrics = cap_worlds.METRICS
    rows = cap_rows(world, seed)
    suite = Suite([Cells(_TARGET, metrics, cell_p=world.cell_p), IPS(_TARGET, metrics)])
    suite.update(rows)
    truth, _ = true_epoch(world)
    for metric in metrics:
        for label, name, scale in (("cells", "cells", 1.0), ("ips", "myopic ips", 1.0 / world.epochs)):
            per = Per.decision if label == "cells" else Per.user
            value, interval = suite[label].interval("target", metric, per)
            refused = suite.verdict(label, "target", metric, _SETTINGS).standing is Standing.refused
            covered = interval.low * scale <= truth[metric] <= interval.high * scale
            yield Outcome(world.name, seed, name, metric, covered, refused, value * scale - truth[metric],
                          interval.half_width * scale)  # fmt: skip


def refused_without_overlap(seed: int) -> bool:
    """Is a policy that does what the log never did refused, by every estimator and metric, in this seed's world?"""
    world = replace(CHOICE_WORLDS[seed % 4], overlap=False)
    suite = Suite(
        [IPS(_TARGET, choice_worlds.METRICS), SNIPS(_TARGET, choice_worlds.METRICS), DR(_TARGET, choice_worlds.METRICS)]
    )
    suite.update(world_rows(world, seed))
    return all(
        suite.verdict(label, "target", metric, _SETTINGS).standing is Standing.refused
        for label in suite.labels
        for metric in suite.metrics
    )


def run_worlds(seeds: Sequence[int], workers: int = 1, *, quiet: bool = True) -> list[Outcome]:
    """All outcomes of the seeds, in their order."""
    for world in CAP_WORLDS:  # the closed loop once, before processes part
        true_epoch(world)
    if workers == 1:
        return [one for seed in track(seeds, "worlds", disable=quiet) for one in world_outcomes(seed)]
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        each = pool.map(world_outcomes, seeds, chunksize=20)
        return [one for found in track(each, "worlds", len(seeds), disable=quiet) for one in found]


def summary_of(outcomes: Sequence[Outcome], *, by_world: bool) -> list[Summary]:
    """Per estimator and metric, over all worlds or per kind of world."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault((one.estimator, one.metric, one.world if by_world else "all"), []).append(one)
    out = []
    for (estimator, metric, world), found in groups.items():
        kept = [one.covered for one in found if not one.refused]
        covered, covered_kept = np.mean([one.covered for one in found]), np.mean(kept) if kept else np.nan
        bias = np.mean([one.error for one in found]) / np.mean([one.half_width for one in found])
        effect = np.mean([one.design_effect for one in found])
        numbers = (len(found), float(covered), len(kept), float(covered_kept), float(bias), float(effect))
        out.append(Summary(estimator, metric, world, *numbers))
    return out


def clustered_worlds(outcomes: Sequence[Outcome]) -> list[Summary]:
    """Clustered and row-level IPS, pooled over the kinds of worlds whose mean design effect is 2 or more."""
    names = {one.world for one in summary_of(outcomes, by_world=True) if one.estimator == "ips" and one.design_effect >= 2}
    mine = [one for one in outcomes if one.world in names and one.estimator in ("ips", "ips by rows")]
    return summary_of(mine, by_world=False)


def _table(title: str, found: Sequence[Summary]) -> Table:
    table = Table(title=title)
    for name in ("estimator", "metric", "world", "worlds", "coverage", "not refused", "their coverage", "bias / half-width",
                 "design effect"):  # fmt: skip
        table.add_column(name, justify="left" if name in ("estimator", "metric", "world") else "right")
    for one in found:
        table.add_row(
            one.estimator, one.metric, one.world, str(one.worlds), f"{one.coverage:.3f}", str(one.kept),
            f"{one.coverage_kept:.3f}", f"{one.bias_in_half_widths:+.2f}", f"{one.design_effect:.1f}",
        )  # fmt: skip
    return table


def main(
    worlds: Annotated[int, typer.Option(min=8, help="How many worlds; seeds are 1 to this.")] = 2000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the results go (JSON).")] = Path("bench-results/coverage.json"),
    plot: Annotated[Path | None, typer.Option(help="Draw them into this file (.svg or .png).")] = None,
) -> None:
    """Coverage of 95 % intervals in small worlds whose true value is known."""
    start, console = time.perf_counter(), Console()
    outcomes = run_worlds(range(1, worlds + 1), workers, quiet=False)
    over, each = summary_of(outcomes, by_world=False), summary_of(outcomes, by_world=True)
    alike = clustered_worlds(outcomes)
    console.print(_table("All worlds", over), _table("Worlds with a design effect of 2 or more", alike))
    console.print(_table("By kind of world, clicks", [one for one in each if one.metric == "click"]))
    silent = [refused_without_overlap(seed) for seed in range(1, max(8, worlds // 10) + 1)]
    console.print(f"policies without overlap refused: {sum(silent)} of {len(silent)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "design_effect_2": [asdict(one) for one in alike],
        "all": [asdict(one) for one in over],
        "by_world": [asdict(one) for one in each],
    }
    extra = {"worlds": worlds, "no_overlap_refused": [sum(silent), len(silent)], "seconds": time.perf_counter() - start}
    out.write_text(json.dumps({**extra, **found}, indent=1))
    if plot is not None:
        from simulators.estimators.coverage_plot import draw

        draw(each, plot)
    console.print(f"{extra['seconds']:.0f} s; results in {out}")


if __name__ == "__main__":
    typer.run(main)
