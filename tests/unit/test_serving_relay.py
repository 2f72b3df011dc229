"""Legs run by one thread, and what overtakes a leg that is late."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_app.serving.relay import Baton, Detour, Limit, Overtaken, relayed

LATE_S, NEVER_S = 0.02, 600.0


def run(first, *detours: Detour[str]) -> str:
    with ThreadPoolExecutor(2) as pool:
        return asyncio.run(asyncio.wait_for(relayed(pool, first, detours), 60))


def test_without_delay_one_thread_does_every_leg() -> None:
    threads: list[int] = []

    def first(baton: Baton) -> str:
        for leg in (1, 2):
            threads.append(threading.get_ident())
            baton.past(leg)
        return "first"

    assert run(first, Detour(1, NEVER_S, lambda _: "instead"), Detour(2, NEVER_S, lambda _: "instead")) == "first"
    assert len(set(threads)) == 1


def test_a_leg_that_hangs_is_overtaken_and_stops_at_its_end() -> None:
    released, stopped = threading.Event(), threading.Event()

    def first(baton: Baton) -> str:
        released.wait(60)
        try:
            baton.past(1)
        except Overtaken:
            stopped.set()
            raise
        return "first"

    def instead(baton: Baton) -> str:
        baton.past(2)
        released.set()
        assert stopped.wait(60)
        return "instead"

    assert run(first, Detour(1, LATE_S, instead)) == "instead"


def test_a_leg_that_has_ended_is_not_overtaken_later() -> None:
    begun, overdue = threading.Event(), threading.Event()

    def first(baton: Baton) -> str:
        baton.past(1)
        begun.set()
        overdue.wait(60)
        return "first"

    async def both() -> str:
        with ThreadPoolExecutor(2) as pool:
            work = asyncio.create_task(relayed(pool, first, [Detour(1, LATE_S, lambda _: "instead")]))
            await asyncio.to_thread(begun.wait, 60)
            asyncio.get_running_loop().call_later(3 * LATE_S, overdue.set)  # behind the detour's timer
            return await work

    assert asyncio.run(both()) == "first"


def test_a_detour_that_is_late_itself_is_overtaken_by_the_next() -> None:
    released = threading.Event()

    def hangs(baton: Baton) -> str:
        released.wait(60)
        baton.past(2)
        return "hangs"

    def last(_: Baton) -> str:
        released.set()
        return "last"

    with ThreadPoolExecutor(3) as pool:
        assert asyncio.run(relayed(pool, hangs, [Detour(1, LATE_S, hangs), Detour(2, 2 * LATE_S, last)])) == "last"


def test_what_a_leg_raises_is_raised() -> None:
    def first(_: Baton) -> str:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run(first, Detour(1, NEVER_S, lambda _: "instead"))


def test_where_nobody_waits_any_more_the_work_stops_at_the_end_of_its_leg() -> None:
    begun, left, stopped = threading.Event(), threading.Event(), threading.Event()

    def first(baton: Baton) -> str:
        begun.set()
        left.wait(60)
        try:
            baton.past(1)
        except Overtaken:
            stopped.set()
            raise
        return "first"

    async def leave() -> None:
        with ThreadPoolExecutor(1) as pool:
            work = asyncio.create_task(relayed(pool, first, []))
            await asyncio.to_thread(begun.wait, 60)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            left.set()

    asyncio.run(leave())
    assert stopped.is_set()


def test_a_limit_is_heard_of_though_no_thread_is_free() -> None:
    released = threading.Event()

    async def main(pool: ThreadPoolExecutor) -> None:
        pool.submit(released.wait, 60)
        with pytest.raises(TimeoutError):
            await relayed(pool, lambda _: "first", (), [Limit(1, LATE_S)])

    with ThreadPoolExecutor(1) as pool:
        try:
            asyncio.run(main(pool))
        finally:
            released.set()


def test_a_later_leg_has_its_time_from_the_end_of_the_one_before() -> None:
    second, released = threading.Event(), threading.Event()

    def first(baton: Baton) -> str:
        assert not second.wait(5 * LATE_S)  # longer than the second leg may take: its clock has not begun
        baton.past(1)
        released.wait(60)
        baton.past(2)
        return "first"

    def instead(_: Baton) -> str:
        released.set()
        return "instead"

    with ThreadPoolExecutor(2) as pool:
        made = asyncio.run(relayed(pool, first, [Detour(2, LATE_S, instead, since=1)], [Limit(1, NEVER_S)]))
    assert made == "instead"


def test_what_is_left_of_the_whole_bounds_every_leg() -> None:
    released = threading.Event()

    def first(baton: Baton) -> str:
        baton.past(1)
        released.wait(60)
        return "first"

    async def main(pool: ThreadPoolExecutor) -> None:
        with pytest.raises(TimeoutError):
            await relayed(pool, first, (), [Limit(2, NEVER_S, since=1, latest_s=LATE_S)])

    with ThreadPoolExecutor(1) as pool:
        try:
            asyncio.run(main(pool))
        finally:
            released.set()
