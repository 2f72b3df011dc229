"""A replay's result as files: report.html for people, report.json for programs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from serve_app.ids import bucket_of
from serve_app.log.fingerprint import code_version
from serve_app.log.reader import read_log
from serve_app.release.manifest import write_text_atomically
from serve_app.vocabulary import Reason
from simulators.replay.breakdowns import campaign_names
from simulators.replay.shard import Shard
from simulators.replay.spec import ReplaySpec
from simulators.report.content import content_of
from simulators.report.effects import Worth
from simulators.report.guardrails import Guardrail, judge_guardrails
from simulators.report.page import page_of
from simulators.report.tally import Tally

__all__ = ["write_report"]

_EVER = 2**61


def write_report(
    result: Shard,
    spec: ReplaySpec,
    out: Path,
    rails: Mapping[str, Guardrail],
    *,
    allow_mismatch: bool,
    worth: Worth | None = None,
) -> dict[str, Any]:
    """Write both files to `out`; returns the content of the JSON."""
    tally = Tally(result.counts)
    users = max(tally.total("logged", "users"), 1)
    sends = {name: tally.total(name, "sends") / users for name in ("logged", *(one.name for one in spec.targets))}
    found = judge_guardrails(rails, result.suite, sends)
    data = Path(spec.data)
    texts = _user_texts(data, {one.user for one in result.examples})
    content = content_of(
        result, spec, names=campaign_names(data), guardrails=found, parity_waived=allow_mismatch, worth=worth,
        user_name=lambda user: texts.get(user, f"{user:016x}"),
    )  # fmt: skip
    made = _made(result, spec, tally)
    content["made"] = made
    write_text_atomically(
        out / "report.json", orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode()
    )
    title = f"Hindcast: {', '.join(one.name for one in spec.targets)} against the log"
    page = page_of({name: value for name, value in content.items() if name != "made"}, title=title, made=made)
    write_text_atomically(out / "report.html", page)
    return content


def _user_texts(data: Path, users: set[int]) -> dict[int, str]:
    """Ids of a few users, as far as the log has them."""
    out: dict[int, str] = {}
    for bucket in np.unique(bucket_of(np.array(sorted(users), np.uint64))).tolist():
        rows = read_log(data, "users", columns=["user", "user_id"], buckets=(bucket, bucket))
        known = zip(rows["user"].to_pylist(), rows["user_id"].to_pylist(), strict=True)
        out |= {user: text for user, text in known if user in users}
    return out


def _made(result: Shard, spec: ReplaySpec, tally: Tally) -> dict[str, Any]:
    days = [day for day in tally.days("logged", "sends") if day >= 0]
    window = f"{_text(spec.start, days[0] if days else 0)} to {_text(spec.end, days[-1] + 1 if days else 0)}"
    start = "steady: warmed up before the window" if spec.steady else "switch: from the window's start on logged histories"
    hours = spec.attribution_us / 3.6e9
    return {
        "window": window,
        "requests": f"{result.requests:,}",
        "bots": tally.total("logged", "bots"),
        "set_aside": {Reason(key).name: n for key, n in tally.by("logged", "set_aside", "reason").items()},
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
