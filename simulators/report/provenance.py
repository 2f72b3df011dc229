"""How a report's numbers came about, so that a reader can check them and make them again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from serve_app.ids import hash_id
from serve_app.log.fingerprint import code_version, fingerprint, fingerprint_parts
from serve_app.policy.diff import policy_diff
from serve_app.policy.document import parse_policy, revision_of
from simulators.replay.shard import Shard
from simulators.replay.spec import ReplaySpec
from simulators.report.tally import Tally

__all__ = ["SCHEMA", "documents", "made", "policies_said", "segment_names"]

SCHEMA = {"name": "hindcast-replay-report", "version": 1}
"""Of the JSON: keys are added without a new version; a renamed or dropped one, or another meaning, raises it."""
_EVER = 2**61


def policies_said(spec: ReplaySpec) -> list[dict[str, Any]]:
    """Each target: revision, and what it changes, in words, against each policy that logged."""
    behaviour = {one.name: parse_policy(orjson.loads(one.document)) for one in spec.behaviour}
    out = []
    for target in spec.targets:
        own = parse_policy(orjson.loads(target.document))
        changes = {name: policy_diff(old, own) for name, old in behaviour.items()}
        out.append({"policy": target.name, "revision": revision_of(target.document.encode()), "changes": changes})
    return out


def documents(spec: ReplaySpec) -> dict[str, dict[str, Any]]:
    """Every policy in full: those that logged by revision, the targets by name."""
    return {
        "logged": {one.name: orjson.loads(one.document) for one in spec.behaviour},
        "targets": {one.name: orjson.loads(one.document) for one in spec.targets},
    }


def segment_names(spec: ReplaySpec) -> dict[int, str]:
    """Ids of the segments of the policies that logged, by their hashes."""
    documents = [parse_policy(orjson.loads(one.document)) for one in spec.behaviour]
    return {hash_id(one.id): one.id for document in documents for one in document.segments}


def made(result: Shard, spec: ReplaySpec, tally: Tally, command: str) -> dict[str, Any]:
    """Log, window, versions, what was computed anew, seeds, and the command. No clock and no machine's path."""
    days = [day for day in tally.days("logged", "decisions", "reason") if day >= 0]
    window = [_text(spec.start, days[0] if days else 0), _text(spec.end, days[-1] + 1 if days else 0)]
    return {
        "log": Path(spec.data).name,
        "window": window,
        "days": len(days),
        "requests": result.requests,
        "digest": _digest(spec),
        "code": code_version(),
        "fingerprint": fingerprint(),
        "packages": fingerprint_parts(),
        "start": "steady" if spec.steady else "switch",
        "attribution_hours": spec.attribution_us / 3.6e9,
        "outcome_days": spec.outcome_us / 86.4e9,
        "heads": {
            "names": list(spec.heads),
            "how": f"re-scored from logged features by {spec.release}" if spec.release else "logged scores",
        },
        "segments": list(spec.segments),
        "estimators": list(spec.estimators),
        "reward": dict(spec.reward),
        "outcome_model": _model(spec),
        "seeds": "none drawn: flips, cells and holdouts are hashes of logged ids with the policies' salts; halves, folds, "
        "bootstrap weights and example users are hashes of user ids",
        "command": command,
    }


def _model(spec: ReplaySpec) -> str:
    """What the estimators that need an outcome model rest on; empty without one."""
    return "logistic and linear models by fold, fitted before the pass on a seeded sample of users" if spec.outcome else ""


def _digest(spec: ReplaySpec) -> str:
    """Of the policies and settings asked about."""
    parts: Sequence[str] = [*(one.document for one in (*spec.behaviour, *spec.targets)), str(spec.start), str(spec.end)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _text(at: int, day: int) -> str:
    moment = at / 1e6 if abs(at) < _EVER else day * 86_400
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M").removesuffix(" 00:00")
