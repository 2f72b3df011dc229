"""A replay's result as files: report.html for people, report.json for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from serve_app.ids import bucket_of
from serve_app.log.reader import read_log
from serve_app.release.manifest import write_text_atomically
from simulators.replay.breakdowns import campaign_names
from simulators.replay.completeness import missing_rows
from simulators.replay.shard import Shard
from simulators.replay.spec import ReplaySpec
from simulators.report.content import content_of
from simulators.report.effects import Worth
from simulators.report.guardrails import Guardrail, judge_guardrails
from simulators.report.headline import preferred
from simulators.report.page import page_of
from simulators.report.provenance import segment_names
from simulators.report.tally import Tally

__all__ = ["write_report"]


def write_report(
    result: Shard,
    spec: ReplaySpec,
    out: Path,
    rails: Mapping[str, Guardrail],
    *,
    allow_mismatch: bool,
    worth: Worth | None = None,
    command: str = "",
    simulated: Mapping[str, Any] | None = None,
    lists: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write both files to `out`; returns the content of the JSON. command, simulated: see `content_of`. lists: of
    `items.lists_content`."""
    tally = Tally(result.counts)
    found = judge_guardrails(rails, result.suite, _volumes(tally, spec), order=preferred(spec))
    data = Path(spec.data)
    texts = _user_texts(data, {one.user for one in result.examples})
    names = {**campaign_names(data), "segment": segment_names(spec)}
    content = content_of(
        result, spec, names=names, guardrails=found, parity_waived=allow_mismatch, worth=worth,
        user_name=lambda user: texts.get(user, f"{user:016x}"), command=command, simulated=simulated,
        missing=missing_rows(data),
    )  # fmt: skip
    content["lists"] = list(lists)
    plain = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)
    write_text_atomically(out / "report.json", plain.decode())
    write_text_atomically(out / "report.html", page_of(content))
    return content


def _volumes(tally: Tally, spec: ReplaySpec) -> dict[str, dict[str, float]]:
    """What guardrails on counts look at, by policy: a user of the log."""
    users = max(tally.total("logged", "users"), 1)
    return {
        name: {"sends": tally.total(name, "sends") / users, "reach": tally.total(name, "users_reached") / users}
        for name in ("logged", *(one.name for one in spec.targets))
    }


def _user_texts(data: Path, users: set[int]) -> dict[int, str]:
    """Ids of a few users, as far as the log has them."""
    out: dict[int, str] = {}
    for bucket in np.unique(bucket_of(np.array(sorted(users), np.uint64))).tolist():
        rows = read_log(data, "users", columns=["user", "user_id"], buckets=(bucket, bucket))
        known = zip(rows["user"].to_pylist(), rows["user_id"].to_pylist(), strict=True)
        out |= {user: text for user, text in known if user in users}
    return out
