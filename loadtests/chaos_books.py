"""After a run: is everything that was answered in the log, is the log whole, and do ledger and log tell one truth?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.chaos_figures import Call
from serve_app.log.reader import read_log

__all__ = ["Books", "examine"]


@dataclass(frozen=True)
class Books:
    """answered: calls answered with a result that said nothing of a missing log line. missing: of them, not in the log.
    keys_twice: idempotency keys under which more than one decision was committed (the log holds a line of its own for a call
    that was recognised as a repetition). grants: sends among the answers. audit: what `hindcast audit` looked at. findings:
    all that is wrong, in words."""

    answered: int
    decisions: int
    missing: int
    keys_twice: int
    grants: int
    audit: dict[str, Any]
    findings: list[str]


def examine(data: Path, calls: Sequence[Call], *, redis_url: str | None = None) -> Books:
    """Compact the log as the server's upkeep does, read every file, audit, look up every answer. The server has ended.
    redis_url: of its ledger, where that is no file."""
    ledger = ("--redis", redis_url) if redis_url else ()
    findings = [
        f"hindcast {' '.join(arguments)}: {said.strip()[-500:]}"
        for arguments in (("log", "compact", *ledger), ("log", "check"))
        for code, said in [_hindcast(*arguments, "--data", str(data))] if code
    ]  # fmt: skip
    code, said = _hindcast("audit", "--json", *ledger, "--data", str(data))
    audit = json.loads(said) if said.startswith("{") else {}
    if code:
        kinds = {kind: one["count"] for kind, one in audit.get("findings", {}).items()}
        findings.append(f"hindcast audit: {kinds or said[-500:]}")
    logged = set(read_log(data, "requests", columns=["request_id"])["request_id"].to_pylist())
    rows = read_log(data, "decisions", columns=["request_id", "idempotency_key", "commit_version", "granted"]).to_pylist()
    answered = [call for call in calls if call.answered and "log" not in call.degraded]
    missing = [call for call in answered if call.request_id not in logged]
    if missing:
        findings.append(
            f"{len(missing)} answers are not in the log, such as {missing[0].request_id:016x} ({missing[0].kind})"
        )
    committed = {(row["idempotency_key"], row["request_id"]) for row in rows if row["commit_version"] >= 0}
    of_key = Counter(key for key, _ in committed if key)
    own = {call.request_id for call in answered if call.kind == "decide"}
    twice = sum(count > 1 for count in of_key.values())
    if twice:
        findings.append(f"{twice} idempotency keys stand for more than one decision")
    return Books(
        answered=len(answered),
        decisions=sum(call.kind == "decide" for call in answered),
        missing=len(missing),
        keys_twice=twice,
        grants=sum(bool(row["granted"]) and row["request_id"] in own for row in rows),
        audit=audit.get("looked_at", {}),
        findings=findings,
    )


def _hindcast(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "hindcast", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout or done.stderr
