"""`hindcast replay`: what logged traffic would have been under another policy."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from simulators.replay.shard import Shard
    from simulators.replay.spec import ReplaySpec

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `replay`."""
    app.command("replay")(replay)


def replay(
    policy: Annotated[list[str], typer.Option(help="FILE or revision to judge; may be given several times")],
    out: Annotated[Path, typer.Option(help="folder for parts and results", file_okay=False)],
    data: Annotated[Path, typer.Option("--log", "--data", envvar="HINDCAST_DATA", help="data folder with the log")] = Path(
        "data"
    ),
    baseline: Annotated[str, typer.Option(help="FILE of the policy the log was written under, if not in DATA")] = "",
    start: Annotated[str, typer.Option("--from", help="first moment that counts, as 2026-10-19 or with a time (UTC)")] = "",
    end: Annotated[str, typer.Option("--to", help="first moment that no longer counts")] = "",
    start_mode: Annotated[
        str, typer.Option("--start", help="switch: begins at --from on logged histories; steady")
    ] = "switch",
    guardrails: Annotated[Path | None, typer.Option(help="FILE of bounds on what may change", dir_okay=False)] = None,
    allow_mismatch: Annotated[bool, typer.Option(help="go on though the log's own policy does not reproduce it")] = False,
    address: Annotated[str, typer.Option(help="of a Ray cluster; default: this machine")] = "",
    in_process: Annotated[bool, typer.Option(help="without Ray, one group after the other")] = False,
) -> None:
    """Replay the log's notification decisions under other policies, with the very gates that serve.

    Exit codes: 0 kept, 10 a guardrail broken, 11 inconclusive, 12 refused, 13 the log's own policy does not reproduce it.
    """
    from serve_app.policy.document import load_policy
    from simulators.replay.asking import EVER, named_policies, spec_for
    from simulators.report.guardrails import load_guardrails
    from simulators.report.write import write_report

    if start_mode not in ("switch", "steady"):
        raise typer.BadParameter("one of switch, steady", param_hint="--start")
    given = load_policy(baseline) if baseline else None
    window = _moment(start, -EVER), _moment(end, EVER)
    spec = spec_for(
        data, named_policies(data, policy), baseline=given, start=window[0], end=window[1], steady=start_mode == "steady"
    )
    rails = load_guardrails(guardrails) if guardrails is not None else {}
    result = _run(spec, out, address, in_process)
    _show(result, spec)
    content = write_report(result, spec, out, rails, allow_mismatch=allow_mismatch)
    typer.echo(f"report: {out / 'report.html'}")
    verdict = content["verdict"]
    for one in verdict["guardrails"]:
        typer.echo(f"guardrail {one['metric']} of {one['policy']}: {one['outcome']} {one['why']}".rstrip())
    if verdict["exit_code"]:
        typer.echo(f"verdict: {verdict['outcome']}", err=True)
        raise typer.Exit(verdict["exit_code"])


def _moment(text: str, otherwise: int) -> int:
    if not text:
        return otherwise
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no date", param_hint="--from/--to") from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return round(at.timestamp()) * 1_000_000


def _run(spec: ReplaySpec, out: Path, address: str, in_process: bool) -> Shard:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from simulators.replay.job import run_replay

    if not in_process:
        import ray

        ray.init(address=address or None, log_to_driver=False, configure_logging=True, logging_level="error")
        ray.data.DataContext.get_current().enable_progress_bars = False
    look = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("groups"),
        TimeElapsedColumn(),
    )
    with Progress(*look, console=Console(stderr=True)) as shown:
        task = shown.add_task("replaying", total=None)

        def progress(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)

        return run_replay(spec, out, progress=progress, local=in_process)


def _show(result: Shard, spec: ReplaySpec) -> None:
    from rich.console import Console
    from rich.table import Table

    from simulators.replay.summary import estimate_lines, summary

    parity = result.parity
    console = Console()
    console.print(f"parity: {parity.same:,} of {parity.requests:,} logged decisions reproduced ({parity.share:.3%})")
    for one in parity.examples[:5]:
        console.print(f"  user {one.user:016x} request {one.request_id:016x}: {one.column} {one.logged} -> {one.replayed}")
    table = Table("", "logged", *(one.name for one in spec.targets))
    for row in summary(result.counts, [one.name for one in spec.targets]):
        table.add_row(*row)
    console.print(table)
    estimates = Table("metric a user", "estimator", *(one.name for one in spec.targets), caption="difference from the log")
    for row in estimate_lines(result.suite, [one.name for one in spec.targets]):
        estimates.add_row(*row)
    console.print(estimates)
