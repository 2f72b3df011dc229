"""From what a person asks for to a `ReplaySpec`: names become documents, the log says what wrote it and how far it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from serve_app.policies import read_policy
from serve_app.policy.document import PolicyDocument, canonical_json, load_policy
from simulators.replay.breakdowns import breakdowns_of
from simulators.replay.job import log_end, log_start, logged_heads, logged_revisions
from simulators.replay.spec import ReplaySpec, Target, logged_document

__all__ = ["EVER", "is_file", "named_policies", "spec_for"]

EVER = 2**62
_DAY_US = 86_400_000_000


def is_file(name: str) -> bool:
    """Does a policy's name look like a file's?"""
    return Path(name).is_file() or "." in name or "/" in name


def named_policies(data: Path, names: Sequence[str]) -> dict[str, PolicyDocument]:
    """Documents of files and revisions, by the name a report gives them."""
    return {
        Path(name).stem if is_file(name) else name: load_policy(name) if is_file(name) else read_policy(data, name)
        for name in names
    }


def spec_for(
    data: Path,
    targets: Mapping[str, PolicyDocument],
    *,
    baseline: PolicyDocument | None = None,
    start: int = -EVER,
    end: int = EVER,
    steady: bool = False,
    attribution_us: int = _DAY_US,
    outcome_us: int = 7 * _DAY_US,
    halves: bool = False,
) -> ReplaySpec:
    """A replay of all `targets` over the log in `data`. Raises UnknownIdentifier where the document of a policy that wrote
    the log is neither stored nor given."""
    behaviour = {one: logged_document(data, one, baseline) for one in logged_revisions(data)}
    return ReplaySpec(
        str(data.resolve()),
        tuple(Target(name, canonical_json(one).decode()) for name, one in targets.items()),
        tuple(Target(name, canonical_json(one).decode()) for name, one in behaviour.items()),
        start,
        end,
        steady,
        attribution_us,
        log_end(data),
        log_start(data),
        outcome_us,
        () if halves else breakdowns_of(data, start, end),
        halves,
        logged_heads(data),
    )
