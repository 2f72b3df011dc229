"""A micro-batcher in front of stages that are slow: few under way, early refusals, and as many answers as there can be."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx
import pytest
from starlette.responses import Response

from serve_app.ingress import calls
from serve_app.ingress.auth import KeyRing
from serve_app.ingress.batcher import MicroBatcher, overloaded
from serve_app.ingress.bodies import Bodies
from serve_app.ingress.call_log import call_log
from serve_app.ingress.calls import Call, CallsApp, Incoming, add_calls, json_answer
from serve_app.ingress.problems import ProblemError
from serve_app.ingress.quality import Quality
from serve_app.ingress.refusing import RefusalPace
from serve_app.ingress.schemas_notify import DecideRequest
from serve_app.ingress.throttle import Throttle, throttled
from serve_app.settings import QualitySettings

BUDGET_S = 1.0


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next thing that is due: minutes of load in no time, and always the same."""

    def __init__(self) -> None:
        super().__init__()
        self._at = 1_000.0

    def time(self) -> float:
        return self._at

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._at = max(self._at, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Spike:
    """What came of requests that arrived evenly at a rate, for some seconds, where so many a second can be answered, and
    each micro-batch takes `latency_s` besides."""

    def __init__(self, capacity: float, *, latency_s: float = 0.0, quality: Quality | None = None) -> None:
        self.most_under_way = 0

        async def run(items: Sequence[float]) -> Sequence[float | Exception]:
            await asyncio.sleep(latency_s)
            self.most_under_way = max(self.most_under_way, self.batcher.stats.under_way)
            return items

        self.batcher: MicroBatcher[float, float] = MicroBatcher(
            throttled(run, Throttle(capacity)), max_requests=16, lanes=8, max_queued=512, run_s=0.25, wait_share=0.5,
            quality=quality,
        )  # fmt: skip
        self.stays: list[float] = []
        self.refusals: list[tuple[float, ProblemError]] = []
        self.late = 0

    async def ask(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self.batcher.submit(began, key="r", leave_by_s=began + BUDGET_S)
            self.stays.append(loop.time() - began)
        except ProblemError as refusal:
            self.refusals.append((loop.time() - began, refusal))
        except TimeoutError:
            self.late += 1

    async def arrive(self, rate: float, seconds: float) -> None:
        tasks = []
        for _ in range(int(rate * seconds)):
            tasks.append(asyncio.create_task(self.ask()))
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*tasks)


def simulated(spike: Spike, *loads: tuple[float, float]) -> Spike:
    async def run() -> None:
        for rate, seconds in loads:
            await spike.arrive(rate, seconds)

    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(run())
    return spike


def test_ten_times_the_capacity_loses_little_of_it() -> None:
    spike = simulated(Spike(60), (600, 30))
    assert len(spike.stays) >= 0.9 * 60 * 30
    assert len(spike.stays) + len(spike.refusals) + spike.late == 600 * 30


@pytest.mark.parametrize(("latency_s", "least"), [(0.1, 0.9), (0.25, 0.8), (0.4, 0.35)])
def test_stages_that_take_long_but_can_do_much_at_once_are_used(latency_s: float, least: float) -> None:
    spike = simulated(Spike(60, latency_s=latency_s), (600, 20))
    assert len(spike.stays) >= least * 60 * 20


def test_everybody_is_answered_within_the_deadline() -> None:
    spike = simulated(Spike(60), (600, 10))
    assert max(spike.stays) <= BUDGET_S
    assert max(stay for stay, _ in spike.refusals) <= BUDGET_S
    assert spike.late <= 0.01 * 6_000


def test_nearly_all_refusals_are_said_at_once_and_say_when_to_come_back() -> None:
    spike = simulated(Spike(60), (600, 10))
    at_once = sum(stay == 0 for stay, _ in spike.refusals)
    assert at_once >= 0.95 * len(spike.refusals)
    assert {refusal.problem.status for _, refusal in spike.refusals} == {503}
    assert all(int(refusal.headers["Retry-After"]) >= 1 for _, refusal in spike.refusals)


def test_below_capacity_nobody_is_refused() -> None:
    spike = simulated(Spike(60), (45, 30))
    assert (spike.refusals, spike.late) == ([], 0)


def test_after_a_spike_nobody_is_refused_any_more() -> None:
    spike = Spike(60)
    simulated(spike, (600, 10), (0.5, 6))
    refused, late = len(spike.refusals), spike.late
    simulated(spike, (45, 20))
    assert (len(spike.refusals), spike.late) == (refused, late)


def test_fast_stages_are_not_held_back() -> None:
    spike = simulated(Spike(2_000), (4_000, 2))
    assert len(spike.stays) >= 0.9 * 2_000 * 2
    assert spike.most_under_way == 8 * 16


def test_overload_narrows_before_anybody_is_refused() -> None:
    quality = Quality(QualitySettings(), BUDGET_S * 1000)
    spike = Spike(60, quality=quality)
    narrowed_at = refused_at = None

    async def watch() -> None:
        nonlocal narrowed_at, refused_at
        while refused_at is None or narrowed_at is None:
            now = asyncio.get_running_loop().time()
            if narrowed_at is None and quality.factor(now, busy=True) < 1:
                narrowed_at = now
            if refused_at is None and spike.refusals:
                refused_at = now
            await asyncio.sleep(0.01)

    async def run() -> None:
        await asyncio.gather(spike.arrive(75, 30), watch())

    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(run())
    assert narrowed_at is not None
    assert refused_at is not None
    assert narrowed_at < refused_at


@pytest.mark.parametrize("capacity", [5.0, 60.0])
def test_the_set_capacity_is_what_is_done(capacity: float) -> None:
    spike = simulated(Spike(capacity), (capacity * 3, 20))
    assert len(spike.stays) == pytest.approx(capacity * 20, rel=0.25)


class Standstill:
    """A stage that answers at once, but not from `dies_s` to `returns_s`: what came then waits for its return."""

    def __init__(self, dies_s: float, returns_s: float, *, places: int | None = 24) -> None:
        self.most_held = 0
        self.refusals: list[tuple[float, ProblemError]] = []

        async def run(items: Sequence[float]) -> Sequence[float | Exception]:
            now = asyncio.get_running_loop().time() - self.began
            await asyncio.sleep(returns_s - now if dies_s <= now < returns_s else 0.02)
            return items

        self.batcher: MicroBatcher[float, float] = MicroBatcher(
            run, max_requests=8, lanes=2, max_queued=512, run_s=0.25, wait_share=0.7, places=places
        )

    async def ask(self) -> None:
        now = asyncio.get_running_loop().time()
        try:
            await self.batcher.submit(now, key="r", leave_by_s=now + 5.0)
        except ProblemError as refusal:
            self.refusals.append((now - self.began, refusal))

    async def arrive(self, rate: float, seconds: float) -> None:
        self.began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(int(rate * seconds)):
                tasks.create_task(self.ask())
                await asyncio.sleep(1 / rate)
                self.most_held = max(self.most_held, self.batcher.stats.under_way + self.batcher.stats.queued)


def stood_still(still: Standstill, seconds: float) -> Standstill:
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(still.arrive(60, seconds))
    return still


def test_a_surface_that_stands_still_holds_only_its_places() -> None:
    assert stood_still(Standstill(1.0, 4.0), 6.0).most_held <= 60 * 0.5 + 24
    assert stood_still(Standstill(1.0, 4.0, places=None), 6.0).most_held >= 150


def test_whoever_is_refused_while_nothing_goes_on_is_told_to_come_back_soon() -> None:
    refusals = stood_still(Standstill(1.0, 4.0), 6.0).refusals
    assert refusals
    assert {refusal.headers["Retry-After"] for _, refusal in refusals} == {"1"}


def test_after_a_standstill_nobody_is_refused_for_how_slow_it_was() -> None:
    assert max(at for at, _ in stood_still(Standstill(1.0, 4.0), 6.0).refusals) < 4.0


async def test_calls_whose_client_left_are_told_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    counted: list[str] = []
    monkeypatch.setattr(calls, "count", lambda name, **labels: counted.append(labels["status"]))
    began = asyncio.Event()

    async def handle(incoming: Incoming) -> Response:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    call = Call("POST", "/v1/decide", "", handle, None, DecideRequest, None, 1_000)
    app = CallsApp()
    bodies = Bodies(most_arriving=9, most_bytes=1 << 20, arrive_s=1.0)
    add_calls(
        app, [call], KeyRing(None), bodies=bodies, tell=lambda *said: told.append(said[2]), refusals=RefusalPace(200, 0.5)
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        asked = asyncio.create_task(client.post("/v1/decide", json={"user": "u"}))
        await began.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert (told, counted) == ([499], ["499"])
    assert bodies.bytes == 0


async def test_whoever_is_refused_anyway_is_refused_before_the_body_is_read() -> None:
    refusing = True

    def gate() -> None:
        if refusing:
            raise overloaded("many are waiting", retry_after_s=7)

    async def handle(incoming: Incoming) -> Response:
        return json_answer({"user": incoming.body.user})

    app = CallsApp()
    call = Call("POST", "/v1/decide", "", handle, None, DecideRequest, None, 1_000, gate=gate)
    add_calls(
        app,
        [call],
        KeyRing(None),
        bodies=Bodies(most_arriving=9, most_bytes=1 << 20, arrive_s=1.0),
        tell=call_log("none"),
        refusals=RefusalPace(200, 0.5),
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        refused = await client.post("/v1/decide", content=b"no JSON at all")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "7")
        assert refused.headers["content-type"] == "application/problem+json"
        refusing = False
        assert (await client.post("/v1/decide", content=b"no JSON at all")).status_code == 400
        assert (await client.post("/v1/decide", json={"user": "u"})).json() == {"user": "u"}
