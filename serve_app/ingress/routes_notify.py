"""Send decisions: one user, many users, and why a decision was what it was."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from starlette.responses import Response

from serve_app.audit.kept import decision_in_log, waiting_journal_bytes
from serve_app.audit.names import EditionNames
from serve_app.clock import text_of
from serve_app.errors import InvalidInput, LedgerUnavailable, UnknownIdentifier
from serve_app.ids import parse_decision_id
from serve_app.ingress.admission import Admitted, admitted
from serve_app.ingress.arrow import ARROW_NOTES, ARROW_STREAM, rows_from_arrow, to_stream
from serve_app.ingress.asked import AskedRows
from serve_app.ingress.asked_json import batch_from_json
from serve_app.ingress.auth import Scope
from serve_app.ingress.batcher import MicroBatcher, overloaded
from serve_app.ingress.calls import Call, Incoming, json_answer
from serve_app.ingress.deadlines import by_deadline, undecided_in_time
from serve_app.ingress.decision_chunks import Answer, Chunk, cuts, rows_of, table_of
from serve_app.ingress.decisions import Asking, prepare_decisions, row_ids
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
from serve_app.ingress.stored import stored_decision, told
from serve_app.ingress.throttle import Throttle, throttled
from serve_app.ledger.columns import LedgerView
from serve_app.serving.deciding import DecideCall
from serve_app.serving.editions import edition_with_changes, look
from serve_app.serving.library import Edition, Library, Pins
from serve_app.serving.meters import observe
from serve_app.serving.stages import Stages, in_pool
from serve_app.serving.unledgered import may_send_unledgered
from serve_app.settings import Settings

__all__ = ["NotifyRoutes"]

_JOURNAL_BYTES = 256 << 20  # a look-up reads at most so much of what is not compacted yet
_PARALLEL_CHUNKS = 4
# Features of a chunk's candidates travel between deployments, whose messages are bounded (4 MB); a fused ingress sends only
# their records.
_CANDIDATES_PER_CHUNK = {"chain": 5_000, "fused": 20_000}
Key = tuple[str, str, bool, bool]


@dataclass(frozen=True, slots=True)
class _Ask:
    """One call for one decision."""

    row: DecideRow
    one: Admitted
    client: str


class NotifyRoutes:
    """Handlers of notification decisions."""

    def __init__(
        self, owner: Any, library: Library, stages: Stages, pool: Executor, settings: Settings, lanes: int,
        throttle: Throttle | None = None,
    ) -> None:  # fmt: skip
        self._owner, self._library, self._stages, self._pool, self._settings = owner, library, stages, pool, settings
        batching = settings.batching
        self.batcher: MicroBatcher[tuple[_Ask, Key], dict[str, Any]] = MicroBatcher(
            throttled(self._run, throttle), max_requests=batching.max_requests, lanes=lanes,
            max_queued=batching.max_queued, wait_share=batching.wait_share, places=settings.http.places_of_one_surface,
            # As short as lists', with which decisions share the machine; what is left of their budget is for the ledger.
            run_s=batching.run_share * min(settings.budgets.request_ms, settings.budgets.decide_ms) / 1000,
        )  # fmt: skip

    def calls(self) -> list[Call]:
        """The calls of this module."""
        limits = self._settings.limits
        return [
            Call("POST", "/v1/notifications/decide", "Whether, what and how to notify one user", self._decide,
                 Scope.decide, DecideRequest, DecideAnswer, limits.body_bytes, "notifications",
                 gate=partial(self.batcher.refuse_if_full, self._settings.budgets.decide_ms / 1000)),
            Call("POST", "/v1/notifications/decide-batch", "Decisions for up to 10,000 users", self._decide_batch,
                 Scope.decide, DecideBatchRequest, DecideBatchAnswer, limits.batch_body_bytes, "notifications",
                 media=(ARROW_STREAM,), raw=True, notes=ARROW_NOTES),
            Call("GET", "/v1/decisions/{id}", "Why a notification was or was not sent, gate by gate", self._stored,
                 Scope.read, None, StoredDecision, 0, "notifications", {"id": "decision_id of an answer"}),
        ]  # fmt: skip

    async def _decide(self, incoming: Incoming) -> Response:
        body: DecideRequest = incoming.body
        with admitted(incoming, body, self._library, self._settings.budgets.decide_ms) as one:
            key = (*one.pins, one.dry, body.explain)
            asked = _Ask(body, one, incoming.caller.name)
            try:
                answer = await self.batcher.submit((asked, key), key=key, leave_by_s=one.leave_by_s)
            except TimeoutError:
                raise undecided_in_time(one) from None
        return json_answer({**answer, **_envelope(one)})

    async def _run(self, batch: Sequence[tuple[_Ask, Key]]) -> list[Answer]:
        release, policy, dry, explain = batch[0][1]
        asks = [ask for ask, _ in batch]
        observe("hindcast_batch_requests", len(asks), stage="decide")
        asking = Asking(
            AskedRows.of_models([ask.row for ask in asks]),
            np.array([ask.one.request_id for ask in asks], np.uint64),
            np.array([ask.one.decided_at for ask in asks], np.int64),
            np.array([ask.one.deadline_at for ask in asks], np.int64),
            [ask.client for ask in asks],
        )
        chunk, view = await self._prepared(asking, release, policy)
        await self._decide_chunk(chunk, dry=dry, explain=explain, ledgered=view is not None, view=view)
        return rows_of(chunk, explain=explain)

    async def _prepared(self, asking: Asking, release: str, policy: str) -> tuple[Chunk, LedgerView | None]:
        """The rows prepared by the pinned edition with every catalogue change that was answered before now, and what the
        ledger says of their users; None where it is down. While it is asked, they are prepared on what is known so far,
        which nearly always is all there is."""
        limit_s, known = self._settings.budgets.ledger_ms / 1000, self._library.seq
        asked = asyncio.create_task(look(self._library, self._owner.call, limit_s, asking.rows.user, known))
        try:
            await asyncio.sleep(0)  # the question is on its way
            # A few rows: to have a thread do this takes longer than to do it.
            chunk = self._chunk(asking, self._library.edition(Pins(release, policy, known)))
            head, view = await asked
        except LedgerUnavailable as down:
            return self._chunk(asking, self._last_edition(release, policy, down)), None
        finally:
            asked.cancel()
        edition = self._library.edition(Pins(release, policy, head))
        return (chunk if edition is chunk.edition else self._chunk(asking, edition)), view

    @staticmethod
    def _chunk(asking: Asking, edition: Edition) -> Chunk:
        return Chunk(asking.rows, prepare_decisions(asking, edition), None, edition)

    async def _edition(self, release: str, policy: str) -> Edition:
        """The pinned edition with every catalogue change that was answered before now."""
        limit_s = self._settings.budgets.ledger_ms / 1000
        return await edition_with_changes(self._library, self._owner.live, limit_s, release, policy)

    async def _edition_or_last(self, release: str, policy: str) -> tuple[Edition, bool]:
        """`_edition` and True; or, where the ledger is down, the last one known and False, if anything may go without it."""
        try:
            return await self._edition(release, policy), True
        except LedgerUnavailable as down:
            return self._last_edition(release, policy, down), False

    def _last_edition(self, release: str, policy: str, down: LedgerUnavailable) -> Edition:
        """The last edition known while the ledger is down; raises `down` where nothing goes without it."""
        edition = self._library.edition(Pins(release, policy, self._library.seq))
        if not may_send_unledgered(edition.policy):
            raise down
        return edition

    async def _decide_chunk(
        self, chunk: Chunk, *, dry: bool, explain: bool, ledgered: bool, view: LedgerView | None = None
    ) -> None:
        """Decide the good rows, in order. view: of all rows, where it is known."""
        prepared, edition = chunk.prepared, chunk.edition
        if prepared.batch is not None:
            pins = Pins(edition.release.version, edition.policy.revision, edition.view.seq)
            own = view if view is None or len(prepared.good) == len(chunk.rows) else view.take(prepared.good)
            call = DecideCall(prepared.batch, pins, prepared.keys, prepared.digests, not dry, explain, ledgered, own)
            chunk.made = await self._stages.decide(call)

    async def _decide_batch(self, incoming: Incoming) -> Response:
        arrow = incoming.headers.get("content-type", "").split(";")[0].strip() == ARROW_STREAM
        rows, asked = await in_pool(self._pool, lambda: _read_batch(incoming, arrow))
        with admitted(incoming, asked, self._library, self._settings.budgets.decide_batch_ms) as one:
            edition, ledgered = await self._edition_or_last(*one.pins)
            gone = asyncio.Event()
            try:
                chunks = await by_deadline(self._chunks(rows, one, edition, incoming.caller.name, ledgered, gone), one)
            finally:
                gone.set()

        def answer() -> Response:
            if arrow:
                body = to_stream(pa.concat_tables([table_of(chunk) for chunk in chunks]))
                return Response(body, media_type=ARROW_STREAM, headers={"x-hindcast-release": one.release})
            return json_answer(_batch_answer(list(chain.from_iterable(map(rows_of, chunks))), one))

        return await in_pool(self._pool, answer)

    async def _chunks(
        self, rows: AskedRows, one: Admitted, edition: Edition, client: str, ledgered: bool, gone: asyncio.Event
    ) -> list[Chunk]:
        """Decide chunk by chunk; chunks run side by side unless a user stands in several rows. None is begun once the caller
        is `gone`: nobody would hear of its grants."""
        most = _CANDIDATES_PER_CHUNK[self._settings.topology]
        size = self._settings.limits.decide_batch_rows_per_chunk
        parts = cuts(rows, edition, most_rows=size, most_candidates=most)
        distinct = len(np.unique(rows.user)) == len(rows)
        gate = asyncio.Semaphore(_PARALLEL_CHUNKS if distinct else 1)

        async def run(start: int, stop: int) -> Chunk:
            part = rows.part(start, stop)

            def prepare() -> Chunk:
                n, ids = stop - start, row_ids(one.request_id, np.arange(start, stop))
                asking = Asking(part, ids, np.full(n, one.decided_at), np.full(n, one.deadline_at), [client] * n)
                return self._chunk(asking, edition)

            async with gate:
                try:
                    if gone.is_set():
                        raise overloaded("the caller left before these rows had their turn")
                    chunk = await in_pool(self._pool, prepare)
                    await self._decide_chunk(chunk, dry=one.dry, explain=False, ledgered=ledgered)
                    return chunk
                except Exception as error:  # noqa: BLE001 - rows of other chunks are decided all the same
                    return Chunk.failed(part, error, edition)

        return list(await asyncio.gather(*(run(*part) for part in parts)))

    async def _stored(self, incoming: Incoming) -> Response:
        user, request_id, slot = parse_decision_id(incoming.params["id"])
        record = await self._owner.call("find_decision", user, request_id, slot)
        logged = None if record is not None else await in_pool(self._pool, lambda: self._logged(user, request_id))
        with self._library.releases.pinned() as (release, _), self._library.policies.pinned() as (policy, _):
            edition = await self._edition(release, policy)

        def say() -> dict[str, Any]:
            return stored_decision(record, edition) if logged is None else told(logged, EditionNames(edition), "log")

        return json_answer(await in_pool(self._pool, say))

    def _logged(self, user: int, request_id: int) -> dict[str, Any]:
        """The decision from the log: what sent nothing and had no key was never committed. UnknownIdentifier: nor is it
        there."""
        data = self._settings.data
        small = waiting_journal_bytes(data) <= _JOURNAL_BYTES
        found = decision_in_log(data, user, request_id, journal=small)
        if found is None:
            hint = (
                "check the id; of a dry run nothing is kept"
                if small
                else "it may be in the journal, which is long just now: hindcast explain ID"
            )
            raise UnknownIdentifier("no such decision is kept by ledger or log", field="id", hint=hint)
        return found


def _envelope(one: Admitted) -> dict[str, Any]:
    return {"release": one.release, "policy": one.policy, "decided_at": text_of(one.decided_at), "dry_run": one.dry}


def _read_batch(incoming: Incoming, arrow: bool) -> tuple[AskedRows, Rehearsal]:
    """The rows, with what is wrong with each, and the fields of the whole call."""
    if arrow:
        return rows_from_arrow(incoming.raw), _rehearsal(incoming.headers)
    return batch_from_json(incoming.raw)


_DRY = {"1": True, "true": True, "0": False, "false": False}


def _rehearsal(headers: Mapping[str, str]) -> Rehearsal:
    """What headers say where the body has no place for it. A word not understood is refused: it may have meant a dry run."""
    said = headers.get("x-hindcast-dry-run", "false")
    if said.lower() not in _DRY:
        raise InvalidInput(f"{said[:20]!r} is neither true nor false", field="x-hindcast-dry-run", hint="send true or false")
    return Rehearsal.model_validate({"dry_run": _DRY[said.lower()], "now": headers.get("x-hindcast-now")})


def _batch_answer(answers: Sequence[Answer], one: Admitted) -> dict[str, Any]:
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
