"""`hindcast estimate`: off-policy estimates from rows of any system's log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulators.estimators import Suite

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `estimate`."""
    app.command("estimate")(estimate)


def estimate(
    rows: Annotated[Path, typer.Option(help="Parquet file, or folder of them: one row a decision or slot")],
    propensity: Annotated[str, typer.Option(help="column: logged probability of what was chosen")],
    target: Annotated[
        list[str], typer.Option(help="column with the same choice's probability under a policy, or NAME=COLUMN; repeatable")
    ],
    reward: Annotated[list[str], typer.Option(help="column of what the row brought, or NAME=COLUMN; repeatable")],
    user: Annotated[str, typer.Option(help="column: who; without it every row counts as a user of its own")] = "",
    send: Annotated[str, typer.Option(help="column, 0 or 1: the row could bring something; with --target-send")] = "",
    target_send: Annotated[
        list[str] | None, typer.Option(help="column: probability of that under each --target, in their order")
    ] = None,
    row_id: Annotated[str, typer.Option(help="column: identity of a row; one of a user's alike is kept")] = "",
    log_rate: Annotated[str, typer.Option(help="column: share of such rows that is logged")] = "",
    estimators: Annotated[str, typer.Option(help="names separated by commas")] = "ips,snips",
    versus: Annotated[str, typer.Option(help="differences from this policy; default: what was logged")] = "logged",
    control: Annotated[str, typer.Option(help="the --target that is the policy which logged: an A/A control")] = "",
    grouped: Annotated[bool, typer.Option(help="every user's rows stand next to each other in one file")] = False,
    out: Annotated[Path | None, typer.Option(help="also write the estimates as JSON to this FILE", dir_okay=False)] = None,
    address: Annotated[str, typer.Option(help="of a Ray cluster; default: this machine")] = "",
    in_process: Annotated[bool, typer.Option(help="without Ray, all rows in memory")] = False,
) -> None:
    """Estimate what policies would have brought, from the log of another: values a user and a decision with user-clustered
    intervals, and how far to trust them. Rows that cannot be used are left out and counted. Exit code 12: all refused.
    """
    from simulators.estimators.dataset import RowColumns

    policies, metrics = _named(target), _named(reward)
    sends = dict(zip(policies, target_send or [], strict=False))
    if sends and len(target_send or []) != len(policies):
        raise typer.BadParameter("one for each --target", param_hint="--target-send")
    columns = RowColumns(
        propensity, policies, metrics, user or None, send or None, sends, {}, log_rate or None, row_id or None
    )
    suite = _sums(rows, columns, estimators.split(","), grouped, address, in_process)
    found = list(_answers(suite, versus, control or None))
    _show(suite, found)
    if out is not None:
        _write(out, suite, found)
    if not any("value" in one for one in found):
        raise typer.Exit(12)


def _named(given: Sequence[str]) -> dict[str, str]:
    pairs = [one.partition("=") for one in given]
    return {name: column or name for name, _, column in pairs}


def _sums(rows: Path, columns: Any, estimators: Sequence[str], grouped: bool, address: str, in_process: bool) -> Suite:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from simulators.estimators.dataset import estimate_dataset, estimate_table, parquet_files

    if in_process:
        import pyarrow.dataset

        table = pyarrow.dataset.dataset(parquet_files(rows)).to_table()
        return estimate_table(table, columns, estimators=estimators)
    import ray

    ray.init(address=address or None, log_to_driver=False, configure_logging=True, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("reading")
        return estimate_dataset(
            rows, columns, estimators=estimators, grouped=grouped,
            progress=lambda read: bar.update(task, description=f"{read:,} rows"),
        )  # fmt: skip


def _answers(suite: Suite, versus: str, control: str | None) -> list[dict[str, Any]]:
    from simulators.estimators import Estimated, Per

    out = []
    for one in suite.estimates(per=(Per.user, Per.decision), versus=versus, control=control):
        said = one.subject
        row: dict[str, Any] = {
            "estimator": said.estimator, "policy": said.policy, "metric": said.metric, "per": said.per.value,
            "versus": said.versus, "standing": one.verdict.standing.value, "reasons": list(one.verdict.reasons),
        }  # fmt: skip
        if isinstance(one, Estimated):
            row["value"] = one.value
            if one.interval is not None:
                row |= {"low": one.interval.low, "high": one.interval.high, "interval": one.interval.kind}
        out.append(row)
    return out


def _show(suite: Suite, found: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("policy", "metric", "estimator", "per", "value", "95 % interval", "standing", "why not better")
    for one in found:
        metric = one["metric"] if one["versus"] is None else f"{one['metric']}, minus {one['versus']}"
        value = f"{one['value']:.5g}" if "value" in one else "–"
        span = f"[{one['low']:.5g}, {one['high']:.5g}]" if "low" in one else "–"
        why = "; ".join(one["reasons"])
        table.add_row(one["policy"], metric, one["estimator"], one["per"], value, span, one["standing"], why)
    console.print(table)
    for policy in suite.policies[1:]:
        seen = suite.weights_of(suite.labels[0], policy)
        left_out = ", ".join(f"{count:,} {fault}" for fault, count in seen.excluded.items()) or "none"
        console.print(
            f"{policy}: {seen.rows:,.0f} rows of {seen.users:,} users; effective sample {seen.ess_rows:,.0f} rows, "
            f"{seen.ess_users:,.0f} users; largest weight {seen.largest_weight:.3g}; left out: {left_out}"
        )


def _write(out: Path, suite: Suite, found: Sequence[dict[str, Any]]) -> None:
    from dataclasses import asdict

    import orjson

    from serve_app.release.manifest import write_text_atomically

    weights = {policy: asdict(suite.weights_of(suite.labels[0], policy)) for policy in suite.policies[1:]}
    text = orjson.dumps({"estimates": found, "weights": weights}, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)
    write_text_atomically(out, text.decode())
