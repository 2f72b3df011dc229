"""What a replay is asked to do, as plain values that travel to workers and name its result."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from serve_app.errors import InvalidInput, UnknownIdentifier
from serve_app.log.fingerprint import code_version, fingerprint
from serve_app.policies import read_policy
from serve_app.policy.compile import CompiledPolicy, compile_policy
from serve_app.policy.document import PolicyDocument, parse_policy

__all__ = ["CONTROL", "FULL", "QUICK", "Breakdown", "OutcomeFit", "ReplaySpec", "Target", "compiled", "logged_document"]


CONTROL = "logged again"
"""Name of the A/A control: the policies that logged, estimated as if they were a target."""


@dataclass(frozen=True, slots=True)
class Target:
    """A policy to replay: the name it has in the report, and its canonical JSON."""

    name: str
    document: str


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Outcomes by one property of what was logged: channel, category, campaign (of the message sent) or day (UTC, days since
    1970-01-01). keys: its values; labels: their texts."""

    name: str
    keys: tuple[int, ...]
    labels: tuple[str, ...]


QUICK = ("ips", "snips", "cells", "breakdowns", "windows")
"""Estimators that cost little; `FULL` has those that need an outcome model or many weights besides."""
FULL = (*QUICK, "dr", "sndr", "windowed-ips", "bootstrap", "roll-out")


@dataclass(frozen=True, slots=True)
class OutcomeFit:
    """A fitted outcome model: the folder it is in, and the checksum that stands for it."""

    folder: str
    checksum: str


@dataclass(frozen=True, slots=True)
class ReplaySpec:
    """data: the data folder. targets: the policies to judge. behaviour: canonical documents of the revisions found in the
    log. start, end: the window that counts, microseconds UTC. steady: the targets run from the snapshot on, so that the
    window sees no transient; else they begin at `start` on logged histories. attribution_us: how long after a decision an
    event counts for it; decisions younger than that at log_end are left out of estimates. outcome_us: how long after a
    user's first would-send anything the user does counts for incrementality. breakdowns: of the estimates. halves: estimates
    are made twice, on each half of the users, so that a choice made on one can be judged on the other.
    heads: logged anywhere; a group may hold unscored decisions alone. estimators: of FULL. reward: weights of metrics in the
    metric `reward`; none: there is no such metric. outcome: the model that some estimators need. release:
    the one whose models score what targets weigh, from the logged features; none: the logged scores. segments: only users
    in one of these at decision time count; none: everybody."""

    data: str
    targets: tuple[Target, ...]
    behaviour: tuple[Target, ...]
    start: int
    end: int
    steady: bool = False
    attribution_us: int = 86_400_000_000
    log_end: int = 2**62
    log_start: int = 0
    outcome_us: int = 7 * 86_400_000_000
    breakdowns: tuple[Breakdown, ...] = ()
    halves: bool = False
    heads: tuple[str, ...] = ()
    estimators: tuple[str, ...] = QUICK
    reward: tuple[tuple[str, float], ...] = ()
    outcome: OutcomeFit | None = None
    release: str = ""
    segments: tuple[str, ...] = ()

    def digest(self, files: list[str]) -> str:
        """Names a result: equal inputs, equal code, equal digest. `files`: the log's files that are read."""
        model = self.outcome.checksum if self.outcome else ""
        said = {**asdict(self), "data": "", "outcome": model, "files": sorted(files), "code": code_version()}
        said["fingerprint"] = fingerprint()
        return hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest()[:20]


def logged_document(data: Path, revision: str, given: PolicyDocument | None) -> PolicyDocument:
    """The document of a revision found in the log: the one given, the registry's, or the world's own. Raises
    UnknownIdentifier naming what to do when there is none."""
    if given is not None and given.revision == revision:
        return given
    try:
        return read_policy(data, revision)
    except UnknownIdentifier:
        own = data / "world" / "behaviour.json"
        document = parse_policy(orjson.loads(own.read_bytes()), name=own.name) if own.is_file() else None
        if document is not None and document.revision == revision:
            return document
    raise UnknownIdentifier(
        f"decisions were logged under policy {revision}, whose document is not in this data folder",
        field="baseline",
        hint="pass it with --baseline FILE",
    )


def compiled(target: Target, heads: tuple[str, ...]) -> CompiledPolicy:
    """Compile for the heads a log holds. Raises InvalidInput where it weighs a head that was not logged."""
    document = parse_policy(orjson.loads(target.document), name=target.name)
    try:
        return compile_policy(document, heads={"notification": heads})
    except InvalidInput as error:
        hint = f"{error.hint}; a head that was not logged must be scored again with --release"
        raise InvalidInput(f"policy {target.name}: {error.message}", field=error.field, hint=hint) from None
