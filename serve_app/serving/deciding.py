"""Send decisions of one batch: scored, decided on the ledger, journalled. Runs where the Decision stage lives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.clock import monotonic_s
from serve_app.decide import DecidedBatch, DecideStatus, decide
from serve_app.errors import HindcastError, LedgerUnavailable, NotReady, OutcomeUnknown
from serve_app.ledger.columns import LedgerView
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Ledger
from serve_app.log.fingerprint import code_version, fingerprint
from serve_app.serving import faults, scope
from serve_app.serving.budgets import stretched
from serve_app.serving.hosts import RankCall, flagged, with_news
from serve_app.serving.journalling import JournalHost
from serve_app.serving.library import Edition, Library, Pins
from serve_app.serving.measuring import measure_decisions
from serve_app.serving.meters import count, timed
from serve_app.serving.relay import Baton, Detour, relayed
from serve_app.serving.stages import in_pool
from serve_app.serving.trips import LocalScores
from serve_app.serving.unledgered import send_unledgered
from serve_app.stages.decision import Decision
from serve_app.stages.features.stage import Features
from serve_app.vocabulary import Action, StageBit

__all__ = ["DecideCall", "DecideFlow", "Decided"]

_LOG = logging.getLogger("hindcast.serving")

Ranked = Callable[[RankCall, float], Batch]
"""Ranks a batch somewhere within so many seconds, or raises; the calling thread waits."""


@dataclass(slots=True)
class DecideCall:
    """One batch to decide, with its candidates. keys, digests: 16 bytes or b"" per row; None: no row has one. commit: False
    in a dry run. explain: give every column back."""

    batch: Batch
    pins: Pins
    keys: Sequence[bytes] | None
    digests: Sequence[bytes] | None
    commit: bool
    explain: bool
    ledgered: bool = True
    """False: the ledger is known to be down; only what goes without it is sent."""
    view: LedgerView | None = None
    """What the ledger said of the batch's users, row by row, after the call began; None: it was not asked yet."""


@dataclass(slots=True)
class Decided:
    """What was decided. logged: the journal has it; where it has not, only rows that the ledger holds may be answered."""

    decided: DecidedBatch
    logged: bool

    def answerable(self) -> npt.NDArray[np.bool_]:
        """bool[n]: rows whose decision is durable somewhere."""
        status = self.decided.status
        return (status == DecideStatus.committed) | (status == DecideStatus.duplicate) | self.logged


