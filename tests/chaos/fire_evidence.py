"""The three accounts of a run, read after the server has stopped: answers as clients kept them, the ledger, the log."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.ledger.columns import HistoryFlag
from serve_app.ledger.protocol import Ledger
from serve_app.ledger.record import unpack_record
from serve_app.log.compaction import compact
from serve_app.log.copying import copy_records
from serve_app.log.reader import read_log
from serve_app.vocabulary import Action
from tests.chaos.exactness_checker import Evidence, Kept, Logged, Lost, Person, Send, Use
from tests.chaos.exactness_rules import rules_of
from tests.chaos.fire_clients import Book

_SLACK_US = 5_000_000
"""How far the clock that stamped a decision may be off the clients' clock: the skew, and time in queues."""


def gather(data: Path, ledger: Ledger, people: dict[int, Person], book: Book) -> Evidence:
    """Everything the checker needs. `people`: as they were before the run. What the journal lacks, because a process died
    between its commit and its answer, is copied from the ledger first, as the server's upkeep does."""
    read_ledger(ledger, people)
    compact(data)
    copy_records(data, ledger, now_us=time.time_ns() // 1000)
    rules = {
        path.stem: rules_of(path.stem, json.loads(path.read_text()))
        for path in (data / "policies").glob("*.json")
        if json.loads(path.read_text())["name"] != "default"
    }
    lost = [Lost(one.user, one.since_us - _SLACK_US, one.until_us + _SLACK_US) for one in book.lost]
    return Evidence(rules, people, book.answers, lost, read_decisions(data, set(people)), book.owned)


def read_ledger(ledger: Ledger, people: dict[int, Person]) -> None:
    """Versions, histories and records of `people`, as they are now."""
    users = np.array(sorted(people), np.uint64)
    view = ledger.read(users)
    ends = view.histories.offsets.tolist()
    for row, user in enumerate(users.tolist()):
        people[user].version = int(view.versions[row])
        people[user].uses = [use_of(entry) for entry in view.histories.entries[ends[row] : ends[row + 1]]]
    for stored in ledger.pending_records(10**7):
        if stored.user in people:
            people[stored.user].kept.append(kept_of(stored.version, stored.record))


def use_of(entry: Any) -> Use:
    """One history entry as plain numbers."""
    said = {name: entry[name].item() for name in entry.dtype.names}
    flags = said.pop("flags")
    return Use(**said, refunded=bool(flags & HistoryFlag.refunded), uncounted=bool(flags & HistoryFlag.uncounted))


def kept_of(version: int, record: bytes) -> Kept:
    """One decision record as plain numbers."""
    found = unpack_record(record)
    request, rows = found["request"], found["candidates"]
    chosen = [at for at, action in enumerate(rows["action"]) if action == Action.send]
    sends = sorted((int(rows["slot"][at]), int(rows["campaign"][at]), int(rows["channel"][at])) for at in chosen)
    return Kept(
        request_id=int(request["request_id"]),
        version=version,
        read_version=int(request["read_version"]),
        decided_at=int(request["decided_at"]),
        policy=found["meta"]["policy_revisions"][0],
        action=Action(int(request["action"])).name,
        sends=tuple(Send(*one) for one in sends),
    )


def read_decisions(data: Path, users: set[int]) -> list[Logged]:
    """Rows of the log's decisions that belong to `users`."""
    names = ("user", "request_id", "slot", "granted", "commit_version", "idempotency_key")
    table = read_log(data, "decisions", columns=names)
    columns = [table[name].to_pylist() for name in names]
    return [Logged(*row[:5], row[5] or b"") for row in zip(*columns, strict=True) if row[0] in users]
