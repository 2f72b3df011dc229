"""The shell round the Decision stage: read the ledger, decide, commit, and let losers decide again.

The server, the world and dry runs all decide through `decide`. Clock and attempt come in with the batch; nothing here
reads a clock or waits.

Words: a *wave* holds each user once. Users repeated in a batch are decided in row order, wave after wave, each seeing what
the last one committed. Within a wave, a *loser* is a row whose user changed between read and commit: it reads and decides
again, with the same noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.errors import InvalidInput, LedgerUnavailable, OutcomeUnknown
from serve_app.ledger.columns import NEVER_KNOWN, CommitStatus, Histories, HistoryFlag, LedgerView, UserState
from serve_app.ledger.protocol import Ledger
from serve_app.stages.decision import Decision
from serve_app.stages.decision.plan import commit_plan, history_entries, must_be_written
from serve_app.stages.stage import Context
from serve_app.vocabulary import Action, Reason, StageBit

__all__ = ["DecideStatus", "DecidedBatch", "decide"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]


class DecideStatus(IntEnum):
    """What became of a row."""

    decided = 0  # nothing had to be written (or commit=False)
    committed = 1
    duplicate = 2  # the key was answered before: `stored` is that decision's record
    key_reused = 3  # the key was used before with another body
    ledger_unavailable = 4  # nothing was attempted; also a bucket closed until reconciled
    outcome_unknown = 5  # a commit was issued, its outcome is not known: retry the same key
    contended = 6  # lost every attempt; nothing was written
    unledgered = 7  # sent without the ledger, which was down (serve_app.serving.unledgered)


_REFUNDED, _SEND = int(HistoryFlag.refunded), int(Action.send)
_CLOSED_REASON = {
    DecideStatus.duplicate: Reason.duplicate,
    DecideStatus.key_reused: Reason.duplicate,
    DecideStatus.ledger_unavailable: Reason.ledger_unavailable,
    DecideStatus.outcome_unknown: Reason.outcome_unknown,
    DecideStatus.contended: Reason.ledger_unavailable,
}
_OF_COMMIT = {
    CommitStatus.committed: DecideStatus.committed,
    CommitStatus.duplicate: DecideStatus.duplicate,
    CommitStatus.key_reused: DecideStatus.key_reused,
    CommitStatus.regressed: DecideStatus.ledger_unavailable,
    CommitStatus.unavailable: DecideStatus.ledger_unavailable,
    CommitStatus.unknown: DecideStatus.outcome_unknown,
}


@dataclass(slots=True)
class DecidedBatch:
    """batch: every row decided, in the input's order (rows not decided are closed, with the reason). status i8[n]
    (DecideStatus). granted bool[n]: sends were committed for the row. versions i64[n]: the user's version after the commit,
    or as read where nothing was written; -1: not read. stored: the earlier record of duplicates, else b"". conflicts: times
    a row lost its compare-and-set."""

    batch: Batch
    status: npt.NDArray[np.int8]
    granted: Bool
    versions: I64
    stored: list[bytes]
    conflicts: int = 0


def decide(
    ledger: Ledger,
    stage: Decision,
    batch: Batch,
    context: Context,
    *,
    keys: Sequence[bytes] | None = None,
    digests: Sequence[bytes] | None = None,
    commit: bool = True,
    max_attempts: int = 32,
    item_hashes: U64 | None = None,
    view: LedgerView | None = None,
) -> DecidedBatch:
    """Decide `batch` on the ledger's state and histories, and commit what must be written.

    keys: 16-byte digests of (client, user, key), b"" for none, one per row; digests: of the parsed bodies, likewise.
    commit=False is a dry run: nothing is written, repeated users see the earlier rows' would-be sends all the same.
    item_hashes: u64 by item row, for the records. view: what the ledger said of the batch's users, row by row, a moment ago:
    it is decided on first, and read anew where it turns out to be old. Never raises for a ledger that is away or slow: such
    rows are closed.
    """
    for name, values in (("keys", keys), ("digests", digests)):
        if values is not None and len(values) != len(batch):
            raise InvalidInput(f"{len(values)} values for {len(batch)} rows", field=name)
    if view is not None and not np.array_equal(view.users, batch.requests["user"]):
        raise InvalidInput("must be of the batch's users, row by row", field="view")
    run = _Run(ledger, stage, context, keys, digests, commit, max_attempts, item_hashes, batch, view)
    for wave in _waves(batch.requests["user"]):
        run.wave(wave)
    return run.result()


def _waves(users: U64) -> list[I64]:
    """Rows by how many earlier rows have the same user."""
    if len(users) < 2 or len(np.unique(users)) == len(users):
        return [np.arange(len(users))]
    order = np.argsort(users, kind="stable")
    ordered = users[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    rank = np.empty(len(users), np.int64)
    rank[order] = np.arange(len(users)) - np.repeat(starts, np.diff(np.append(starts, len(users))))
    return [np.flatnonzero(rank == wave) for wave in range(int(rank.max()) + 1)]


class _Run:
    """The state of one `decide` call."""

    def __init__(
        self, ledger: Ledger, stage: Decision, context: Context, keys: Sequence[bytes] | None,
        digests: Sequence[bytes] | None, commit: bool, max_attempts: int, item_hashes: U64 | None, batch: Batch,
        view: LedgerView | None,
    ) -> None:  # fmt: skip
        self.ledger, self.stage, self.context, self.batch = ledger, stage, context, batch
        self.keys, self.digests, self.commit, self.max_attempts = keys, digests, commit, max_attempts
        self.item_hashes, self.view = item_hashes, view
        self.status = np.full(len(batch), DecideStatus.decided, np.int8)
        self.granted = np.zeros(len(batch), np.bool_)
        self.versions = np.full(len(batch), -1, np.int64)
        self.stored = [b""] * len(batch)
        self.parts: list[tuple[I64, Batch]] = []
        self.dry_entries: dict[int, list[npt.NDArray[np.void]]] = {}
        self.conflicts = 0

    def wave(self, rows: I64) -> None:
        """Decide rows of distinct users, losers again until none is left or the attempts are used up."""
        for _ in range(self.max_attempts):
            if not len(rows):
                return
            rows = self._attempt(rows)
            self.conflicts += len(rows)
        self._close(rows, DecideStatus.contended)

    def _attempt(self, rows: I64) -> I64:
        """One read, decision and commit; returns the losers."""
        part = self.batch if len(rows) == len(self.batch) else self.batch.take(rows)
        try:
            view = self._read(rows, part)
        except LedgerUnavailable:
            self._close(rows, DecideStatus.ledger_unavailable)
            return rows[:0]
        self.versions[rows] = view.versions
        histories = view.histories if self.commit else self._with_dry_entries(part, view.histories)
        context = Context(
            self.context.policies, {**self.context.parts, "histories": histories, "item_hashes": self.item_hashes}
        )
        decided = self.stage.run(_as_read(part, view, self.context.policies), context)
        if not self.commit:
            self._remember(decided)
            self.parts.append((rows, decided))
            return rows[:0]
        return self._commit(rows, decided)

    def _read(self, rows: I64, part: Batch) -> LedgerView:
        """What the ledger says of the rows' users; the view that came with them serves once, the first wave."""
        view, self.view = self.view, None
        if view is None:
            return self.ledger.read(part.requests["user"])
        return view if len(rows) == len(view.users) else view.take(rows)

    def _commit(self, rows: I64, decided: Batch) -> I64:
        own_keys = None if self.keys is None else [self.keys[row] for row in rows.tolist()]
        written = np.flatnonzero(must_be_written(decided, own_keys))
        if not len(written):
            self.parts.append((rows, decided))
            return rows[:0]
        part = decided if len(written) == len(rows) else decided.take(written)
        plan = commit_plan(
            part,
            self.context.policies,
            keys=_pick(self.keys, rows[written]),
            digests=_pick(self.digests, rows[written]),
            item_hashes=self.item_hashes,
            keep_records=self.ledger.settings.keep_records,
        )
        try:
            result = self.ledger.commit(plan)
        except LedgerUnavailable:
            return self._settle(rows, decided, written, np.full(len(written), -1), DecideStatus.ledger_unavailable)
        except OutcomeUnknown:
            return self._settle(rows, decided, written, np.full(len(written), -1), DecideStatus.outcome_unknown)
        if not result.status.any():  # all of it is committed, as nearly always
            self.versions[rows[written]], self.status[rows[written]] = result.versions, DecideStatus.committed
            self.granted[rows[decided.requests["action"] == _SEND]] = True
            self.parts.append((rows, decided))
            return rows[:0]
        done = rows[written[result.status == CommitStatus.committed]]
        self.versions[done] = result.versions[result.status == CommitStatus.committed]
        for place in np.flatnonzero(result.status == CommitStatus.duplicate).tolist():
            self.stored[rows[written[place]]] = result.stored[place]
        return self._settle(rows, decided, written, result.status, None)

    def _settle(
        self, rows: I64, decided: Batch, written: I64, outcome: npt.NDArray[Any], failed: DecideStatus | None
    ) -> I64:
        """Keep what holds of a commit's outcome (CommitStatus per written row), close what does not, return the losers."""
        holds = np.ones(len(rows), np.bool_)
        lost = np.zeros(len(rows), np.bool_)
        if failed is not None:
            holds[written] = False
            self._close(rows[written], failed)
        else:
            holds[written] = outcome == CommitStatus.committed
            lost[written] = outcome == CommitStatus.conflict
            for kind in set(outcome.tolist()):
                status = _OF_COMMIT.get(CommitStatus(kind))
                if status is DecideStatus.committed:
                    self.status[rows[written[outcome == kind]]] = status
                elif status is not None:
                    self._close(rows[written[outcome == kind]], status)
        kept = np.flatnonzero(holds)
        if len(kept):
            self.parts.append((rows[kept], decided if len(kept) == len(rows) else decided.take(kept)))
        granted = (decided.requests["action"] == _SEND) & holds
        self.granted[rows[granted]] = True
        return rows[lost]

    def _close(self, rows: I64, status: DecideStatus) -> None:
        """Answer `rows` with nothing sent."""
        if not len(rows):
            return
        part = self.batch.take(rows)
        unread = LedgerView(
            part.requests["user"], np.full(len(rows), -1, np.int64), UserState.unknown(len(rows)),
            Histories.empty(len(rows)), np.full(len(rows), NEVER_KNOWN, np.int64),
        )  # fmt: skip
        closed = self.stage.closed(_as_read(part, unread, ()), self.context, _CLOSED_REASON[status])
        self.status[rows] = status
        self.parts.append((rows, closed))

    def _with_dry_entries(self, part: Batch, histories: Histories) -> Histories:
        if not self.dry_entries:
            return histories
        parts, lengths = [], []
        for row, user in enumerate(part.requests["user"].tolist()):
            own = [histories.entries[histories.offsets[row] : histories.offsets[row + 1]], *self.dry_entries.get(user, [])]
            parts += own
            lengths.append(sum(len(one) for one in own))
        return Histories(np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def _remember(self, decided: Batch) -> None:
        entries, offsets = history_entries(decided, self.context.policies)
        for row, user in enumerate(decided.requests["user"].tolist()):
            if offsets[row + 1] > offsets[row]:
                self.dry_entries.setdefault(user, []).append(entries[offsets[row] : offsets[row + 1]])

    def result(self) -> DecidedBatch:
        """All parts, put back into the input's order."""
        if len(self.parts) == 1:
            batch = self.parts[0][1]
        elif self.parts:
            places = np.concatenate([rows for rows, _ in self.parts])
            back = np.empty(len(places), np.int64)
            back[places] = np.arange(len(places))
            batch = Batch.concat([part for _, part in self.parts]).take(back)
        else:
            batch = self.stage.closed(self.batch, self.context, Reason.none)
        return DecidedBatch(batch, self.status, self.granted, self.versions, self.stored, self.conflicts)


def _pick(values: Sequence[bytes] | None, rows: I64) -> list[bytes] | None:
    return None if values is None else [values[row] for row in rows.tolist()]


def _as_read(batch: Batch, view: LedgerView, policies: Sequence[Any]) -> Batch:
    """The batch with the user state and version the ledger gave. Its word replaces the batch's; a zone or region it does
    not know stays as the batch has it. Where the history kept is shorter than a policy's windows, `degraded` says so."""
    state, own = view.state, batch.requests
    columns: dict[str, Any] = {
        "consent_ad_at": state.consent_ad_at,
        "consent_night_at": state.consent_night_at,
        "customer_until": state.customer_until,
        "reachable": state.reachable,
        "opted_out": state.opted_out,
        "read_version": view.versions,
        "refunds_read": _refunds(view),
        "zone": _known_or(state.zone, own, "zone"),
        "region": _known_or(state.region, own, "region"),
    }
    degraded = own["degraded"] if "degraded" in own else np.zeros(len(batch), np.uint8)
    if policies and len(batch) and view.known_since.max() > NEVER_KNOWN:
        windows = np.array([policy.longest_window_us for policy in policies], np.int64)
        longest = windows[np.clip(own["policy"], 0, len(windows) - 1)] if "policy" in own else windows[0]
        short = (view.known_since > NEVER_KNOWN) & (own["decided_at"] - longest < view.known_since)
        degraded = np.where(short, degraded | np.uint8(StageBit.decision), degraded)
    columns["degraded"] = degraded
    requests = own.copy()
    for name, values in columns.items():
        requests[name] = values
    return Batch(requests, batch.candidates, batch.offsets, batch.meta)


def _refunds(view: LedgerView) -> npt.NDArray[np.int16]:
    """Refunded uses in each history; -1 where none was read. A replay learns from it which refunds a decision saw."""
    refunded_here = view.histories.entries["flags"] & _REFUNDED
    if not refunded_here.any():
        return np.where(view.versions < 0, np.int16(-1), np.int16(0))
    refunded = np.concatenate([[0], np.cumsum(refunded_here)])
    found = refunded[view.histories.offsets[1:]] - refunded[view.histories.offsets[:-1]]
    return np.where(view.versions < 0, -1, found).astype(np.int16)


def _known_or(known: npt.NDArray[np.int16], own: Mapping[str, Any], name: str) -> npt.NDArray[np.int16]:
    if name not in own:
        return known
    return np.where(known >= 0, known, own[name])
