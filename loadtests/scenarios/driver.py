"""The two ways to make load: at scheduled times whatever the answers (open loop), or as users who wait (closed loop)."""

from __future__ import annotations

import heapq
import itertools
import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gevent
from gevent.pool import Pool

from loadtests.scenarios.answers import Contract
from loadtests.scenarios.audience import Audience
from loadtests.scenarios.cap_count import CapCount
from loadtests.scenarios.client import Client
from loadtests.scenarios.plan import Plan, Scenario, arrivals, phases_of
from loadtests.scenarios.recording import CAPS, Recording
from loadtests.scenarios.sender import errand, look_into
from loadtests.scenarios.sends import grants_of
from loadtests.scenarios.shopper import visit
from loadtests.scenarios.step import Answer, Behaviour, Step
from loadtests.scenarios.trace import plan_seconds, read_trace, routes_of, step_of

__all__ = ["Crowd", "Run"]

_SOON_S = 0.5


class Crowd:
    """Behaviours under way in an open loop. An arrival takes the one that has waited longest of those whose user is ready,
    else it begins a new one: so requests come when they are due, and yet each behaviour sees its answers in order."""

    def __init__(self, begin: Callable[[], Behaviour]) -> None:
        self._begin = begin
        self._ready: list[tuple[float, int, Behaviour, Step]] = []
        self._number = itertools.count()

    def take(self, now: float) -> tuple[Behaviour, Step]:
        """A behaviour and the step it asks for."""
        if self._ready and self._ready[0][0] <= now:
            _, _, behaviour, step = heapq.heappop(self._ready)
            return behaviour, step
        behaviour = self._begin()
        return behaviour, next(behaviour)

    def give(self, behaviour: Behaviour, answer: Answer, ready_at: float) -> None:
        """Hand the answer over; the behaviour asks again from `ready_at` on, or is over."""
        try:
            step = behaviour.send(answer)
        except StopIteration:
            return
        heapq.heappush(self._ready, (ready_at, next(self._number), behaviour, step))

    def __len__(self) -> int:
        return len(self._ready)


class Run:
    """One worker's part of a run. Build it when the run starts: its clock starts then."""

    def __init__(
        self, plan: Plan, document: dict[str, Any], audience: Audience | None, *, worker: int, workers: int, key: str | None
    ) -> None:
        self.plan, self.recording = plan, Recording()
        self._worker, self._workers = worker, workers
        self._rng = random.Random(f"{plan.seed} {worker}")
        self._name = f"{time.time_ns():x}-{worker}"  # ids of events and keys must not repeat those of an earlier run
        self._audience = audience.part(worker, workers) if audience else None
        self._routes = routes_of(document)
        self.caps = CapCount(audience.rules if audience else None, audience.campaigns if audience else ())
        self.began = time.monotonic() + _SOON_S
        self._cpu = time.process_time()
        self._client = Client(
            Contract(document), self.recording, phases_of(plan), plan.verify, key, self.began, random.Random(plan.seed)
        )
        self._under_way = Pool(plan.connections)

    def behaviour(self) -> Behaviour:
        """A new shopper's visit or sender's errand, as the plan mixes them."""
        return self._visit() if self._rng.random() < self.plan.shopper_share else self._errand()

    def _visit(self) -> Behaviour:
        assert self._audience is not None
        return visit(self._audience, self._rng, self._name)

    def _errand(self) -> Behaviour:
        assert self._audience is not None
        plan = self.plan
        return errand(
            self._audience, self.caps, self._rng, self._name, batch_share=plan.batch_share, batch_rows=plan.batch_rows
        )

    def open_loop(self, session: Any) -> None:
        """Send every request at its time, then wait for the answers."""
        if self.plan.scenario is Scenario.replay:
            self._at_times(self._traced(), session)
        else:
            self._at_times(self._planned(), session)
        self._under_way.join(self.plan.timeout_s + 5)
        self._under_way.kill()

    def closed_loop(self, session: Any) -> None:
        """One user: behaviour after behaviour, thinking between requests, until the time is over."""
        end = self.began + plan_seconds(self.plan)
        intended = self.began + self._rng.random() * self.plan.think_s  # not all at once
        while intended < end:
            behaviour = self.behaviour()
            step: Step | None = next(behaviour)
            while step is not None and intended < end:
                gevent.sleep(max(0.0, intended - time.monotonic()))
                self._count_planned(intended)
                answer, sound = self._client.perform(session, step, intended)
                intended = time.monotonic() + self._thinks()
                step = self._next(behaviour, answer, sound)

    def _next(self, behaviour: Behaviour, answer: Answer, sound: bool) -> Step | None:
        if not sound:  # what does not keep its form cannot be gone on with
            return None
        try:
            return behaviour.send(answer)
        except StopIteration:
            return None

    def _thinks(self) -> float:
        return self._rng.expovariate(1 / self.plan.think_s) if self.plan.think_s else 0.0

    def _count_planned(self, intended: float) -> None:
        self.recording.health.planned += 1
        self.recording.second(intended - self.began).planned += 1

    def _planned(self) -> Iterator[tuple[float, Crowd]]:
        """Arrival times, and who asks. Shoppers and senders queue apart: shares are shares of requests."""
        shoppers, senders, plan = Crowd(self._visit), Crowd(self._errand), self.plan
        assert plan.rate is not None
        times = arrivals(
            phases_of(plan), plan.rate, kind=plan.arrivals, seed=plan.seed, worker=self._worker, workers=self._workers
        )
        for at in times.tolist():
            yield at, shoppers if self._rng.random() < plan.shopper_share else senders

    def _traced(self) -> Iterator[tuple[float, Step]]:
        assert self.plan.trace is not None
        for one in read_trace(self.plan.trace, worker=self._worker, workers=self._workers):
            yield one["at"] / self.plan.speed, step_of(one, self._routes, self._name)

    def _at_times(self, due: Iterable[tuple[float, Crowd | Step]], session: Any) -> None:
        for at, what in due:
            intended = self.began + at
            gevent.sleep(max(0.0, intended - time.monotonic()))
            self._count_planned(intended)
            if self._under_way.free_count() <= 0:
                self.recording.health.unsent += 1
            elif isinstance(what, Step):
                self._under_way.spawn(self._of_trace, session, what, intended)
            else:
                self._under_way.spawn(self._of_crowd, session, what, *what.take(time.monotonic()), intended)

    def _of_trace(self, session: Any, step: Step, intended: float) -> None:
        """A request of the trace; where it granted a send that may be one too many, the question whether it was."""
        answer, sound = self._client.perform(session, step, intended)
        if not (sound and answer.good and step.route == "POST /v1/notifications/decide"):
            return
        for suspect in self.caps.add(grants_of(answer.content, answer.content["decided_at"])):
            now = time.monotonic()
            self._count_planned(now)
            self._client.perform(session, look_into(suspect, self.caps), now)

    def _of_crowd(self, session: Any, crowd: Crowd, behaviour: Behaviour, step: Step, intended: float) -> None:
        answer, sound = self._client.perform(session, step, intended)
        if sound:
            crowd.give(behaviour, answer, time.monotonic() + self._thinks())

    def result(self) -> dict[str, Any]:
        """What this worker measured, as plain values."""
        took = time.monotonic() - self.began
        if self.caps.judges:
            self.recording.checks[CAPS] += self.caps.counted
        self.recording.health.workers = [
            {
                "worker": self._worker,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "seconds": took,
                "cpu_share": (time.process_time() - self._cpu) / took,
            }
        ]
        return self.recording.to_wire()
