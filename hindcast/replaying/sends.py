"""What a replay of send decisions says at its end: volumes, verdict, frontier, and the exit code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from simulators.replay.shard import Shard
    from simulators.replay.spec import ReplaySpec
    from simulators.replay.sweep import SweepPlan
    from simulators.report.guardrails import Guardrail

__all__ = ["finish_report", "finish_sweep", "finish_volume"]


def finish_report(
    result: Shard, spec: ReplaySpec, out: Path, rails: Mapping[str, Guardrail], *, allow_mismatch: bool, **how: Any
) -> None:
    """Show the volume, write the report, say its verdict; its exit code. how: as `simulators.report.write.write_report`."""
    from simulators.report.write import write_report

    _show(result, spec)
    _conclude(write_report(result, spec, out, rails, allow_mismatch=allow_mismatch, **how), out)


def finish_sweep(result: Shard, plan: SweepPlan, out: Path, *, allow_mismatch: bool, command: str) -> None:
    """Choose, write, say; exit code 12 where everything is refused, 13 without parity."""
    from simulators.replay.sweep import chosen, frontier
    from simulators.report.sweep import write_sweep
    from simulators.report.words import figure, measure, span

    parity, unit = result.parity, measure(plan.metric, "user")
    typer.echo(f"parity: {parity.same:,} of {parity.requests:,} logged decisions reproduced ({parity.share:.3%})")
    points = frontier(result, plan)
    best = chosen(points, plan)
    write_sweep(points, best, plan, out, command)
    for one in points:
        judged = one.judge
        said = "–"
        if judged.difference is not None:
            ends = span(judged.low, judged.high, scale=unit.scale)
            said = f"{figure(judged.difference * unit.scale, signed=True)} [{ends}]"
        mark = "*" if one is best else " "
        typer.echo(f"{mark} {one.name}: {figure(judged.sends)} sends per user, {unit.text} {said} {judged.standing}")
    typer.echo(f"frontier: {out / 'sweep.html'}")
    if parity.same != parity.requests and not allow_mismatch:
        raise typer.Exit(13)
    if best is None:
        raise typer.Exit(12)


def finish_volume(result: Shard, spec: ReplaySpec, out: Path, *, allow_mismatch: bool) -> None:
    """Show and write the counts; exit code 13 without parity."""
    from simulators.replay.summary import write_counts

    _show(result, spec)
    typer.echo(f"counts: {write_counts(result.counts, out)}")
    if result.parity.same != result.parity.requests and not allow_mismatch:
        typer.echo("verdict: the log's own policy does not reproduce it", err=True)
        raise typer.Exit(13)


def _conclude(content: Mapping[str, Any], out: Path) -> None:
    """The table at a glance, the guardrails, the exit code."""
    from rich.console import Console
    from rich.table import Table

    from simulators.report.views import glance, missing_line

    said, verdict = glance(content), content["verdict"]
    table = Table("", "the log has", *(row["policy"] for row in said["rows"]), caption="change from the log, 95 %")
    for place, measure in enumerate(said["columns"]):
        cells = [row["cells"][place] for row in said["rows"]]
        words = (_cell(one) for one in cells)
        table.add_row(measure["text"], measure["logged"], *words)
    Console().print(table)
    for one in verdict["guardrails"]:
        typer.echo(f"guardrail {one['metric']} of {one['policy']}: {one['outcome']} {one['why']}".rstrip())
    for one in content["left_out"]["missing"]:
        typer.echo(f"warning: {missing_line(one)}", err=True)
    typer.echo(f"report: {out / 'report.html'}")
    if verdict["exit_code"]:
        typer.echo(f"verdict: {verdict['outcome']}", err=True)
        raise typer.Exit(verdict["exit_code"])


def _cell(one: Mapping[str, str]) -> str:
    """`-1.2 % [...] usable, cells` on two lines."""
    trust = ", ".join(word for word in (one["standing"], one["estimator"]) if word)
    return "\n".join(line for line in (f"{one['value']} {trust}".strip(), one["span"]) if line)


def _show(result: Shard, spec: ReplaySpec) -> None:
    from rich.console import Console
    from rich.table import Table

    from simulators.replay.summary import summary

    parity = result.parity
    console = Console()
    console.print(f"parity: {parity.same:,} of {parity.requests:,} logged decisions reproduced ({parity.share:.3%})")
    for one in parity.examples[:5]:
        console.print(f"  user {one.user:016x} request {one.request_id:016x}: {one.column} {one.logged} -> {one.replayed}")
    table = Table("", "logged", *(one.name for one in spec.targets))
    for row in summary(result.counts, [one.name for one in spec.targets]):
        table.add_row(*row)
    console.print(table)
