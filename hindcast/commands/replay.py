"""`hindcast replay`: what logged traffic would have been under another policy."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulators.replay.shard import Shard
    from simulators.replay.spec import ReplaySpec
    from simulators.replay.sweep import SweepPlan

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `replay`."""
    app.command("replay")(replay)


def replay(
    ctx: typer.Context,
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
    sweep: Annotated[
        Path | None, typer.Option(help="FILE of settings to vary over the one --policy; draws the frontier", dir_okay=False)
    ] = None,
    attribution_hours: Annotated[float, typer.Option(min=0.1, help="how long after a decision events count for it")] = 24.0,
    outcome_days: Annotated[float, typer.Option(min=0.1, help="holdouts: how long users' outcomes count")] = 7.0,
    margin: Annotated[float, typer.Option(min=0, help="net value: share of revenue that is margin")] = 1.0,
    opt_out_cost: Annotated[
        float, typer.Option(min=0, help="net value: what an opt-out costs, in revenue's currency")
    ] = 0.0,
    simulated: Annotated[
        Path | None, typer.Option(help="FILE of `hindcast simulate --out`, to show beside the volume", dir_okay=False)
    ] = None,
    allow_mismatch: Annotated[bool, typer.Option(help="go on though the log's own policy does not reproduce it")] = False,
    estimators: Annotated[
        str, typer.Option(help="quick (ips, snips, cells), full (also an outcome model, bootstrap, roll-out), or names")
    ] = "full",
    reward: Annotated[
        str,
        typer.Option(help="metric `reward`, as click=1,conversion=20,opt_out=-50; default: the logging policy's weights"),
    ] = "",
    surface: Annotated[
        list[str] | None,
        typer.Option(help="notification (default), related, gateway, widgets, reviews or all; may be given several times"),
    ] = None,
    release: Annotated[str, typer.Option(help="score candidates anew by the models of this release")] = "",
    retrieval: Annotated[bool, typer.Option("--retrieval", help="lists: find candidates anew, too, by --release")] = False,
    segment: Annotated[
        list[str] | None, typer.Option(help="only users in it at decision time count; several: in any of them")
    ] = None,
    volume_only: Annotated[
        bool, typer.Option("--volume-only", help="what would have been sent, and why not; no outcomes, estimates or report")
    ] = False,
    packs: Annotated[
        Path | None, typer.Option(help="folder of what replays keep of the log for each other", file_okay=False)
    ] = None,
    drawings: Annotated[int, typer.Option(min=0, help="lists: drawings a list for IIPS's marginals; 0: without it")] = 0,
    address: Annotated[str, typer.Option(help="of a Ray cluster; default: this machine")] = "",
    in_process: Annotated[bool, typer.Option(help="without Ray, one group after the other")] = False,
) -> None:
    """Replay logged decisions, or lists (--surface), under other policies: the very gates, rankers and selector that serve.

    Exit codes: 0 kept, 10 a guardrail broken, 11 inconclusive, 12 refused, 13 the log's own policy does not reproduce it.
    """
    from hindcast.replaying_lists import finish_lists, leave_without_parity, lists_replayed
    from serve_app.policy.document import load_policy
    from simulators.replay.asking import EVER, estimators_named, named_policies, spec_for
    from simulators.replay.items.spec import surfaces_named
    from simulators.replay.outcomes import with_outcome_model
    from simulators.replay.rewards import reward_weights
    from simulators.replay.sweep import grid, load_sweep
    from simulators.report.effects import Worth
    from simulators.report.guardrails import load_guardrails
    from simulators.report.simulated import load_simulated
    from simulators.report.write import write_report

    if start_mode not in ("switch", "steady"):
        raise typer.BadParameter("one of switch, steady", param_hint="--start")
    documents = named_policies(data, policy)
    notifications, surfaces = surfaces_named(surface or ())
    lists = None
    if surfaces:
        if sweep is not None or (not notifications and (guardrails is not None or simulated is not None)):
            raise typer.BadParameter("is about notifications", param_hint="--sweep, --guardrails or --simulated")
        lists = lists_replayed(
            data, documents, surfaces, out, address=address, in_process=in_process,
            baseline=load_policy(baseline) if baseline else None, start=_moment(start, -EVER), end=_moment(end, EVER),
            attribution_us=round(attribution_hours * 3.6e9), segments=segment or (), release=release, retrieval=retrieval,
            drawings=drawings,
        )  # fmt: skip
        if not notifications:
            finish_lists(*lists, out, allow_mismatch=allow_mismatch, command=_command(ctx))
            return
    plan = load_sweep(sweep) if sweep is not None else None
    if plan is not None:
        if len(documents) != 1 or guardrails is not None or simulated is not None:
            raise typer.BadParameter("takes one --policy, no --guardrails and no --simulated", param_hint="--sweep")
        documents = grid(next(iter(documents.values())), plan)
    if volume_only and (plan is not None or guardrails is not None or simulated is not None):
        raise typer.BadParameter("gives nothing for --sweep, --guardrails or --simulated", param_hint="--volume-only")
    named = () if volume_only else estimators_named("quick" if plan is not None else estimators)
    spec = spec_for(
        data, documents, baseline=load_policy(baseline) if baseline else None, start=_moment(start, -EVER),
        end=_moment(end, EVER), steady=start_mode == "steady", attribution_us=round(attribution_hours * 3.6e9),
        outcome_us=round(outcome_days * 86.4e9), halves=plan is not None,
        estimators=named, reward=reward_weights(reward) if reward else None, release=release, segments=segment or (),
    )  # fmt: skip
    spec = with_outcome_model(spec, out)
    if plan is not None:
        _finish_sweep(_run(spec, out, address, in_process, packs), plan, out, allow_mismatch, _command(ctx))
        return
    if volume_only:
        _finish_volume(_run(spec, out, address, in_process, packs), spec, out, allow_mismatch)
        return
    rails = load_guardrails(guardrails) if guardrails is not None else {}
    model = load_simulated(simulated, list(documents)) if simulated is not None else None
    result = _run(spec, out, address, in_process, packs)
    _show(result, spec)
    content = write_report(
        result, spec, out, rails, allow_mismatch=allow_mismatch, worth=Worth(margin, opt_out_cost), command=_command(ctx),
        simulated=model, lists=lists[0] if lists else (),
    )  # fmt: skip
    _conclude(content, out)
    leave_without_parity(lists[0] if lists else (), allow_mismatch=allow_mismatch)


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


