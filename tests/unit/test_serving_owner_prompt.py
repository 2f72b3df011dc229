"""What the state owner's event loop takes up itself: looks and commits, without a thread in between."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import InvalidInput, LedgerUnavailable, OutcomeUnknown
from serve_app.ledger.columns import CommitStatus
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import PromptLedger, UserChanges
from serve_app.ledger.sqlite import SqliteLedger
from serve_app.serving.board import Board
from serve_app.serving.owner import StateOwner
from tests.unit.ledger_support import plan, u64


@pytest.fixture
def ledger(tmp_path: Path) -> SqliteLedger:
    return SqliteLedger(tmp_path / "ledger.sqlite", durability="process", timeout_s=5.0)


def owner_of(ledger) -> StateOwner:
    return StateOwner(ledger, Board("r", "p"), threads=1)


def test_a_look_sees_what_was_committed_and_learned(ledger: SqliteLedger) -> None:
    owner = owner_of(ledger)

    async def use() -> None:
        first = await owner.call("look", u64(1, 2), 0)
        assert (first.head, first.changes, first.view.versions.tolist()) == (0, [], [0, 0])
        assert (await owner.call("commit", plan([2], [0], [10]))).status.tolist() == [CommitStatus.committed]
        seq = await owner.call("append_catalogue_change", "availability", b"{}")
        second = await owner.call("look", u64(1, 2), 0)
        assert (second.head, [one.seq for one in second.changes]) == (seq, [seq])
        assert second.view.versions.tolist() == [0, 1]
        assert len(second.view.histories.entries) == 1
        assert (await owner.call("look", u64(2), seq)).changes == []

    asyncio.run(use())
    owner.close()


def test_what_is_live_is_the_same_from_the_loop_and_from_a_thread(ledger: SqliteLedger) -> None:
    owner = owner_of(ledger)
    ledger.record_events(u64(1, 2, 1), u64(7, 8, 9), np.array([1, 2, 3]))
    ledger.put_user(1, UserChanges(region="KR"))

    async def use() -> None:
        prompt = await owner.live(u64(1, 3, 2), 0)
        threaded = owner._live(u64(1, 3, 2), 0)
        assert prompt.recents.items.tolist() == threaded.recents.items.tolist() == [7, 9, 8]
        assert prompt.recents.offsets.tolist() == threaded.recents.offsets.tolist()
        assert prompt.state.region.tolist() == threaded.state.region.tolist()
        assert (prompt.head, prompt.changes) == (threaded.head, threaded.changes) == (0, [])
        seq = await owner.call("append_catalogue_change", "availability", b"{}")
        behind = await owner.live(u64(1), 0)
        assert (behind.head, [one.seq for one in behind.changes]) == (seq, [seq])

    asyncio.run(use())
    owner.close()


def test_writes_that_wait_for_those_before_them_are_counted(ledger: SqliteLedger) -> None:
    gate, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert gate.wait(30)

    held = ledger._group.begin(hold)
    assert begun.wait(30)
    waiting = [ledger._group.begin(lambda: None) for _ in range(3)]
    assert ledger.queued == 3
    gate.set()
    for one in (held, *waiting):
        one.result(30)
    assert ledger.queued == 0
    ledger.close()


def test_other_ledgers_are_looked_at_in_a_thread() -> None:
    assert not isinstance(MemoryLedger(), PromptLedger)
    owner = owner_of(MemoryLedger())
    seen = asyncio.run(owner.call("look", u64(7), 0))
    assert seen.view.users.tolist() == [7]
    owner.close()


def test_a_look_does_not_wait_for_a_writer_in_the_loop(ledger: SqliteLedger) -> None:
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with ledger._lock:
            held.set()
            free.wait(60)

    writer = threading.Thread(target=hold)
    writer.start()
    held.wait(60)
    assert ledger.read_at_once(u64(1)) is None
    free.set()
    writer.join()
    view = ledger.read_at_once(u64(1))
    assert view is not None
    assert view.versions.tolist() == [0]
    ledger.close()
    assert ledger.read_at_once(u64(1)) is None


def test_a_commit_the_loop_makes_says_what_commit_says(ledger: SqliteLedger) -> None:
    async def use() -> None:
        assert (await ledger.commit_soon(plan([1], [0], [10]))).status.tolist() == [CommitStatus.committed]
        assert (await ledger.commit_soon(plan([1], [0], [10]))).status.tolist() == [CommitStatus.conflict]
        with pytest.raises(InvalidInput):
            await ledger.commit_soon(plan([1, 1], [1, 1], [10, 11]))

    asyncio.run(use())
    ledger.close()
    with pytest.raises(LedgerUnavailable):
        asyncio.run(ledger.commit_soon(plan([1], [1], [10])))


def test_a_commit_that_never_began_is_unavailable_and_one_under_way_unknown(ledger: SqliteLedger) -> None:
    begun, free = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        free.wait(60)

    async def use() -> None:
        blocking = ledger._group.begin(block)
        await asyncio.to_thread(begun.wait, 60)
        ledger._group.timeout_s = 0.02
        with pytest.raises(LedgerUnavailable):  # behind what blocks
            await ledger.commit_soon(plan([1], [0], [10]))
        assert isinstance(ledger._group.overdue(blocking), OutcomeUnknown)
        ledger._group.timeout_s = 60.0
        left = asyncio.create_task(ledger.commit_soon(plan([2], [0], [10])))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        free.set()
        assert (await ledger.commit_soon(plan([3], [0], [10]))).status.tolist() == [CommitStatus.committed]

    asyncio.run(use())
    assert ledger.read(np.array([1, 2, 3], np.uint64)).versions.tolist() == [0, 0, 1]
    ledger.close()
