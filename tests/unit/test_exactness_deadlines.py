"""Nobody waits for ever: a decision that hangs is answered at its deadline and goes on; a lost poll is asked again."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from serve_app.errors import HindcastError, NotReady, OutcomeUnknown
from serve_app.ingress.admission import Admitted
from serve_app.ingress.deadlines import by_deadline
from serve_app.serving import follower
from serve_app.serving.board import Board, Orders, Report
from serve_app.serving.follower import Follower
from serve_app.serving.versions import VersionStore


def request(seconds: float, *, dry: bool = False) -> Admitted:
    return Admitted(1, 0, 0, asyncio.get_running_loop().time() + seconds, "r", "p", dry)


async def test_work_done_in_time_is_the_answer() -> None:
    async def work() -> int:
        return 7

    assert await by_deadline(work(), request(60)) == 7


async def test_an_error_of_the_work_is_passed_on_even_a_timeout_of_its_own() -> None:
    async def work() -> int:
        raise TimeoutError("of a part")

    with pytest.raises(TimeoutError, match="of a part"):
        await by_deadline(work(), request(60))


@pytest.mark.parametrize(("dry", "kind"), [(False, OutcomeUnknown), (True, NotReady)])
async def test_work_that_hangs_is_answered_at_the_deadline_and_goes_on(dry: bool, kind: type[HindcastError]) -> None:
    go_on, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        done.set()

    with pytest.raises(kind):
        await by_deadline(work(), replace(request(0.01), dry=dry))
    assert not done.is_set()
    go_on.set()
    await asyncio.wait_for(done.wait(), 5)


async def test_a_poll_that_never_comes_back_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "_POLL_LIMIT_S", 0.01)
    monkeypatch.setattr(follower, "_RETRY_S", 0.0)
    board, asked = Board("r", "p"), 0

    async def poll(report: Report, after_epoch: int) -> Orders:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()
        return await board.poll(report, after_epoch, wait_s=0.0)

    stores = {kind: VersionStore(kind, str) for kind in ("release", "policy")}
    with ThreadPoolExecutor(1) as pool:
        one = Follower("ingress-1", "ingress", stores, poll, pool, admits=True)  # type: ignore[arg-type]
        await asyncio.wait_for(one.start(), 5)
        await one.stop()
    assert asked >= 2
    assert [report.replica for report in board.replicas()] == ["ingress-1"]
