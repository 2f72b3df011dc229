"""Faults that tests plant, only where they may be; and what keeps a part that hangs from holding up the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from numba.core.compiler_lock import global_compiler_lock

from serve_app.errors import HindcastError, InvalidInput, ResourceShortage
from serve_app.ingress.batcher import MicroBatcher
from serve_app.ingress.deadlines import leaving_by, left_s, within
from serve_app.ingress.problems import ProblemError
from serve_app.log.journal import Journal
from serve_app.serving import faults, meters
from serve_app.serving.faults import InjectedFault, Point, install, plant, strike
from serve_app.serving.journalling import JournalHost
from serve_app.serving.lost import called_off
from serve_app.serving.threads import WorkThreads
from serve_app.settings import EXPENDABLE, load_settings

ROWS: dict[str, Any] = {"events": "one frame"}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "faults.json"
    install(path)
    try:
        yield path
    finally:
        install(None)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_faults_need_loopback_and_a_folder_that_nobody_needs(tmp_path: Path, host: str) -> None:
    wanted: dict[str, Any] = {"data": tmp_path, "testing": {"faults": tmp_path / "f"}, "http": {"host": host}}
    wanted["security"] = {"keys_file": tmp_path / "keys"}
    with pytest.raises(InvalidInput, match="for tests only"):
        load_settings(**wanted)
    (tmp_path / EXPENDABLE).touch()
    if host == "127.0.0.1":
        assert load_settings(**wanted).testing.faults == tmp_path / "f"
    else:
        with pytest.raises(InvalidInput, match=r"testing\.faults"):
            load_settings(**wanted)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nowhere": {"do": "hang"}}, {"journal": {"do": "explode"}}, {"journal": {"do": "hang", "for_ms": 3}},
        {"journal": {"do": "delay"}}, {"journal": {"do": "hang", "delay_ms": 3}}, {"journal": {"do": "hang", "share": 0}},
        {"ranking": {"do": "hang", "surface": "shelf"}}, [],
    ],
)  # fmt: skip
def test_a_fault_that_is_not_understood_is_refused_at_start_and_changes_nothing_later(
    tmp_path: Path, file: Path, wrong: Any
) -> None:
    other = tmp_path / "other.json"
    other.write_text(str(wrong).replace("'", '"'))
    with pytest.raises(InvalidInput, match="faults"):
        install(other)
    install(file)
    plant(file, {"journal": {"do": "error"}})
    with pytest.raises(InjectedFault):
        strike(Point.journal)
    file.write_text(str(wrong).replace("'", '"'))
    with pytest.raises(InjectedFault):
        strike(Point.journal)


def test_faults_come_and_go_with_their_file(file: Path) -> None:
    strike(Point.ranking)
    plant(file, {"ranking": {"do": "error"}})
    with pytest.raises(InjectedFault, match="ranking"):
        strike(Point.ranking)
    strike(Point.features)
    plant(file, {})
    strike(Point.ranking)
    plant(file, {"ranking": {"do": "error"}})
    file.unlink()
    strike(Point.ranking)


def test_a_share_is_evenly_spread(file: Path) -> None:
    plant(file, {"journal": {"do": "error", "share": 0.25}})
    struck = []
    for n in range(12):
        try:
            strike(Point.journal)
        except InjectedFault:
            struck.append(n)
    assert struck == [3, 7, 11]


def test_what_hangs_goes_on_when_its_fault_is_taken_away(file: Path) -> None:
    plant(file, {"search": {"do": "hang"}, "journal": {"do": "error"}})
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(strike, Point.search)
        with pytest.raises(InjectedFault):
            strike(Point.journal)
        assert not done.done()
        plant(file, {"journal": {"do": "error"}})
        done.result(30)


def test_a_function_is_itself_where_no_faults_are_planted() -> None:
    assert not faults.planted()
    assert faults.before(Point.journal, len) is len


def test_a_thread_that_hangs_fails_the_check_until_it_ends() -> None:
    go_on = threading.Event()
    with WorkThreads(2, "test", stuck_s=0.01) as pool:
        pool.check()
        stuck = pool.submit(go_on.wait, 60)
        while pool.turns.longest_s() <= 0.01:
            pool.submit(int).result(30)
        with pytest.raises(HindcastError, match="test thread"):
            pool.check()
        go_on.set()
        assert stuck.result(30)
        while pool.turns.longest_s():
            pool.submit(int).result(30)
        pool.check()


def test_a_thread_that_compiles_is_not_stuck() -> None:
    go_on, held = threading.Event(), threading.Event()

    def compile_something() -> None:
        with global_compiler_lock:
            held.set()
            assert go_on.wait(60)

    with WorkThreads(2, "test", stuck_s=0.01) as pool:
        done = pool.submit(compile_something)
        assert held.wait(60)
        while pool.turns.longest_s() <= 0.01:
            pool.submit(int).result(30)
        pool.check()
        go_on.set()
        done.result(30)


class Counted:
    """Counts fall-backs by stage."""

    def __init__(self) -> None:
        self.degraded: list[str] = []

    def add(self, name: str, amount: float, tags: Any) -> None:
        if name == "hindcast_degraded":
            self.degraded += [tags["stage"]] * int(amount)

    def observe(self, name: str, value: float, tags: Any) -> None:
        del name, value, tags

    set = observe


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    sink = Counted()
    monkeypatch.setattr(meters, "_sinks", [sink])
    return sink


class Disk(Journal):
    """A journal whose disk does what a test says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "test")
        self.go_on, self.begun, self.error = threading.Event(), 0, None
        self.go_on.set()

    def append(self, rows: Any) -> None:
        del rows
        self.begun += 1
        assert self.go_on.wait(60)
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [ResourceShortage("full"), OSError("gone"), RuntimeError("unforeseen")])
def test_a_journal_that_fails_is_said_and_counted_whatever_it_raises(
    tmp_path: Path, counted: Counted, error: Exception
) -> None:
    disk = Disk(tmp_path)
    disk.error = error
    host = JournalHost(disk, 60_000)
    assert not host.write(ROWS)
    assert counted.degraded == ["log"]
    disk.error = None
    assert host.write(ROWS)
    assert counted.degraded == ["log"]


