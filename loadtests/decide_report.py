"""The decision benchmark's figures as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["write_report"]

_TIMES = ("p50 ms", "p99 ms", "p99.9 ms")


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """`decide.json` and `decide.md` in `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "decide.json").write_text(json.dumps(report, indent=1))
    (folder / "decide.md").write_text("\n".join(_lines(report)) + "\n")


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    kernels, hardware = report["kernels"], report["hardware"]
    yield "# Send decisions over HTTP"
    yield ""
    yield (
        f"Ten gates, {kernels['caps']} caps, {kernels['segments']} segments, five candidates a decision, scores of four "
        f"trained heads, {report['population']:,} users with three earlier sends each. Load generator on the same machine. "
        "A grant that was answered survives loss of power (SQLite synchronous=FULL; Redis appendfsync always); the journal "
        "survives the death of the process."
    )
    yield ""
    headings = ("ledger", "topology", "form", "connections", "decisions/s", "cpu us a decision", *_TIMES, "failed")
    yield f"| {' | '.join(headings)} |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for server in report["servers"]:
        for run in server["runs"]:
            ms = run["latency_ms"]
            cells = [server["backend"], server["topology"], run["form"], run["connections"]]
            cells += [f"{run['decisions_per_s']:,.0f}", f"{run['cpu_us_per_decision']:.1f}"]
            cells += [f"{ms[p]:,.1f}" for p in ("p50", "p99", "p99.9")] + [run["outcomes"].get("failed", 0)]
            yield "| " + " | ".join(map(str, cells)) + " |"
    yield ""
    yield "Latency is that of a call: 10,000 rows where the form is `arrow` or `json`, one where it is `single`."
    yield ""
    yield "| ledger | topology | form | processor seconds by process |"
    yield "|---|---|---|---|"
    for server in report["servers"]:
        for run in server["runs"]:
            spent = ", ".join(f"{name} {value:g}" for name, value in run["cpu_seconds"].items() if value >= 0.05)
            yield f"| {server['backend']} | {server['topology']} | {run['form']} {run['connections']} | {spent} |"
    yield ""
    for server in report["servers"]:
        for run in server["runs"]:
            for problem, times in run["problems"].items():
                yield f"- {server['backend']}, {server['topology']}, {run['form']}: {times:,} rows failed: {problem}"
        found = server["check"]
        verdict = "; ".join(found["findings"]) or "nothing amiss"
        yield (
            f"- {server['backend']}, {server['topology']}: {found['answered']:,} rows answered, {found['logged']:,} in the "
            f"log; {found['sends']:,} sends answered, {found['granted']:,} in the ledger; caps: {verdict}"
        )
    yield ""
    yield (
        f"Gates alone: {kernels['candidates_per_s'] / 1e6:.2f} M candidates/s on one core, a batch of one "
        f"{kernels['batch_of_one_us']:.0f} us; `decide` on a memory ledger {kernels['bare_decide_us']:.1f} us a decision."
    )
    yield ""
    yield " · ".join(f"{key} {value}" for key, value in hardware.items())
