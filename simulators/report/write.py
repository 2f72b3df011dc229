"""A replay's result as files: report.html for people, report.json for programs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from serve_app.ids import hash_id
from serve_app.log.fingerprint import code_version
from serve_app.release.manifest import write_text_atomically
from simulators.replay.shard import Shard
from simulators.replay.spec import ReplaySpec
from simulators.report.content import Tally, content_of
from simulators.report.guardrails import Guardrail, judge_guardrails
from simulators.report.page import page_of

__all__ = ["write_report"]

_EVER = 2**61


def write_report(
    result: Shard, spec: ReplaySpec, out: Path, rails: Mapping[str, Guardrail], *, allow_mismatch: bool
) -> dict[str, Any]:
    """Write both files to `out`; returns the content of the JSON."""
    tally = Tally(result.counts)
    users = max(tally.total("logged", "users"), 1)
    sends = {name: tally.total(name, "sends") / users for name in ("logged", *(one.name for one in spec.targets))}
    found = judge_guardrails(rails, result.suite, sends)
    content = content_of(result, spec, names=_names(Path(spec.data)), guardrails=found, parity_waived=allow_mismatch)
    made = _made(result, spec, tally)
    content["made"] = made
    write_text_atomically(
        out / "report.json", orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode()
    )
    title = f"Hindcast: {', '.join(one.name for one in spec.targets)} against the log"
    page = page_of({name: value for name, value in content.items() if name != "made"}, title=title, made=made)
    write_text_atomically(out / "report.html", page)
    return content


def _names(data: Path) -> dict[str, dict[int, str]]:
    """Texts of campaign and category hashes, as far as the catalogue has them."""
    path = data / "catalogue" / "campaigns.parquet"
    if not path.is_file():
        return {}
    table = pq.read_table(path)
    return {
        name: {hash_id(text): text for text in set(table[column].to_pylist()) if text}
        for name, column in (("campaign", "campaign_id"), ("category", "category"))
        if column in table.column_names
    }


def _made(result: Shard, spec: ReplaySpec, tally: Tally) -> dict[str, Any]:
    days = [day for day in tally.days("logged", "sends") if day >= 0]
    window = f"{_text(spec.start, days[0] if days else 0)} to {_text(spec.end, days[-1] + 1 if days else 0)}"
    start = "steady: warmed up before the window" if spec.steady else "switch: from the window's start on logged histories"
    hours = spec.attribution_us / 3.6e9
    return {
        "window": window,
        "requests": f"{result.requests:,}",
        "bots": tally.total("logged", "bots"),
        "lines": [
            "Gates, choice and assignment are the serving core's own, run over the logged requests in ledger order.",
            "Scores are the logged ones: only the policy changed.",
            f"The targets begin in the mode {start}.",
            "Kill switches, availability, degradation and opt-outs are as logged.",
            f"Events count for a decision within {hours:g} h; decisions younger than that at the log's end are left out of "
            "the estimates.",
            f"Logged under {', '.join(one.name for one in spec.behaviour)}; code {code_version()}.",
        ],
    }


def _text(at: int, day: int) -> str:
    moment = at / 1e6 if abs(at) < _EVER else day * 86_400
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M").removesuffix(" 00:00")