def test_a_journal_that_hangs_is_not_asked_again_and_again_and_recovers(tmp_path: Path, counted: Counted) -> None:
    disk = Disk(tmp_path)
    host = JournalHost(disk, 20)
    disk.go_on.clear()
    said = 0
    while host._hangs(0.02) is None:
        assert not host.write(ROWS)
        said += 1
    begun = len(host._waiting)
    for _ in range(1_000):
        assert not host.write(ROWS)
    assert len(host._waiting) == begun
    assert len(counted.degraded) == said + 1_000
    disk.go_on.set()
    while host._waiting:
        threading.Event().wait(0.005)
    assert host.write(ROWS, budget_s=60)
    host.close()


async def test_stages_share_what_is_left_of_the_request_and_leave_some_for_the_fall_backs() -> None:
    loop = asyncio.get_running_loop()
    with leaving_by(loop.time() + 0.02):
        with pytest.raises(TimeoutError):
            async with within(3_600):
                await asyncio.Event().wait()
        assert left_s() <= 0
    with leaving_by(loop.time() + 3_600):
        with pytest.raises(TimeoutError):
            async with within(3_600, spare_s=3_599.99):
                await asyncio.Event().wait()
        assert left_s() > 3_000
    async with within(60):
        assert left_s() == float("inf")


async def test_a_request_whose_batch_hangs_leaves_at_its_own_deadline_and_the_batch_goes_on() -> None:
    go_on, ended = asyncio.Event(), []

    async def run(items: Any) -> list[int]:
        await go_on.wait()
        ended.extend(items)
        return list(items)

    batcher: MicroBatcher[int, int] = MicroBatcher(run, max_requests=8, lanes=1, max_queued=9)
    loop = asyncio.get_running_loop()
    stays = asyncio.create_task(batcher.submit(1, key="k", leave_by_s=loop.time() + 60))
    with pytest.raises(TimeoutError):
        await batcher.submit(2, key="k", leave_by_s=loop.time() + 0.2)
    with pytest.raises(ProblemError, match="waited its turn"):
        await batcher.submit(3, key="k", leave_by_s=loop.time() + 0.01)
    assert batcher.stats.queued == 0
    go_on.set()
    assert await stays == 1
    await batcher.drain()
    assert sorted(ended) == [1, 2], "what was begun was not cancelled, what only waited was never begun"
    assert (batcher.stats.late, batcher.stats.expired, batcher.stats.abandoned) == (1, 1, 0)
    assert batcher.stats.in_flight == 0


async def test_callers_hear_of_a_batch_that_was_cut_short() -> None:
    async def run(items: Any) -> list[int]:
        raise asyncio.CancelledError

    batcher: MicroBatcher[int, int] = MicroBatcher(run, max_requests=8, lanes=1, max_queued=9)
    with pytest.raises(TimeoutError, match="cut short"):
        await asyncio.wait_for(batcher.submit(1, key="k", leave_by_s=asyncio.get_running_loop().time() + 600), 60)
    assert batcher.stats.in_flight == 0


async def test_a_call_that_was_cut_short_is_not_our_own_end() -> None:
    async def work(error: BaseException) -> bool:
        try:
            raise error
        except (RuntimeError, asyncio.CancelledError) as raised:
            return called_off(raised)

    assert not await work(RuntimeError())
    assert not await asyncio.create_task(work(asyncio.CancelledError()))

    async def waiting() -> bool:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as raised:
            return called_off(raised)
        return False

    task = asyncio.create_task(waiting())
    await asyncio.sleep(0)
    task.cancel()
    assert await task
