"""The micro-batcher: no wait when idle, company under load, one release a batch, nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from serve_app.ingress.batcher import MicroBatcher
from serve_app.ingress.problems import ProblemError


class Recorder:
    """Runs batches only when told to, and remembers them."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        await self.gate.wait()
        return [ValueError(str(item)) if item < 0 else item * 10 for item in items]


def later(seconds: float = 60.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def start(batcher: MicroBatcher[int, int], *items: int, key: str = "r1") -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(batcher.submit(item, key=key, leave_by_s=later())) for item in items]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_a_lone_request_leaves_at_once() -> None:
    run = Recorder()
    batcher = MicroBatcher(run, max_requests=8, lanes=2, max_queued=10)
    assert await batcher.submit(4, key="r1", leave_by_s=later()) == 40
    assert run.batches == [[4]]


async def test_arrivals_while_all_lanes_are_busy_leave_together_in_order() -> None:
    run = Recorder()
    run.gate.clear()
    batcher = MicroBatcher(run, max_requests=3, lanes=1, max_queued=10)
    first = await start(batcher, 1)
    rest = await start(batcher, 2, 3, 4, 5)
    assert run.batches == [[1]]
    run.gate.set()
    assert await asyncio.gather(*first, *rest) == [10, 20, 30, 40, 50]
    assert run.batches == [[1], [2, 3, 4], [5]]


async def test_a_batch_never_mixes_keys() -> None:
    run = Recorder()
    batcher = MicroBatcher(run, max_requests=8, lanes=1, max_queued=10)
    tasks = await start(batcher, 1, 2) + await start(batcher, 3, key="r2") + await start(batcher, 4)
    await asyncio.gather(*tasks)
    assert all(len({"r2" if item == 3 else "r1" for item in batch}) == 1 for batch in run.batches)


async def test_no_more_lanes_run_than_allowed() -> None:
    run = Recorder()
    run.gate.clear()
    batcher = MicroBatcher(run, max_requests=1, lanes=2, max_queued=10)
    tasks = await start(batcher, 1, 2, 3, 4)
    assert len(run.batches) == 2
    run.gate.set()
    await asyncio.gather(*tasks)
    assert batcher.stats.in_flight == 0


async def test_a_full_queue_refuses_with_retry_after() -> None:
    run = Recorder()
    run.gate.clear()
    batcher = MicroBatcher(run, max_requests=1, lanes=1, max_queued=1)
    tasks = await start(batcher, 1) + await start(batcher, 2)
    with pytest.raises(ProblemError) as refused:
        await batcher.submit(3, key="r1", leave_by_s=later())
    assert refused.value.problem.status == 503
    assert refused.value.headers["Retry-After"]
    run.gate.set()
    assert await asyncio.gather(*tasks) == [10, 20]


async def test_an_error_reaches_only_its_own_request() -> None:
    run = Recorder()
    run.gate.clear()
    batcher = MicroBatcher(run, max_requests=3, lanes=1, max_queued=9)
    first = await start(batcher, 9)
    tasks = await start(batcher, 1, -2, 3)
    run.gate.set()
    results = await asyncio.gather(*first, *tasks, return_exceptions=True)
    assert results[0] == 90
    assert results[1] == 10
    assert isinstance(results[2], ValueError)
    assert results[3] == 30


async def test_a_batch_that_fails_answers_everyone_and_frees_its_lane() -> None:
    async def broken(items: Sequence[int]) -> Sequence[int]:
        raise RuntimeError("stage down")

    batcher: MicroBatcher[int, int] = MicroBatcher(broken, max_requests=3, lanes=1, max_queued=9)
    results = await asyncio.gather(*await start(batcher, 1, 2), return_exceptions=True)
    assert [str(result) for result in results] == ["stage down", "stage down"]
    assert batcher.stats.in_flight == 0


async def test_a_client_that_left_is_not_served() -> None:
    run = Recorder()
    run.gate.clear()
    batcher = MicroBatcher(run, max_requests=2, lanes=1, max_queued=9)
    first = await start(batcher, 1)
    gone, stays = await start(batcher, 2, 3)
    gone.cancel()
    await asyncio.sleep(0)
    run.gate.set()
    assert await asyncio.gather(*first, stays) == [10, 30]
    assert run.batches == [[1], [3]]
    assert batcher.stats.abandoned == 1


async def test_a_request_whose_time_passed_in_the_queue_is_refused_unstarted() -> None:
    run = Recorder()
    run.gate.clear()
    batcher = MicroBatcher(run, max_requests=2, lanes=1, max_queued=9)
    first = await start(batcher, 1)
    late = asyncio.create_task(batcher.submit(2, key="r1", leave_by_s=asyncio.get_running_loop().time()))
    await asyncio.sleep(0)
    run.gate.set()
    await asyncio.gather(*first)
    with pytest.raises(ProblemError, match="time passed"):
        await late
    assert run.batches == [[1]]


async def test_drain_waits_for_batches_under_way() -> None:
    run = Recorder()
    run.gate.clear()
    batcher = MicroBatcher(run, max_requests=2, lanes=1, max_queued=9)
    tasks = await start(batcher, 1)
    asyncio.get_running_loop().call_soon(run.gate.set)
    await batcher.drain()
    assert await tasks[0] == 10


@pytest.mark.parametrize("busy", [0, 1])
async def test_a_burst_after_a_rest_is_taken_where_a_lane_is_free(busy: int) -> None:
    gate = asyncio.Event()

    async def run(items: Sequence[int]) -> Sequence[int]:
        if -1 in items:
            await gate.wait()
        return items

    batcher: MicroBatcher[int, int] = MicroBatcher(
        run, max_requests=32, lanes=2, max_queued=512, run_s=0.25, wait_share=0.4, places=24
    )
    slow = [asyncio.create_task(batcher.submit(-1, key="r", leave_by_s=later())) for _ in range(busy)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    batcher._moved_s = asyncio.get_running_loop().time() - 60
    answers = await asyncio.gather(*(batcher.submit(n, key="r", leave_by_s=later()) for n in range(48)))
    assert answers == list(range(48))
    gate.set()
    await asyncio.gather(*slow)


async def test_a_batch_runs_in_nobodys_context() -> None:
    caller: ContextVar[int | None] = ContextVar("caller", default=None)
    seen = []

    async def run(items: Sequence[int]) -> Sequence[int]:
        seen.append(caller.get())
        return items

    batcher: MicroBatcher[int, int] = MicroBatcher(run, max_requests=1, lanes=1, max_queued=10)

    async def call(number: int) -> None:
        caller.set(number)
        await batcher.submit(number, key="r", leave_by_s=later())

    await asyncio.gather(*(call(number) for number in range(3)))
    assert seen == [None, None, None]