class DecideFlow:
    """Scores within a budget (without scores every candidate is `not_scored`: it fails closed), then decides."""

    def __init__(
        self,
        library: Library,
        ledger: Ledger,
        scores: Ranked | LocalScores,
        journal: JournalHost,
        pool: Executor,
        *,
        ranking_ms: float,
        max_attempts: int,
    ) -> None:
        """scores: where candidates are ranked, in another process or in this one."""
        self._library, self._ledger, self._scores, self._journal, self._pool = library, ledger, scores, journal, pool
        self._ranking_s, self._max_attempts = ranking_ms / 1000, max_attempts
        self._stage = Decision()

    async def __call__(self, call: DecideCall) -> Decided:
        """Decide one batch. Never raises for a ledger that is away: such rows are closed with the reason."""
        began = monotonic_s()
        with nullcontext() if scope.current() else scope.of_requests(call.batch.requests["request_id"]):
            if isinstance(self._scores, LocalScores) and self._wants_scores(call):
                return await self._in_one_go(call, self._scores, began)
            return await in_pool(self._pool, lambda: self.decided(call, began))

    def decided(self, call: DecideCall, began: float) -> Decided:
        """The same in the calling thread, which waits for scores from elsewhere. began: when the call came."""
        with nullcontext() if scope.current() else scope.of_requests(call.batch.requests["request_id"]):
            return self._in_time(call, self._scored(call) if self._wants_scores(call) else call.batch, began)

    def _wants_scores(self, call: DecideCall) -> bool:
        held = self._library.edition(call.pins).held
        return "notification" in held.heads and call.batch.candidates.rows > 0

    def _scored(self, call: DecideCall) -> Batch:
        rank = self._scores
        assert not isinstance(rank, LocalScores)
        try:
            ranked = rank(_rank_call(call, afar=True), stretched(self._ranking_s, len(call.batch)))
            return with_news(call.batch, ranked)
        except Exception as error:  # noqa: BLE001 - without scores the gates fail closed
            return _unscored(call, error)

    async def _in_one_go(self, call: DecideCall, scores: LocalScores, began: float) -> Decided:
        """Score and decide in one thread, each part within its budget."""
        asked, rows, late = _rank_call(call), len(call.batch), TimeoutError("it took too long")

        def decided(baton: Baton, score: Callable[[], Batch]) -> Decided:
            try:
                scored = score()
            except Exception as error:  # noqa: BLE001 - without scores the gates fail closed
                scored = _unscored(call, error)
            baton.past(2)
            return self._in_time(call, scored, began)

        return await relayed(
            self._pool,
            lambda baton: decided(baton, lambda: scores.scored(asked, baton, 0)),
            (
                Detour(
                    1,
                    stretched(scores.features_s, rows),
                    lambda baton: decided(baton, lambda: scores.on_defaults(asked, late)),
                ),
                Detour(2, stretched(self._ranking_s, rows), lambda _: self._in_time(call, _unscored(call, late), began)),
            ),
        )

    def _in_time(self, call: DecideCall, scored: Batch, began: float) -> Decided:
        """Decide, unless the callers have left already: what nobody hears of is not granted. What fails on the way, nobody
        knows how far it came."""
        try:
            with timed("hindcast_stage_ms", stage="decision"):
                faults.strike(faults.Point.decision, call.batch)
                if call.commit and 0 < _time_given_s(call.batch) < monotonic_s() - began:
                    raise NotReady("the decision could not be begun in time", field="decision", hint="retry")
                return self._decide(call, scored)
        except HindcastError:
            raise
        except Exception as error:
            if not call.commit:
                raise
            _LOG.exception("a decision failed on the way")
            said = f"the decision failed on the way: {type(error).__name__}"
            raise OutcomeUnknown(said, field="decision", hint="retry with the same idempotency key") from error

    def _decide(self, call: DecideCall, scored: Batch) -> Decided:
        edition = self._library.edition(call.pins)
        meta = {
            **scored.meta,
            "release": edition.release.version,
            "policy_revisions": [edition.policy.revision],
            "code_version": code_version(),
            "fingerprint": fingerprint(),
        }
        scored = Batch(scored.requests, scored.candidates, scored.offsets, meta)
        decided = decide(
            self._ledger if call.ledgered else _AWAY,
            self._stage,
            scored,
            edition.context,
            keys=call.keys,
            digests=call.digests,
            commit=call.commit,
            max_attempts=self._max_attempts,
            item_hashes=edition.view.hashes,
            view=call.view if call.ledgered else None,
        )
        if call.commit:
            decided = send_unledgered(decided, self._stage, edition.context, edition.view.hashes)
        durable = self._journalled(call, decided, edition) if call.commit else _nothing_to_keep
        measure_decisions(decided)
        if not call.explain:
            decided.batch = _answered(decided.batch)
        return Decided(decided, durable())

    def _journalled(self, call: DecideCall, decided: DecidedBatch, edition: Edition) -> Callable[[], bool]:
        return self._journal.begin(
            decided.batch,
            edition,
            commit_version=np.where(decided.status == DecideStatus.committed, decided.versions, -1),
            granted=decided.granted,
            idempotency_keys=call.keys,
        )


def _nothing_to_keep() -> bool:
    return True


def _rank_call(call: DecideCall, *, afar: bool = False) -> RankCall:
    """afar: in another process, which is told what scores are made of."""
    batch = Features.read_of(call.batch, "request_id", "degraded") if afar else call.batch
    return RankCall(batch, call.pins, explain=True, log=False, afar=afar)


def _unscored(call: DecideCall, error: BaseException) -> Batch:
    """The batch as it came; without scores the gates fail closed."""
    count("hindcast_degraded", stage="ranking")
    _LOG.warning("decisions go unscored: %s: %s", type(error).__name__, error)
    return flagged(call.batch, StageBit.ranking)


def _time_given_s(batch: Batch) -> float:
    """From admission to the latest deadline, by the clock that stamped both."""
    given = batch.requests["deadline_at"] - batch.requests["decided_at"]
    return float(given.max(initial=0)) / 1e6


class _Away(MemoryLedger):
    """The ledger of a call that already knows that there is none."""

    def read(self, users: npt.NDArray[np.uint64]) -> LedgerView:
        raise LedgerUnavailable(f"the ledger was down when the call began, {len(users)} users were not read")


_AWAY = _Away()


_SENT = int(Action.send)
_ANSWER = ("request_id", "user", "action", "reason", "until", "degraded", "p_none", "explored")
_SEND = ("action", "slot", "campaign", "item", "channel", "delivery", "p_choice")


def _answered(batch: Batch) -> Batch:
    """What an answer without explanation needs: the outcomes, and the candidates that are sent."""
    sending = batch.candidates["action"] == _SENT
    before = np.zeros(len(sending) + 1, np.int64)
    np.cumsum(sending, out=before[1:])
    sent = np.flatnonzero(sending)
    return Batch(batch.requests.only(_ANSWER), batch.candidates.only(_SEND).take(sent), before[batch.offsets])
