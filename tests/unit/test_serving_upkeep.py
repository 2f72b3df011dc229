"""The server's upkeep: through the owner's calls, page by page, without Ray."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import LedgerUnavailable
from serve_app.ledger.memory import MemoryLedger
from serve_app.log.reader import read_log
from serve_app.log.snapshot import writer_lock
from serve_app.log.upkeep import upkeep_answer
from serve_app.log.writer import DAY_US
from serve_app.serving.assemble import bridged
from serve_app.serving.board import Board
from serve_app.serving.owner import StateOwner
from serve_app.serving.snapshot_pages import SnapshotPages
from serve_app.serving.upkeeping import Upkeeper
from tests.unit.decision_support import at, compiled
from tests.unit.truth_support import asked, decide_on, user_of

NOON = at("2026-03-10T12:00:00")


def ledger_of(users: int) -> MemoryLedger:
    ledger, policy = MemoryLedger(), compiled()
    decide_on(ledger, policy, asked([user_of(n) for n in range(users)], [policy], now=NOON))
    return ledger


async def test_upkeep_reaches_the_ledger_through_its_owner(tmp_path: Path) -> None:
    ledger = ledger_of(30)
    owner = StateOwner(ledger, Board("r", "p"))
    pool = ThreadPoolExecutor(2)
    client = bridged(owner.call, asyncio.get_running_loop(), 30)
    keeper = Upkeeper(tmp_path, client, pool, every_s=0.01, clock=lambda: NOON + DAY_US)
    said = upkeep_answer(await keeper.once())
    assert (said["records_copied"], said["snapshot_users"]) == (30, 30)
    assert ledger.pending_records(1) == []
    assert len(read_log(tmp_path, "decisions")) == len(read_log(tmp_path, "ledger_snapshot")) == 30
    pool.shutdown()


async def test_a_log_that_somebody_else_writes_is_left_for_the_next_turn(tmp_path: Path) -> None:
    ledger = ledger_of(3)
    pool = ThreadPoolExecutor(2)
    keeper = Upkeeper(tmp_path, ledger, pool, every_s=0.01, clock=lambda: NOON)
    with writer_lock(tmp_path):
        task = asyncio.create_task(keeper.run())
        await asyncio.sleep(0.1)
        assert not task.done()
        assert len(ledger.pending_records(9)) == 3

    async def copied() -> None:
        while ledger.pending_records(1):
            await asyncio.sleep(0.01)

    await asyncio.wait_for(copied(), 30)
    task.cancel()
    pool.shutdown()


def test_snapshots_come_in_pages_and_a_forgotten_one_says_so() -> None:
    pages = SnapshotPages(ledger_of(10))
    token = pages.open(NOON, 4)
    sizes = []
    while (page := pages.next(token)) is not None:
        sizes.append(len(page.users))
    assert sizes == [4, 4, 2]
    with pytest.raises(LedgerUnavailable, match="begin anew"):
        pages.next(token)
    first = pages.open(NOON, 4)
    for _ in range(4):
        pages.open(NOON, 4)
    with pytest.raises(LedgerUnavailable):
        pages.next(first)


def test_a_client_s_snapshot_is_the_owner_s() -> None:
    async def run() -> tuple[list[int], list[int]]:
        ledger = ledger_of(10)
        client = bridged(StateOwner(ledger, Board("r", "p")).call, asyncio.get_running_loop(), 30)
        views = await asyncio.to_thread(lambda: list(client.snapshot(NOON, 3)))
        return np.concatenate([one.users for one in views]).tolist(), [len(one.users) for one in views]

    users, sizes = asyncio.run(run())
    assert users == sorted(user_of(n) for n in range(10))
    assert sizes == [3, 3, 3, 1]
