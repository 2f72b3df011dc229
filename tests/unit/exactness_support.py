"""Decide shells stepped by hand between read and commit, and what their runs tell the exactness checker.

Words: a *shell* is one thread that decides batches through `serve_app.decide`, as a Decision replica does. It parks before
every read and every commit; the *stepper* lets one parked shell go on at a time, in an order the test draws.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from serve_app.decide import DecidedBatch, DecideStatus, decide
from serve_app.ledger.columns import CommitPlan, CommitResult, LedgerView
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Ledger, PromptLedger, UserChanges
from serve_app.policy.compile import CompiledPolicy, compile_policy
from serve_app.policy.document import parse_policy
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import Action
from tests.chaos.exactness_checker import Answer, Evidence, Logged, Person, Send
from tests.chaos.exactness_rules import Rules, rules_of
from tests.chaos.fire_evidence import kept_of, read_ledger
from tests.chaos.fire_server import policy_document
from tests.unit.decision_support import HEADS, batch_of, candidate, request

ZONE = "Asia/Seoul"


class RacyLedger:
    """A ledger that reads, then writes, and never compares: whoever commits last believes what he read first."""

    def __init__(self, inner: Ledger) -> None:
        self._inner = inner
        self.settings = inner.settings

    def read(self, users: Any) -> LedgerView:
        """See Ledger."""
        return self._inner.read(users)

    def commit(self, plan: CommitPlan) -> CommitResult:
        """See Ledger: but for the comparison."""
        plan.read_versions = self._inner.read(plan.users).versions
        return self._inner.commit(plan)

    async def commit_soon(self, plan: CommitPlan) -> CommitResult:
        """See PromptLedger: but for the comparison."""
        plan.read_versions = self._inner.read(plan.users).versions
        return await cast(PromptLedger, self._inner).commit_soon(plan)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Steps:
    """A ledger whose shell parks before each read and commit."""

    def __init__(self, ledger: Ledger, shell: Shell) -> None:
        self._ledger, self._shell = ledger, shell
        self.settings = ledger.settings

    def read(self, users: Any) -> LedgerView:
        self._shell.park()
        return self._ledger.read(users)

    def commit(self, plan: CommitPlan) -> CommitResult:
        self._shell.park()
        return self._ledger.commit(plan)


@dataclass
class Job:
    """One batch: rows for `request`, a key ("" for none) per row, the policy by name."""

    rows: list[dict[str, Any]]
    keys: list[str]
    policy: str


class Shell(threading.Thread):
    """Decides its jobs one after the other."""

    def __init__(self, ledger: Ledger, jobs: Sequence[Job], policies: dict[str, CompiledPolicy]) -> None:
        super().__init__(daemon=True)
        self._ledger, self._jobs, self._policies = _Steps(ledger, self), jobs, policies
        self._go, self.parked = threading.Semaphore(0), threading.Semaphore(0)
        self.results: list[tuple[Job, DecidedBatch]] = []
        self.finished, self.failure = False, None

    def park(self) -> None:
        """Wait for the stepper."""
        self.parked.release()
        self._go.acquire()

    def step(self) -> None:
        """Let the shell run until it parks again or ends."""
        self._go.release()
        self.parked.acquire()

    def run(self) -> None:
        try:
            for job in self._jobs:
                keys = [key.encode().ljust(16, b"\0") if key else b"" for key in job.keys]
                context = Context((self._policies[job.policy],))
                batch = batch_of(job.rows)
                batch.meta["policy_revisions"] = [self._policies[job.policy].revision]
                made = decide(self._ledger, Decision(), batch, context, keys=keys, digests=keys)  # type: ignore[arg-type]
                self.results.append((job, made))
        except BaseException as error:  # noqa: BLE001 (raised by the stepper)
            self.failure = error  # type: ignore[assignment]
        self.finished = True
        self.parked.release()


def run_interleaved(shells: Sequence[Shell], order: Sequence[int]) -> None:
    """Start all shells, then step them in `order` (numbers modulo those still running), round robin at its end."""
    for shell in shells:
        shell.start()
        shell.parked.acquire()
    turn = 0
    while running := [shell for shell in shells if not shell.finished]:
        pick = order[turn] if turn < len(order) else turn
        running[pick % len(running)].step()
        turn += 1
    for shell in shells:
        if shell.failure is not None:
            raise shell.failure


@dataclass
class Stage:
    """Users in a ledger, two policies, and what a run of shells left behind."""

    ledger: Ledger
    users: Sequence[int] = (5, 6)
    people: dict[int, Person] = field(default_factory=dict)
    policies: dict[str, CompiledPolicy] = field(default_factory=dict)
    rules: dict[str, Rules] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for user in self.users:
            version = self.ledger.put_user(user, UserChanges(reachable=63, zone=ZONE, region="us"))
            self.people[user] = Person(user, ZONE, version, version)
        for name in ("first", "second"):
            document = parse_policy(policy_document(name))
            self.policies[name] = compile_policy(document, heads={"notification": HEADS})
            self.rules[document.revision] = rules_of(document.revision, document.model_dump(mode="json"))

    def shell(self, *jobs: Job) -> Shell:
        """A shell on this ledger."""
        return Shell(self.ledger, jobs, self.policies)

    def evidence(self, shells: Sequence[Shell]) -> Evidence:
        """What the checker may see of the run."""
        read_ledger(self.ledger, self.people)
        answers: list[Answer] = []
        logged: list[Logged] = []
        for shell in shells:
            for job, made in shell.results:
                for row in range(len(job.rows)):
                    _tell(job, made, row, self.policies[job.policy].revision, answers, logged)
        owned = {(one.user, one.key) for one in answers if one.key}
        return Evidence(self.rules, self.people, answers, [], logged, owned)


def _tell(job: Job, made: DecidedBatch, row: int, revision: str, answers: list[Answer], logged: list[Logged]) -> None:
    status, rows = DecideStatus(int(made.status[row])), made.batch.requests
    user, request_id = int(rows["user"][row]), int(rows["request_id"][row])
    key = job.keys[row]
    if status is DecideStatus.duplicate:
        first = kept_of(0, made.stored[row])
        answers.append(Answer(user, key, first.request_id, first.action, first.sends, "", replayed=True))
        return
    assert status in (DecideStatus.committed, DecideStatus.decided), status
    sends = _sends(made, row)
    version = int(made.versions[row]) if status is DecideStatus.committed else -1
    action = Action(int(rows["action"][row])).name
    answers.append(Answer(user, key, request_id, action, sends, revision, replayed=False))
    slots = [one.slot for one in sends] or [0]
    logged.extend(Logged(user, request_id, slot, bool(sends), version, key.encode()) for slot in slots)


def _sends(made: DecidedBatch, row: int) -> tuple[Send, ...]:
    c = made.batch.candidates
    span = np.arange(made.batch.offsets[row], made.batch.offsets[row + 1])
    chosen = span[c["action"][span] == Action.send]
    chosen = chosen[np.argsort(c["slot"][chosen], kind="stable")]
    return tuple(Send(int(c["slot"][at]), int(c["campaign"][at]), int(c["channel"][at])) for at in chosen.tolist())


def row_of(user: int, request_id: int, at: int, *, campaigns: Sequence[int] = (1, 2, 3), slots: int = 1) -> dict[str, Any]:
    """One decision over some campaigns; odd ones are advertisements by push, even ones information by e-mail."""
    rows = [
        candidate(campaign=c, channel=0 if c % 2 else 2, message_class=2 if c % 2 else 1, category=1 + c % 2)
        for c in campaigns
    ]
    return request(rows, user=user, request_id=request_id, decided_at=at, slots=slots, zone=ZONE)


def memory_stage(*, racy: bool = False) -> Stage:
    """A stage on a fresh memory ledger, a racy one where asked for."""
    ledger = MemoryLedger()
    return Stage(RacyLedger(ledger) if racy else ledger)  # type: ignore[arg-type]
