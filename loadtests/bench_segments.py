"""How long segments take: ten conditions of all kinds over a population, with the exact count at every node, and the look-up
of a batch of users on the request path.

One core. Evaluation starts from columns in memory (the event days as `hindcast segment refresh` keeps them), with nothing
computed before: mapping each day's users to rows is in the figure. Run: ``python -m loadtests.bench_segments``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from loadtests.hardware import hardware, hardware_line
from serve_app.policy.document import parse_policy
from serve_app.policy.segment_tree import Segment
from serve_app.segments.evaluate import CountedNode, evaluate
from serve_app.segments.events import DAY_US, DayEvents, EventColumns, EventHistory, group_events
from serve_app.segments.merge import merged_segments
from serve_app.segments.population import Population, Text
from serve_app.segments.shelf import member_bits
from serve_app.segments.store import load_current, publish_set
from serve_app.vocabulary import EventType

DAYS, ITEMS, CATEGORIES = 60, 100_000, 40
AS_OF_DAY = 20_000
AS_OF = AS_OF_DAY * DAY_US + 13 * 3_600_000_000  # inside a day, so that both ends of a window cut one
_MIX = {EventType.view: 0.7, EventType.click: 0.18, EventType.add_to_cart: 0.07, EventType.conversion: 0.05}

CONDITIONS: list[dict[str, Any]] = [
    {"kind": "attribute", "name": "region", "op": "==", "value": "KR"},
    {"kind": "membership", "name": "zone", "values": ["Asia/Seoul", "America/New_York"]},
    {"kind": "attribute", "name": "consent_ad", "op": "==", "value": True},
    {"kind": "attribute", "name": "age_days", "op": ">=", "value": 30},
    {"kind": "event_count", "event": "view", "within_days": 30, "op": ">=", "count": 3},
    {"kind": "event_count", "event": "conversion", "within_days": 60, "op": "==", "count": 0},
    {"kind": "event_count", "event": "view", "within_days": 14, "op": ">=", "count": 1, "category": "category-7"},
    {"kind": "last_event", "event": "click", "op": "<", "days_ago": 7},
    {"kind": "last_event", "event": "add_to_cart", "op": ">", "days_ago": 14.5},
    {"kind": "bucket", "salt": "bench", "percent": 33.33},
]


def segments_of_bench() -> tuple[Segment, ...]:
    """The ten conditions under and, or and not, and a segment that refers to another."""
    a, b, c, d, e, f, g, h, i, j = CONDITIONS
    active = {"kind": "and", "of": [a, b, c, {"kind": "or", "of": [e, g, h]}]}
    lapsed = {"kind": "and", "of": [d, {"kind": "not", "of": {"kind": "segment", "id": "active"}}, f, i, j]}
    body = {"name": "bench", "segments": [{"id": "active", "where": active}, {"id": "lapsed", "where": lapsed}]}
    return parse_policy(body).segments


def make_population(users: int, rng: np.random.Generator) -> Population:
    """Users with attributes, a twentieth of each unknown."""
    hashes = np.unique(rng.integers(1, 2**64 - 1, users + users // 1000, np.uint64))[:users]
    zones = ("America/New_York", "Asia/Seoul", "Europe/Berlin", "Pacific/Auckland")
    regions = ("DE", "JP", "KR", "NZ", "US")
    return Population(
        hashes,
        {
            "zone": Text(rng.integers(-1, len(zones), users).astype(np.int32), zones),
            "region": Text(rng.integers(-1, len(regions), users).astype(np.int32), regions),
        },
        {"consent_ad": rng.random(users) < 0.6},
        AS_OF - rng.integers(0, 400 * DAY_US, users),
    )


def make_days(population: Population, events: int, rng: np.random.Generator) -> tuple[list[tuple[int, DayEvents]], float]:
    """`events` events over the days, some users far more active than others; seconds to group one day, on average."""
    users, per_day = population.users, events // DAYS
    items = np.unique(rng.integers(1, 2**63, ITEMS, np.int64)).astype(np.uint64)
    days, took = [], 0.0
    for day in range(AS_OF_DAY - DAYS + 1, AS_OF_DAY + 1):
        columns = EventColumns(
            user=users[(len(users) * rng.random(per_day) ** 1.5).astype(np.int64)],
            type=rng.choice(np.array(list(_MIX), np.int8), per_day, p=list(_MIX.values())),
            at=day * DAY_US + rng.integers(0, DAY_US, per_day),
            event_id=rng.integers(0, 2**63, per_day).astype(np.uint64),
            ingested_at=np.zeros(per_day, np.int64),
            item=items[rng.integers(0, len(items), per_day)],
        )
        began = time.perf_counter()
        days.append((day, group_events(columns)))
        took += time.perf_counter() - began
    return days, took / DAYS


def make_history(population: Population, days: list[tuple[int, DayEvents]]) -> EventHistory:
    """The days over the population, nothing computed yet."""
    items = np.unique(np.concatenate([one.items for _, one in days]))
    category = (items % np.uint64(CATEGORIES)).astype(np.int32)
    return EventHistory(population.users, days, items, category, [f"category-{one}" for one in range(CATEGORIES)])


def _best_and_median(function: Callable[[], object], rounds: int) -> dict[str, float]:
    taken, used = [], []
    for _ in range(rounds):
        began, cpu = time.perf_counter(), time.process_time()
        function()
        taken.append(time.perf_counter() - began)
        used.append(time.process_time() - cpu)
    return {
        "best_s": min(taken), "median_s": float(np.median(taken)), "worst_s": max(taken),
        "cpu_median_s": float(np.median(used)),
    }  # fmt: skip


def measure_lookup(population: Population, segments: tuple[Segment, ...], history: EventHistory) -> list[dict[str, Any]]:
    """Look-ups in a published set, for batches and numbers of segments; nanoseconds per user (best of many)."""
    merged, ids = merged_segments([segments])
    found = evaluate(merged, population, history, AS_OF).members
    first = next(iter(found.values()))
    many = {f"{place:020x}": first for place in range(64)}
    rng, results = np.random.default_rng(1), []
    with tempfile.TemporaryDirectory() as folder:
        publish_set(Path(folder), population.users, many, {key: ["x"] for key in many}, computed_at=AS_OF)
        began = time.perf_counter()
        current = load_current(Path(folder))
        loaded_s = time.perf_counter() - began
        for bits in (3, 64):
            for batch in (1, 100, 10_000):
                users = population.users[rng.integers(0, len(population), batch)]
                digests = tuple(many)[:bits]
                took = _best_and_median(lambda u=users, d=digests: member_bits(current, d, u), 200 if batch < 1000 else 40)  # type: ignore[misc]
                results.append(
                    {
                        "segments": bits,
                        "batch": batch,
                        "ns_per_user": took["median_s"] / batch * 1e9,
                        "best_ns_per_user": took["best_s"] / batch * 1e9,
                        "cpu_ns_per_user": took["cpu_median_s"] / batch * 1e9,
                        "load_64_s": loaded_s,
                    }
                )
    assert ids
    return results


def main(
    users: Annotated[int, typer.Option(min=1_000, help="Users of the population.")] = 1_000_000,
    events: Annotated[int, typer.Option(min=DAYS, help="Events of all days.")] = 20_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Evaluations measured.")] = 5,
    limit: Annotated[float, typer.Option(help="Fail above this many seconds (median) for one evaluation.")] = 2.0,
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")] = None,
) -> None:
    """Measure evaluation and look-up."""
    console = Console()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = np.random.default_rng(0)
    with console.status(f"{users:,} users, {events:,} events in {DAYS} days"):
        population = make_population(users, rng)
        days, day_s = make_days(population, events, rng)
    segments = segments_of_bench()
    evaluate(segments, population, make_history(population, days[-1:]), AS_OF)  # compiles
    before = _peak_mb()
    with console.status("evaluating"):
        took = _best_and_median(lambda: evaluate(segments, population, make_history(population, days), AS_OF), rounds)
    grown = _peak_mb() - before
    history = make_history(population, days)
    trees = evaluate(segments, population, history, AS_OF).trees
    report = {
        "hardware": hardware(), "users": users, "events": events, "days": DAYS, "conditions": len(CONDITIONS),
        "nodes": sum(_nodes(one) for one in trees.values()), "limit_s": limit, "evaluate": took, "group_one_day_s": day_s,
        "event_bytes": sum(getattr(one, name).nbytes for _, one in days for name in DayEvents.__slots__),
        "peak_rss_mb": _peak_mb(), "peak_grown_by_evaluation_mb": grown,
        "lookup": measure_lookup(population, segments, history),
    }  # fmt: skip
    _print(console, report, trees)
    if out is not None:
        out.write_text(json.dumps(report, indent=1))
    if min(took["median_s"], took["cpu_median_s"]) > limit:  # on a busy machine the processor's time is the honest one
        console.print(f"[red]one evaluation takes longer than {limit:g} s[/]")
        sys.exit(1)


def _nodes(tree: CountedNode) -> int:
    return 1 + sum(_nodes(one) for one in tree.children)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _print(console: Console, report: Mapping[str, Any], trees: Mapping[str, CountedNode]) -> None:
    table = Table("node", "count", title=f"{report['users']:,} users, {report['events']:,} events, one core")
    for name, tree in trees.items():
        table.add_row(f"[b]{name}[/]", "")
        _rows(table, tree, 1)
    console.print(table)
    took = report["evaluate"]
    console.print(
        f"{report['conditions']} conditions, {report['nodes']} nodes: median {took['median_s']:.3f} s "
        f"(best {took['best_s']:.3f}, worst {took['worst_s']:.3f}, processor {took['cpu_median_s']:.3f})"
    )
    console.print(
        f"memory +{report['peak_grown_by_evaluation_mb']:.0f} MB, events {report['event_bytes'] / 1e6:.0f} MB; "
        f"one day grouped in {report['group_one_day_s']:.2f} s"
    )
    table = Table("segments", "batch", "ns per user", "best", "processor", title="look-up")
    figures = ("ns_per_user", "best_ns_per_user", "cpu_ns_per_user")
    for one in report["lookup"]:
        table.add_row(str(one["segments"]), f"{one['batch']:,}", *(f"{one[key]:,.0f}" for key in figures))
    console.print(table)
    console.print(hardware_line(report))


def _rows(table: Table, tree: CountedNode, depth: int) -> None:
    table.add_row("  " * depth + tree.words, f"{tree.count:,}")
    for one in tree.children:
        _rows(table, one, depth + 1)


if __name__ == "__main__":
    typer.run(main)
