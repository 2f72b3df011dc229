"""Send decisions: one user, many users, and why a decision was what it was."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from starlette.responses import Response

from serve_app.clock import text_of
from serve_app.decide import DecideStatus
from serve_app.errors import NotReady, UnknownIdentifier
from serve_app.ids import parse_decision_id
from serve_app.ingress.admission import Admitted, admitted
from serve_app.ingress.arrow import ARROW_STREAM, decisions_to_arrow, rows_from_arrow
from serve_app.ingress.auth import Scope
from serve_app.ingress.batcher import MicroBatcher
from serve_app.ingress.calls import Call, Incoming, json_answer
from serve_app.ingress.decisions import (
    DecisionAsk,
    decision_answer,
    digest_of,
    key_of,
    prepare_decisions,
    row_id,
)
from serve_app.ingress.problems import ProblemError, problem_of
from serve_app.ingress.schemas import Rehearsal
from serve_app.ingress.schemas_notify import (
    DecideAnswer,
    DecideBatchAnswer,
    DecideBatchRequest,
    DecideRequest,
    DecideRow,
    StoredDecision,
)
from serve_app.ingress.stored import stored_decision, stored_row
from serve_app.serving.deciding import DecideCall
from serve_app.serving.library import Edition, Library, Pins
from serve_app.serving.stages import Stages, in_pool
from serve_app.settings import Settings

__all__ = ["NotifyRoutes"]

_PARALLEL_CHUNKS = 4
Key = tuple[str, str, bool, bool]


class NotifyRoutes:
    """Handlers of notification decisions."""

    def __init__(self, owner: Any, library: Library, stages: Stages, pool: Executor, settings: Settings, lanes: int) -> None:
        self._owner, self._library, self._stages, self._pool, self._settings = owner, library, stages, pool, settings
        batching = settings.batching
        self.batcher: MicroBatcher[tuple[DecisionAsk, Key], dict[str, Any]] = MicroBatcher(
            self._run, max_requests=batching.max_requests, lanes=lanes, max_queued=batching.max_queued
        )

    def calls(self) -> list[Call]:
        """The calls of this module."""
        limits = self._settings.limits
        return [
            Call("POST", "/v1/notifications/decide", "Whether, what and how to notify one user", self._decide,
                 Scope.decide, DecideRequest, DecideAnswer, limits.body_bytes, "notifications"),
            Call("POST", "/v1/notifications/decide-batch", "Decisions for up to 10,000 users", self._decide_batch,
                 Scope.decide, DecideBatchRequest, DecideBatchAnswer, limits.batch_body_bytes, "notifications",
                 media=(ARROW_STREAM,), raw=True),
            Call("GET", "/v1/decisions/{id}", "Why a notification was or was not sent, gate by gate", self._stored,
                 Scope.read, None, StoredDecision, 0, "notifications", {"id": "decision_id of an answer"}),
        ]  # fmt: skip

    async def _decide(self, incoming: Incoming) -> Response:
        body: DecideRequest = incoming.body
        with admitted(incoming, body, self._library, self._settings.budgets.decide_ms) as one:
            ask = DecisionAsk(body, one.request_id, one.decided_at, one.deadline_at, incoming.caller.name)
            key = (*one.pins, one.dry, body.explain)
            answer = await self.batcher.submit((ask, key), key=key, leave_by_s=one.leave_by_s)
        return json_answer({**answer, **_envelope(one)})

    async def _run(self, batch: Sequence[tuple[DecisionAsk, Key]]) -> list[dict[str, Any] | Exception]:
        release, policy, dry, explain = batch[0][1]
        edition = await self._edition(release, policy)
        return await self._decided([ask for ask, _ in batch], edition, dry=dry, explain=explain)

    async def _edition(self, release: str, policy: str) -> Edition:
        """The pinned edition with every catalogue change that was answered before now."""
        try:
            async with asyncio.timeout(self._settings.budgets.live_ms / 1000):
                live = await self._owner.live(np.empty(0, np.uint64), self._library.seq)
        except TimeoutError:
            raise NotReady("live changes could not be checked in time", field="availability") from None
        self._library.learn(live.changes)
        return self._library.edition(Pins(release, policy, live.head))

    async def _decided(
        self, asks: Sequence[DecisionAsk], edition: Edition, *, dry: bool, explain: bool
    ) -> list[dict[str, Any] | Exception]:
        prepared = await in_pool(self._pool, lambda: prepare_decisions(asks, edition))
        answers: list[Any] = [prepared.problems.get(at) for at in range(len(asks))]
        if prepared.batch is None:
            return answers
        good = [asks[at] for at in prepared.good]
        pins = Pins(edition.release.version, edition.policy.revision, edition.view.seq)
        keys = [key_of(ask.client, ask.row) for ask in good]
        digests = [digest_of(ask.row) for ask in good]
        made = await self._stages.decide(DecideCall(prepared.batch, pins, keys, digests, not dry, explain))

        def answer() -> None:
            answerable = made.answerable()
            for row, at in enumerate(prepared.good):
                if made.decided.status[row] == DecideStatus.duplicate:
                    answers[at] = stored_row(made.decided.stored[row], asks[at].row.user, edition)
                else:
                    answers[at] = decision_answer(
                        made.decided, row, asks[at], edition, answerable=bool(answerable[row]), explain=explain
                    )

        await in_pool(self._pool, answer)
        return answers

    async def _decide_batch(self, incoming: Incoming) -> Response:
        arrow = incoming.headers.get("content-type", "").split(";")[0].strip() == ARROW_STREAM
        rows, asked = await in_pool(self._pool, lambda: _read_batch(incoming, arrow))
        with admitted(incoming, asked, self._library, self._settings.budgets.decide_batch_ms) as one:
            edition = await self._edition(*one.pins)
            answers = await self._chunks(rows, one, edition, incoming.caller.name)

        def answer() -> Response:
            if arrow:
                body = decisions_to_arrow(answers)
                return Response(body, media_type=ARROW_STREAM, headers={"x-hindcast-release": one.release})
            return json_answer(_batch_answer(answers, one))

        return await in_pool(self._pool, answer)

    async def _chunks(
        self, rows: Sequence[DecideRow | Exception], one: Admitted, edition: Edition, client: str
    ) -> list[dict[str, Any] | Exception]:
        """Decide chunk by chunk; chunks run side by side unless a user stands in several rows."""
        answers: list[dict[str, Any] | Exception] = [row if isinstance(row, Exception) else {} for row in rows]
        asks = [
            (at, DecisionAsk(row, row_id(one.request_id, at), one.decided_at, one.deadline_at, client))
            for at, row in enumerate(rows)
            if not isinstance(row, Exception)
        ]
        size = self._settings.limits.decide_batch_rows_per_chunk
        distinct = len({ask.row.user for _, ask in asks}) == len(asks)
        gate = asyncio.Semaphore(_PARALLEL_CHUNKS if distinct else 1)

        async def run(chunk: Sequence[tuple[int, DecisionAsk]]) -> None:
            async with gate:
                try:
                    made = await self._decided([ask for _, ask in chunk], edition, dry=one.dry, explain=False)
                except Exception as error:  # noqa: BLE001 - rows of other chunks are decided all the same
                    made = [error] * len(chunk)
                for (at, _), answer in zip(chunk, made, strict=True):
                    answers[at] = answer

        await asyncio.gather(*(run(asks[start : start + size]) for start in range(0, len(asks), size)))
        return answers

    async def _stored(self, incoming: Incoming) -> Response:
        user, request_id, slot = parse_decision_id(incoming.params["id"])
        record = await self._owner.call("find_decision", user, request_id, slot)
        if record is None:
            raise UnknownIdentifier(
                "no such decision is kept by the ledger",
                field="id",
                hint="decisions that sent nothing and had no idempotency key are in the log: hindcast explain ID",
            )
        with self._library.releases.pinned() as (release, _), self._library.policies.pinned() as (policy, _):
            edition = await self._edition(release, policy)
        return json_answer(await in_pool(self._pool, lambda: stored_decision(record, edition)))


def _envelope(one: Admitted) -> dict[str, Any]:
    return {"release": one.release, "policy": one.policy, "decided_at": text_of(one.decided_at), "dry_run": one.dry}


def _read_batch(incoming: Incoming, arrow: bool) -> tuple[Sequence[DecideRow | Exception], Rehearsal]:
    """Rows as parsed, or what is wrong with each; and the fields of the whole call."""
    if arrow:
        dry = incoming.headers.get("x-hindcast-dry-run", "").lower() in ("1", "true")
        return rows_from_arrow(incoming.raw), Rehearsal(dry_run=dry)
    body = DecideBatchRequest.model_validate_json(incoming.raw)
    return body.rows, body


def _batch_answer(answers: Sequence[dict[str, Any] | Exception], one: Admitted) -> dict[str, Any]:
    errors = []
    decisions: list[dict[str, Any] | None] = []
    for row, answer in enumerate(answers):
        if isinstance(answer, Exception):
            problem: ProblemError = problem_of(answer)
            said = problem.problem
            errors.append({"row": row, "type": said.type, "detail": said.detail, "field": said.field, "status": said.status})
            decisions.append(None)
        else:
            decisions.append(answer)
    return {**_envelope(one), "decisions": decisions, "errors": errors}
