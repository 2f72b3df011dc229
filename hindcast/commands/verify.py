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
    out: Annotated[Path | None, typer.Option(help="also write the comparison as JSON to this FILE", dir_okay=False)] = None,
) -> None:
    """Compare a forecast with a later log decided under the target: sends, clicks, conversions, revenue, opt-outs per user
    and day. Exit code 10 where a forecast said to be usable did not come true.
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
    _show(forecast, found, checks)
    if out is not None:
        said = {"policy": forecast["policy"], "revision": forecast["revision"], "users": found.users, "days": found.days}
        rows = [asdict(one) for one in checks]
        write_text_atomically(out, orjson.dumps({**said, "checks": rows}, option=orjson.OPT_INDENT_2).decode())
    if any(one.standing == "usable" and not one.matched for one in checks):
        raise typer.Exit(10)


def _show(forecast: dict[str, Any], found: Observed, checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "per user and day", "estimator", "trust", "forecast", "happened", "", title=f"{forecast['policy']} as promoted",
        caption=f"{found.users:,} users, {found.days:g} days; 95 % over users. Other days may be other days.",
    )  # fmt: skip
    for one in checks:
        said = f"{one.forecast:.4g} [{one.forecast_low:.4g}, {one.forecast_high:.4g}]"
        came = f"{one.found:.4g} [{one.found_low:.4g}, {one.found_high:.4g}]"
        table.add_row(one.metric, one.estimator, one.standing, said, came, "matched" if one.matched else "MISSED")
    Console().print(table)
    matched = sum(one.matched for one in checks)
    typer.echo(f"{matched} of {len(checks)} forecasts matched")
