"""Bring the event days up to date, evaluate the segments of the policies in force, publish the set.

In force are the current policy and the one it replaced: requests may still be pinned to it, and a rollback goes back to it.
A policy that is about to be promoted is evaluated with them first, so that no request finds its segments unknown.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serve_app.errors import HindcastError, InvalidInput, NotReady
from serve_app.ledger.opening import ledger_path, open_ledger
from serve_app.policies import read_current_policy, read_policy
from serve_app.policy.document import PolicyDocument
from serve_app.policy.segment_tree import Segment, segment_digests
from serve_app.segments.days import refresh_days
from serve_app.segments.evaluate import Evaluated, check_answerable, evaluate
from serve_app.segments.events import EventHistory
from serve_app.segments.merge import merged_segments
from serve_app.segments.population import Population
from serve_app.segments.source import LedgerStates, load_history, load_population, read_states
from serve_app.segments.store import SetManifest, publish_set, read_set_manifest, segments_folder

__all__ = [
    "Audience",
    "Report",
    "evaluate_now",
    "load_audience",
    "policies_in_force",
    "prepare_policy",
    "refresh_lock",
    "refresh_segments",
]


class Report(Protocol):
    """Told how far a long step is: (step, done, total)."""

    def __call__(self, step: str, done: int, total: int) -> None: ...


def _silent(step: str, done: int, total: int) -> None:
    del step, done, total


@dataclass(frozen=True, slots=True)
class Audience:
    """Everything segments are evaluated over, as of `as_of`."""

    population: Population
    history: EventHistory
    as_of: int


def refresh_segments(
    data: Path, *, now: int, full: bool = False, extra: Sequence[PolicyDocument] = (), redis_url: str | None = None,
    report: Report = _silent, wait: bool = True,
) -> SetManifest | None:  # fmt: skip
    """Evaluate and publish as of `now`, microseconds UTC; None where no policy in force has a segment.

    full: make the event days anew. extra: policies to evaluate besides. InvalidInput: a segment of the current policy or of
    `extra` asks for what the data lacks. wait=False: NotReady where another refresh is under way.
    """
    in_force = policies_in_force(data)
    documents = [*extra, *in_force]
    if not any(one.segments for one in documents):
        return None
    needed = {one.revision for one in (*extra, *in_force[:1])}
    with refresh_lock(data, wait=wait):
        audience = load_audience(data, as_of=now, full=full, redis_url=redis_url, report=report)
        kept, left_out = _answerable(documents, needed, audience)
        segments, ids = merged_segments([one.segments for one in kept])
        found = evaluate_now(segments, audience, report)
        for bitmap in found.members.values():
            bitmap.run_optimize()
        return publish_set(
            data,
            audience.population.users,
            found.members,
            ids,
            computed_at=now,
            policies=[one.revision for one in kept],
            left_out=left_out,
        )


def policies_in_force(data: Path) -> list[PolicyDocument]:
    """The current policy first, then the one it replaced, where there are such."""
    current, history = read_current_policy(data)
    found = [] if current is None else [read_policy(data, current)]
    for entry in reversed(history):
        if entry.revision == current and entry.replaced not in (None, current):
            try:
                found.append(read_policy(data, str(entry.replaced)))
            except HindcastError:
                break  # deleted by hand: there is nothing to go back to
            break
    return found


def prepare_policy(
    data: Path, document: PolicyDocument, *, now: int, redis_url: str | None = None, report: Report = _silent
) -> SetManifest | None:
    """Before `document` is promoted: make sure the set in force knows its segments. None: it does already."""
    manifest = read_set_manifest(data)
    known = {one.digest for one in manifest.segments} if manifest else set()
    if set(segment_digests(document.segments).values()) <= known:
        return None
    return refresh_segments(data, now=now, extra=[document], redis_url=redis_url, report=report)


def load_audience(
    data: Path, *, as_of: int, full: bool = False, redis_url: str | None = None, report: Report = _silent
) -> Audience:
    """Population and events of a data folder, event days brought up to date. Call with `refresh_lock` held."""
    days = refresh_days(data, full=full, progress=lambda done, total: report("events", done, total))
    report("users", 0, 1)
    ledger = _ledger_states(data, redis_url)
    population = load_population(data, days, ledger, as_of)
    history = load_history(data, population.users, days, ledger)
    report("users", 1, 1)
    return Audience(population, history, as_of)


def evaluate_now(segments: Sequence[Segment], audience: Audience, report: Report = _silent) -> Evaluated:
    """Check that the audience can answer, then evaluate. InvalidInput names what it cannot."""
    check_answerable(segments, audience.population, audience.history)
    return evaluate(
        segments,
        audience.population,
        audience.history,
        audience.as_of,
        lambda done, total: report("conditions", done, total),
    )


def _ledger_states(data: Path, redis_url: str | None) -> LedgerStates | None:
    if redis_url is None and not ledger_path(data).is_file():
        return None
    ledger = open_ledger(
        data, backend="redis" if redis_url else "sqlite", redis_url=redis_url, durability="process", read_only=True
    )
    try:
        return read_states(ledger)
    finally:
        ledger.close()


def _answerable(
    documents: Sequence[PolicyDocument], needed: set[str], audience: Audience
) -> tuple[list[PolicyDocument], dict[str, str]]:
    """Distinct policies that can be evaluated, and why the others cannot. Raises for one of `needed`."""
    kept: dict[str, PolicyDocument] = {}
    left_out: dict[str, str] = {}
    for one in documents:
        try:
            check_answerable(one.segments, audience.population, audience.history)
            kept[one.revision] = one
        except InvalidInput as error:
            if one.revision in needed:
                raise
            left_out[one.revision] = str(error)
    return list(kept.values()), left_out


@contextmanager
def refresh_lock(data: Path, *, wait: bool) -> Iterator[None]:
    """One writer of DATA/segments at a time. NotReady where there is another and wait is False."""
    folder = segments_folder(data)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            message = "another refresh of the segments is under way"
            raise NotReady(message, field=str(folder), hint="wait for it to end") from None
        yield
