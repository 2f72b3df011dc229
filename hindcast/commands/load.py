"""`hindcast load`: load tests whose answers are verified and whose figures are judged."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app.errors import InvalidInput, NotReady

if TYPE_CHECKING:
    from loadtests.scenarios.plan import Plan
    from loadtests.scenarios.slo import Verdict

__all__ = ["register"]

_PACKAGE = "loadtests"
_WIDTH = 130
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}

Data = Annotated[
    Path, typer.Option(help="Data folder of the server: users, items, campaigns, policy.", envvar="HINDCAST_DATA")
]
Out = Annotated[Path, typer.Option(help="Folder for result and report.", file_okay=False)]
Host = Annotated[str, typer.Option(help="The server; default: the one that is up on the data folder.")]
Slo = Annotated[Path | None, typer.Option(help="Objectives (YAML); default: loadtests/slo.", dir_okay=False)]
AudienceFile = Annotated[Path | None, typer.Option(help="From `hindcast load audience`; default: made from --data.")]


def register(app: typer.Typer) -> None:
    """Add `load` and its scenarios."""
    from loadtests.scenarios.names import SCENARIOS, Scenario

    group = typer.Typer(
        no_args_is_help=True,
        help="Load tests over HTTP. Exit codes: 0 all objectives kept, 10 not, 12 the generator was too slow to measure.",
    )
    for scenario, words in SCENARIOS.items():
        make = _replaying if scenario is Scenario.replay else _running
        extra = {"allow_extra_args": True}
        group.command(scenario.value, help=f"{words[0].upper()}{words[1:]}.", context_settings=extra)(make(scenario.value))
    group.command("judge")(judge)
    group.command("audience")(audience)
    group.command("trace")(trace)
    app.add_typer(group, name="load")


def _running(scenario: str) -> Callable[..., None]:
    hour = "1h" if scenario == "soak" else "30s" if scenario == "spike" else "60s"

    def run(
        context: typer.Context,
        rate: Annotated[float | None, typer.Option(help="Open loop: requests a second, at scheduled times.")] = None,
        users: Annotated[int | None, typer.Option(help="Closed loop: users who wait for their answers.")] = None,
        duration: Annotated[str, typer.Option(help="As 90s, 10m, 1h; of a spike: before and after it, together.")] = hour,
        slo: Slo = None,
        out: Out = Path("load-result"),
        data: Data = Path("data"),
        host: Host = "",
        audience: AudienceFile = None,
        shoppers: Annotated[float, typer.Option(min=0, max=1, help="Shoppers' share of the requests.")] = 0.8,
        factor: Annotated[float, typer.Option(help="Of a spike: times the rate.")] = 10,
        spike: Annotated[str, typer.Option(help="Of a spike: how long.")] = "30s",
        arrivals: Annotated[str, typer.Option(help="poisson or even.")] = "poisson",
        think: Annotated[str, typer.Option(help="Mean time between a user's answer and next request.")] = "1s",
        batch_rows: Annotated[int, typer.Option(help="Rows of a sender's batch.")] = 50,
        verify: Annotated[float, typer.Option(min=0, max=1, help="Share of good answers whose content is verified.")] = 1.0,
        connections: Annotated[int, typer.Option(help="Most requests under way, of one worker.")] = 2_000,
        processes: Annotated[int, typer.Option(min=1, help="Worker processes on this machine.")] = 1,
        seed: Annotated[int, typer.Option(min=0)] = 0,
    ) -> None:
        """A scenario. Whatever follows `--` goes to Locust, such as --master --expect-workers 4."""
        url = _url(host, data)
        said = {
            "scenario": scenario, "rate": rate, "users": users, "duration_s": _seconds(duration, "duration"),
            "shoppers": shoppers, "factor": factor, "spike_s": _seconds(spike, "spike"), "arrivals": arrivals,
            "think_s": _seconds(think, "think"), "batch_rows": batch_rows, "verify": verify, "connections": connections,
            "seed": seed,
        }  # fmt: skip
        if rate is None and users is None:
            said["rate"] = 50.0
        out.mkdir(parents=True, exist_ok=True)
        chosen = audience if audience is not None else _audience(url, data, out / "audience.json")
        _carry_out(_plan(**said, audience=chosen.resolve()), url, out, slo, processes, context.args)

    return run


def _replaying(scenario: str) -> Callable[..., None]:
    def run(
        context: typer.Context,
        trace: Annotated[Path, typer.Option(help="From `hindcast load trace`, or any file of its form.", dir_okay=False)],
        speed: Annotated[float, typer.Option(help="So many times faster than it was.")] = 1.0,
        slo: Slo = None,
        out: Out = Path("load-result"),
        data: Data = Path("data"),
        host: Host = "",
        audience: AudienceFile = None,
        verify: Annotated[float, typer.Option(min=0, max=1, help="Share of good answers whose content is verified.")] = 1.0,
        connections: Annotated[int, typer.Option(help="Most requests under way, of one worker.")] = 2_000,
        processes: Annotated[int, typer.Option(min=1, help="Worker processes on this machine.")] = 1,
    ) -> None:
        """Send a trace at its own times, whatever the answers. Caps are judged where audience or data folder tell them.
        What follows `--` goes to Locust."""
        url = _url(host, data)
        out.mkdir(parents=True, exist_ok=True)
        known = audience is not None or (data / "catalogue").is_dir()
        caps = (audience or _audience(url, data, out / "audience.json")).resolve() if known else None
        said = {"speed": speed, "verify": verify, "connections": connections, "audience": caps}
        _carry_out(_plan(scenario=scenario, trace=trace.resolve(), **said), url, out, slo, processes, context.args)

    return run


def judge(
    out: Annotated[Path, typer.Argument(help="Folder of a result.json.", file_okay=False)],
    slo: Slo = None,
) -> None:
    """Judge a result anew, or one that a Locust master wrote by itself: report, table, exit code."""
    path = out / "result.json"
    if not path.exists():
        raise InvalidInput("no such file", field=str(path), hint="run a scenario with --out first")
    raise typer.Exit(_judged(json.loads(path.read_text()), out, slo))


def audience(
    out: Annotated[Path, typer.Option(help="File to write.", dir_okay=False)],
    data: Data = Path("data"),
    host: Host = "",
) -> None:
    """Write who asks and for what, so that other machines can make the load."""
    _audience(_url(host, data), data, out)
    sys.stdout.write(f"{out}\n")


def trace(
    out: Annotated[Path, typer.Option(help="File to write, .jsonl.gz.", dir_okay=False)],
    data: Data = Path("data"),
    start: Annotated[str, typer.Option("--from", help="First moment, as 2026-10-19 or with a time (UTC).")] = "1970-01-02",
    end: Annotated[str, typer.Option("--to", help="First moment that is left out.")] = "2200-01-01",
    most: Annotated[int, typer.Option(min=1, help="So many requests, the earliest.")] = 1_000_000,
) -> None:
    """Make a trace of the log: requests and events with their times."""
    from hindcast.traffic import make_trace

    made = make_trace(data, out, start=_moment(start, "--from"), end=_moment(end, "--to"), most=most)
    sys.stdout.write(f"{out}: {made.requests:,} requests over {made.seconds:,.0f} s\n")
    for path, count in made.by_path.most_common():
        sys.stdout.write(f"  {count:>9,}  {path}\n")
    for words, count in made.left_out.most_common():
        if count:
            sys.stdout.write(f"  {count:>9,}  left out: {words}\n")


@contextmanager
def _our_words() -> Iterator[None]:
    """What load tests raise, as an error of the command."""
    from loadtests.scenarios.errors import LoadError

    try:
        yield
    except LoadError as error:
        raise InvalidInput(str(error)) from None


def _plan(**said: Any) -> Plan:
    from loadtests.scenarios.plan import read_plan
    from loadtests.scenarios.trace import plan_seconds

    with _our_words():
        plan = read_plan(**said)
        plan_seconds(plan)  # a trace that cannot be read is said before anything starts
        return plan


def _url(host: str, data: Path) -> str:
    if host:
        return host.rstrip("/")
    path = data / "run" / "server.json"
    try:
        return str(json.loads(path.read_text())["admin_url"])
    except (OSError, ValueError, KeyError):
        raise NotReady("no server is up on this data folder", field=str(data), hint="hindcast up, or say --host") from None


def _seconds(text: str, field: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None:
        raise InvalidInput(f"{text!r} is no duration", field=field, hint="write 90s, 10m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def _moment(text: str, field: str) -> int:
    from datetime import UTC, datetime

    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is no time", field=field, hint="write 2026-10-19 or 2026-10-19T08:00") from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e6)


def _audience(url: str, data: Path, path: Path) -> Path:
    from loadtests.scenarios.audience import audience_of_folder
    from loadtests.scenarios.server_facts import facts_of

    facts = facts_of(url)
    if facts["release"] is None:
        raise NotReady(f"{url}/readyz does not answer", field="host", hint="is the server up?")
    with _our_words():
        made = audience_of_folder(data, release=facts["release"], policy=facts["policy"])
    path.write_text(made.model_dump_json())
    return path


def _carry_out(plan: Plan, url: str, out: Path, slo: Path | None, processes: int, extra: list[str]) -> None:
    from loadtests.scenarios.options import arguments_of

    out.mkdir(parents=True, exist_ok=True)
    result = out / "result.json"
    result.unlink(missing_ok=True)
    if slo is not None:
        _objectives(slo)  # what cannot be read is said before an hour of load, not after
    command = [sys.executable, "-m", "locust", "-f", _locustfile(), "--headless", "--only-summary", "--host", url]
    command += [*arguments_of(plan), "--out", str(out), "--stop-timeout", "5"]
    command += ["--processes", str(processes)] if processes > 1 else []
    log = out / "locust.log"
    with log.open("wb") as lines:
        running = subprocess.Popen([*command, *extra], stdout=lines, stderr=lines)
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the load ends with us
        try:
            _watch(running, plan)
        finally:
            signal.signal(signal.SIGTERM, before)
            if running.poll() is None:
                running.terminate()
                running.wait(30)
    if running.returncode or not result.exists():
        said = [line for line in log.read_text(errors="replace").splitlines() if "ERROR" in line or "Error" in line]
        raise NotReady(f"the run ended without a result: {said[-1] if said else 'see its log'}", field=str(log))
    raise typer.Exit(_judged(json.loads(result.read_text()), out, slo))


def _locustfile() -> str:
    import importlib.util

    found = importlib.util.find_spec(_PACKAGE)
    assert found is not None
    assert found.submodule_search_locations is not None
    return str(Path(found.submodule_search_locations[0]) / "locustfile.py")


def _watch(running: subprocess.Popen[bytes], plan: Plan) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from loadtests.scenarios.trace import plan_seconds

    total = plan_seconds(plan)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(plan.scenario.value, total=total)
        began = time.monotonic()
        while running.poll() is None:
            progress.update(task, completed=min(time.monotonic() - began, total))
            try:
                running.wait(0.5)
            except subprocess.TimeoutExpired:
                continue


def _objectives(path: Path) -> Any:
    from loadtests.scenarios.slo import read_objectives

    with _our_words():
        return read_objectives(path)


def _judged(result: dict[str, Any], out: Path, slo: Path | None) -> int:
    """Judge, write the report, print the table; the exit code."""
    from loadtests.scenarios.report import write_report
    from loadtests.scenarios.slo import judge as judged

    folder = Path(_locustfile()).parent / "slo"
    own = folder / f"{result['plan']['scenario']}.yaml"
    objectives = _objectives(slo or (own if own.exists() else folder / "default.yaml"))
    with _our_words():
        verdict = judged(result, objectives)
    write_report(out, result, objectives, verdict)
    _print(result, verdict, out)
    return verdict.code


def _print(result: dict[str, Any], verdict: Verdict, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from loadtests.scenarios.report import remarks, verdict_words

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    routes = Table("route", "requests", "results/s", "p50 ms", "p99 ms", "p99.9 ms", "errors", "refused", "degraded")
    for row in (one for one in result["rows"] if one["phase"] == "all"):
        times = (f"{row[name]:.1f}" if row[name] is not None else "" for name in ("p50_ms", "p99_ms", "p999_ms"))
        rates = (f"{100 * row[name]:.3g} %" for name in ("error_rate", "refused_rate", "degraded_rate"))
        routes.add_row(row["route"], f"{row['requests']:,}", f"{row['ok_per_s']:.1f}", *times, *rates)
    console.print(routes)
    for one in verdict.findings:
        if one.kept is not True:
            sign = ">=" if one.floor else "<="
            measured = "nothing to judge by" if one.measured is None else f"{one.measured:.4g}"
            console.print(f"  not kept: {one.where} {one.what} {sign} {one.limit:g}: {measured}", highlight=False)
    for words in (*verdict.invalid, *remarks(result)):
        console.print(f"  {words}", highlight=False)
    if verdict.recovery_s is not None:
        console.print(f"  recovered {verdict.recovery_s:g} s after the spike", highlight=False)
    console.print(f"{verdict_words(verdict)}  {out / 'report.html'}", highlight=False, soft_wrap=True)
