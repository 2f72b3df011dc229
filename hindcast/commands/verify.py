"""`hindcast verify`: a replay's forecast against what happened after the promotion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulators.replay.verify import Check, Observed

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `verify`."""
    app.command("verify")(verify)


def verify(
    report: Annotated[Path, typer.Argument(help="report.json of the replay that made the forecast", dir_okay=False)],
    log: Annotated[Path, typer.Option("--log", help="data folder with the later log", file_okay=False)],
    policy: Annotated[str, typer.Option(help="which of the report's targets was promoted, where it has several")] = "",
    every: Annotated[
        bool, typer.Option("--all", help="show every estimator, not only the one at the top of the report")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="also write the comparison as JSON to this FILE", dir_okay=False)] = None,
) -> None:
    """Compare a forecast with a later log decided under the target: sends, clicks, conversions, revenue, opt-outs per user
    and day. Exit code 10 where a forecast that could be acted on (exact or usable, at the top of the report) did not come
    true.
    """
    from dataclasses import asdict

    import orjson
    from rich.console import Console
    from rich.progress import Progress

    from serve_app.release.manifest import write_text_atomically
    from simulators.replay.verify import compare, observed, read_forecast

    forecast = read_forecast(report, policy)
    with Progress(console=Console(stderr=True)) as shown:
        task = shown.add_task("reading", total=None)

        def progress(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)

        found = observed(log, forecast["revision"], round(forecast["attribution_hours"] * 3.6e9), progress=progress)
    checks = compare(forecast, found)
    _show(forecast, found, [one for one in checks if every or one.speaks])
    if out is not None:
        said = {"policy": forecast["policy"], "revision": forecast["revision"], "users": found.users, "days": found.days}
        rows = [asdict(one) for one in checks]
        write_text_atomically(out, orjson.dumps({**said, "checks": rows}, option=orjson.OPT_INDENT_2).decode())
    missed = [one.metric for one in checks if one.speaks and one.standing == "usable" and not one.matched]
    if missed:
        typer.echo(f"MISSED though it could be acted on: {', '.join(missed)}", err=True)
        raise typer.Exit(10)


def _show(forecast: dict[str, Any], found: Observed, checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table

    from simulators.report.words import change, figure, measure

    table = Table(
        "per day", "forecast", "happened", "off by", "trust", "", title=f"{forecast['policy']} as promoted",
        caption=f"{found.users:,} users, {found.days:g} days; 95 % over users. Other days may be other days.",
    )  # fmt: skip
    for one in checks:
        said = measure(one.metric, "user")

        def texts(value: float, low: float, high: float, scale: float = said.scale) -> str:
            return f"{figure(value * scale)} [{figure(low * scale)}, {figure(high * scale)}]"

        table.add_row(
            said.text,
            texts(one.forecast, one.forecast_low, one.forecast_high),
            texts(one.found, one.found_low, one.found_high),
            change(one.found / one.forecast - 1) if one.forecast > 0 else "",
            f"{one.standing}, {one.estimator}",
            "matched" if one.matched else "MISSED",
        )
    Console().print(table)
    typer.echo(
        f"asked per user and day: {figure(forecast['asked'])} in the replayed log, {figure(found.asked)} in the later one"
    )
    matched = sum(one.matched for one in checks)
    typer.echo(f"{matched} of {len(checks)} forecasts matched; by chance about one in twenty is missed")
