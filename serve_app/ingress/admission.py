"""Admission: who asks, when, until when, and under which release and policy. All of it is fixed here, once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve_app.clock import micros_of
from serve_app.ids import fresh_id
from serve_app.ingress.calls import Incoming
from serve_app.ingress.schemas import Rehearsal
from serve_app.serving.library import Library
from serve_app.serving.scope import note_request

__all__ = ["Admitted", "admitted"]


@dataclass(frozen=True, slots=True)
class Admitted:
    """One admitted request. decided_at, deadline_at: microseconds UTC; leave_by_s: the event loop's time of the deadline."""

    request_id: int
    decided_at: int
    deadline_at: int
    leave_by_s: float
    release: str
    policy: str
    dry: bool

    @property
    def pins(self) -> tuple[str, str]:
        """Release and policy revision."""
        return self.release, self.policy


@contextmanager
def admitted(incoming: Incoming, asked: Rehearsal, library: Library, budget_ms: float) -> Iterator[Admitted]:
    """Stamp the time and the id, hold the current release and policy until the answer is made."""
    now = micros_of(asked.now) if asked.now is not None else incoming.at_us
    request_id = int(asked.request_id, 16) if asked.request_id is not None else fresh_id()
    note_request(request_id)
    with library.releases.pinned() as (release, _), library.policies.pinned() as (policy, _):
        yield Admitted(
            request_id=request_id,
            decided_at=now,
            deadline_at=now + int(budget_ms * 1000),
            leave_by_s=asyncio.get_running_loop().time() + budget_ms / 1000,
            release=release,
            policy=policy,
            dry=asked.dry_run,
        )
