"""From what a person asks for to a `ReplaySpec`: names become documents, the log says what wrote it and how far it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from serve_app.errors import InvalidInput
from serve_app.policies import read_policy
from serve_app.policy.document import PolicyDocument, canonical_json, load_policy
from simulators.estimators import LOGGED
from simulators.replay.breakdowns import breakdowns_of
from simulators.replay.job import log_end, log_start, logged_heads, logged_revisions
from simulators.replay.rewards import Weights, reward_of
from simulators.replay.spec import CONTROL, FULL, QUICK, ReplaySpec, Target, logged_document

__all__ = ["EVER", "estimators_named", "is_file", "named_policies", "spec_for"]

EVER = 2**62
_DAY_US = 86_400_000_000


def is_file(name: str) -> bool:
    """Does a policy's name look like a file's?"""
    return Path(name).is_file() or "." in name or "/" in name


def named_policies(data: Path, names: Sequence[str]) -> dict[str, PolicyDocument]:
    """Documents of files and revisions, by the name a report gives them. Raises InvalidInput where two would have the same
    name, or one the log's own."""
    out: dict[str, PolicyDocument] = {}
    for name in names:
        said = Path(name).stem if is_file(name) else name
        if said in out or said in (LOGGED, CONTROL):
            whose = "another policy's" if said in out else "the log's own"
            raise InvalidInput(f"{name}: the report would call it {said!r}, which is {whose} name", field="policy",
                               hint="rename the file")  # fmt: skip
        out[said] = load_policy(name) if is_file(name) else read_policy(data, name)
    return out


def estimators_named(text: str) -> tuple[str, ...]:
    """`quick`, `full`, or names separated by commas; `snips`, on which verdicts and guardrails rest, is always among them.
    Raises InvalidInput naming those there are."""
    if text in ("quick", "full"):
        return QUICK if text == "quick" else FULL
    names = tuple(dict.fromkeys(one.strip() for one in text.split(",")))
    for one in names:
        if one not in FULL:
            raise InvalidInput(f"no estimator {one!r}", field="estimators", hint=f"quick, full, or of {', '.join(FULL)}")
    return names if "snips" in names else ("snips", *names)


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
    estimators: Sequence[str] = QUICK,
    reward: Weights | None = None,
    release: str = "",
    segments: Sequence[str] = (),
) -> ReplaySpec:
    """A replay of all `targets` over the log in `data`. estimators: of `spec.FULL`. reward: weights of metrics in the metric
    `reward`; None: those of the policy that logged. Raises UnknownIdentifier where the document of a policy that wrote the
    log is neither stored nor given."""
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
        tuple(estimators),
        next((reward_of(one) for one in behaviour.values()), ()) if reward is None else reward,
        release=release,
        segments=tuple(segments),
    )