def _command(ctx: typer.Context) -> str:
    """The command as typed, without what does not change the result."""
    words = ["hindcast", "replay"]
    for one in ctx.command.params:
        value, typed = ctx.params.get(str(one.name)), ctx.get_parameter_source(str(one.name))
        if typed is None or typed.name != "COMMANDLINE" or one.name in ("out", "address", "in_process", "packs"):
            continue
        option = one.opts[0]
        if isinstance(value, bool):
            words += [option] if value else []
        else:
            words += [word for each in (value if isinstance(value, list) else [value]) for word in (option, str(each))]
    return f"{shlex.join(words)} --out DIR"


def _finish_sweep(result: Shard, plan: SweepPlan, out: Path, allow_mismatch: bool, command: str) -> None:
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


def _moment(text: str, otherwise: int) -> int:
    if not text:
        return otherwise
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no date", param_hint="--from/--to") from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return round(at.timestamp()) * 1_000_000


def _finish_volume(result: Shard, spec: ReplaySpec, out: Path, allow_mismatch: bool) -> None:
    """Show and write the counts; exit code 13 without parity."""
    from simulators.replay.summary import write_counts

    _show(result, spec)
    typer.echo(f"counts: {write_counts(result.counts, out)}")
    if result.parity.same != result.parity.requests and not allow_mismatch:
        typer.echo("verdict: the log's own policy does not reproduce it", err=True)
        raise typer.Exit(13)


def _run(spec: ReplaySpec, out: Path, address: str, in_process: bool, packs: Path | None) -> Shard:
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

        return run_replay(spec, out, progress=progress, local=in_process, packs=packs)


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
