"""The part of `hindcast replay` that is about lists: related, gateway, widgets, reviews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from serve_app.policy.document import PolicyDocument

__all__ = ["finish_lists", "leave_without_parity", "lists_replayed"]


def lists_replayed(
    data: Path, documents: Mapping[str, PolicyDocument], surfaces: Sequence[str], out: Path, *, ray: str | None, **how: Any
) -> tuple[list[dict[str, Any]], Any]:
    """(content of the report, one entry a surface; the spec). ray: see `on_ray`. how: as
    `simulators.replay.items.job.lists_spec` takes it."""
    from rich.console import Console

    from hindcast.replaying.runs import on_ray, progress_bar
    from simulators.replay.items.job import lists_spec, run_lists
    from simulators.report.items import lists_content

    spec = lists_spec(data, documents, surfaces, **how)
    on_ray(ray)
    with progress_bar("ranking lists again") as progress:
        result = run_lists(spec, out, local=ray is None, progress=progress)
    content = lists_content(result, spec)
    for one in content:
        _show(one, Console())
    return content, spec


def _show(one: Mapping[str, Any], console: Any) -> None:
    """A surface in a few lines."""
    from rich.table import Table

    parity = one["parity"]
    said = f"{one['surface']} ({one['scores']}): {parity['same']:,} of {parity['requests']:,} logged lists reproduced"
    console.print(f"{said} ({parity['share']:.3%})")
    for each in parity["examples"][:5]:
        where = f"user {each['user']:016x} request {each['request_id']:016x}"
        console.print(f"  {where}: {each['column']} {each['logged']} -> {each['replayed']}")
    table = Table(one["surface"], *(each["policy"] for each in one["targets"]))
    for text, key in (("lists changed", "lists_changed"), ("slots changed", "slots_changed")):
        table.add_row(text, *(f"{each[key]:.1%}" for each in one["targets"]))
    for metric in ("clicks", "carts", "conversions", "revenue"):
        table.add_row(f"{metric} per list", *(_best(one["outcomes"], each["policy"], metric) for each in one["targets"]))
    console.print(table)


def _best(outcomes: Sequence[Mapping[str, Any]], policy: str, metric: str) -> str:
    """RIPS, which assumes least of what is not refused often: people read from the top."""
    for row in outcomes:
        if (row["policy"], row["metric"], row["estimator"]) == (policy, metric, "rips"):
            if "difference" not in row:
                return f"refused: {row['reasons'][0]}"
            return f"{row['difference']:+.4g} [{row['low']:+.4g}, {row['high']:+.4g}] {row['standing']}"
    return ""


def finish_lists(content: list[dict[str, Any]], spec: Any, out: Path, *, allow_mismatch: bool, command: str) -> None:
    """Write the report of lists alone, say where it is; exit code 13 without parity."""
    from simulators.report.items import write_lists_report

    write_lists_report(content, spec, out, waived=allow_mismatch, command=command)
    typer.echo(f"report: {out / 'report.html'}")
    leave_without_parity(content, allow_mismatch=allow_mismatch)


def leave_without_parity(content: Sequence[Mapping[str, Any]], *, allow_mismatch: bool) -> None:
    """Exit code 13 where a logged list did not come out again, unless that is allowed."""
    if any(one["parity"]["same"] != one["parity"]["requests"] for one in content) and not allow_mismatch:
        typer.echo("verdict: parity", err=True)
        raise typer.Exit(13)
