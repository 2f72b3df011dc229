"""`hindcast replay`: what logged traffic would have been under another policy."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

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
        typer.Option(
            help="notification (default), related, gateway, widgets, reviews, all (that are logged); several times for more"
        ),
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
    from hindcast.replaying.lists import finish_lists, leave_without_parity, lists_replayed
    from hindcast.replaying.runs import sends_replayed
    from hindcast.replaying.sends import finish_report, finish_sweep, finish_volume
    from serve_app.policy.document import load_policy
    from simulators.replay.asking import EVER, estimators_named, named_policies, spec_for
    from simulators.replay.items.spec import surfaces_named
    from simulators.replay.outcomes import with_outcome_model
    from simulators.replay.rewards import reward_weights
    from simulators.replay.sweep import grid, load_sweep
    from simulators.report.effects import Worth
    from simulators.report.guardrails import load_guardrails
    from simulators.report.simulated import load_simulated

    _refuse_contradictions(
        start_mode, policy, volume_only, {"--sweep": sweep, "--guardrails": guardrails, "--simulated": simulated}
    )
    documents, command = named_policies(data, policy), _command(ctx)
    rails = load_guardrails(guardrails) if guardrails is not None else {}
    model = load_simulated(simulated, list(documents)) if simulated is not None else None
    notifications, surfaces = surfaces_named(surface or ())
    asked: dict[str, Any] = {
        "baseline": load_policy(baseline) if baseline else None, "start": _moment(start, -EVER), "end": _moment(end, EVER),
        "attribution_us": round(attribution_hours * 3.6e9), "release": release, "segments": segment or (),
    }  # fmt: skip
    ray = None if in_process else address
    lists: list[dict[str, Any]] = []
    if surfaces:
        if sweep is not None or (not notifications and (rails or model is not None)):
            raise typer.BadParameter("is about notifications", param_hint="--sweep, --guardrails or --simulated")
        lists, spec_of_lists = lists_replayed(
            data, documents, surfaces, out, ray=ray, **asked, retrieval=retrieval, drawings=drawings,
            if_logged="all" in (surface or ()),
        )  # fmt: skip
        if not notifications:
            finish_lists(lists, spec_of_lists, out, allow_mismatch=allow_mismatch, command=command)
            return
    plan = load_sweep(sweep) if sweep is not None else None
    if plan is not None:
        documents = grid(next(iter(documents.values())), plan)
    spec = spec_for(
        data, documents, **asked, steady=start_mode == "steady", outcome_us=round(outcome_days * 86.4e9),
        halves=plan is not None, reward=reward_weights(reward) if reward else None,
        estimators=() if volume_only else estimators_named("quick" if plan is not None else estimators),
    )  # fmt: skip
    spec = with_outcome_model(spec, out)
    result = sends_replayed(spec, out, packs, ray=ray)
    if plan is not None:
        finish_sweep(result, plan, out, allow_mismatch=allow_mismatch, command=command)
    elif volume_only:
        finish_volume(result, spec, out, allow_mismatch=allow_mismatch)
    else:
        finish_report(
            result, spec, out, rails, allow_mismatch=allow_mismatch, worth=Worth(margin, opt_out_cost), command=command,
            simulated=model, lists=lists,
        )  # fmt: skip
        leave_without_parity(lists, allow_mismatch=allow_mismatch)


def _refuse_contradictions(
    start_mode: str, policies: Sequence[str], volume_only: bool, given: Mapping[str, Path | None]
) -> None:
    """Options that take no effect beside others are errors. given: files by option."""
    if start_mode not in ("switch", "steady"):
        raise typer.BadParameter("one of switch, steady", param_hint="--start")
    named = [option for option, file in given.items() if file is not None]
    if volume_only and named:
        raise typer.BadParameter(f"gives nothing for {', '.join(named)}", param_hint="--volume-only")
    if "--sweep" in named and (len(policies) != 1 or len(named) > 1):
        raise typer.BadParameter("takes one --policy, no --guardrails and no --simulated", param_hint="--sweep")


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


def _moment(text: str, otherwise: int) -> int:
    if not text:
        return otherwise
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no date", param_hint="--from/--to") from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
