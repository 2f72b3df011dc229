"""The replay's fast engine: each user's requests in order, in one compiled loop, by the row kernels that the Decision stage
loops over batches of.

It does all that the Decision stage does (refunds, several policies, holdouts with their shadows and ghosts, several sends,
cells, flips), follows deferrals to their children, and gives the bits that waves of `simulators.replay.course` give. What
it does not write down is what each gate saw and when it opens (used, limit, next free time): parity, which compares those,
walks in waves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import lengths_to_offsets
from serve_app.ledger.columns import Histories
from serve_app.ledger.protocol import LedgerSettings
from serve_app.policy.assign import variants
from serve_app.policy.compile import CompiledPolicy
from serve_app.vocabulary import Reason
from simulators.replay.analytic import OnLog, Probabilities, Support, first_sends
from simulators.replay.histories import Failures
from simulators.replay.memberships import segments_under
from simulators.replay.opportunities import Opportunities
from simulators.replay.partition import Partition
from simulators.replay.realised import Realised
from simulators.replay.stream.children import children_and_roots
from simulators.replay.stream.columns import Asked, asked_of, logged_of
from simulators.replay.stream.courses import Done, Told, deferrals, walk_log, walk_policy
from simulators.replay.stream.history import Entries, entries, failed_of, start_of, zones
from simulators.replay.stream.judging import work
from simulators.replay.stream.pointers import addresses, plain, shapes
from simulators.replay.stream.rules import rules_of, tables_of, trials_of
from simulators.replay.stream.views import Views, walk_views
from simulators.replay.stream.walking import Where

__all__ = ["AsReplayed", "stream_log", "stream_on_log", "stream_policy"]

I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]

_ENTRIES, _DEFERRALS = 512, 64


@dataclass(frozen=True, kw_only=True)
class AsReplayed(Realised):
    """A run over the log, with what parity compares beside. until i64[n], p_none f64[n], explored bool[n] of the requests;
    p_choice f64[m] of the candidates."""

    until: I64
    p_none: F64
    explored: npt.NDArray[np.bool_]
    p_choice: F64


def stream_policy(
    asked: Opportunities,
    policy: CompiledPolicy,
    behaviour: Sequence[CompiledPolicy],
    start: Histories | None,
    failures: Failures,
    *,
    since: int,
    known: I64,
    counts: npt.NDArray[np.bool_] | None = None,
) -> Realised:
    """What a policy would have done from `since` on, on its own course, after all that was logged before.

    A logged request is asked at its logged time. A deferral is asked again at its end: where the log deferred the same
    request to the same moment, at the moment the log's re-decision happened and with its scores; where it deferred to
    another moment, at the policy's own moment with the logged re-decision's scores; where it did not defer, with the
    parent's scores (*carried*). Logged re-decisions of deferrals the policy does not make are never asked, but for those of
    deferrals made before it began.

    behaviour: the policies of `asked.revisions`. known i64[n]: how many of its user's failed
    deliveries each logged decision knew of. counts bool[n]: logged requests the reasons of whose candidates are counted;
    None: all. Raises InvalidInput as `memberships.segments_under`."""
    room = _Room(asked, [policy], behaviour, start, failures, keep=[policy], own_segments=True)
    a, trials = room.asked, trials_of(policy)
    child, root = children_and_roots(a, asked.batch.requests["parent_request_id"], since)
    room.extra = (
        plain(known), child, root, plain(asked.logged["until"]), variants(policy.trials, a.user, a.decided_at), 0,
        0 if counts is None else plain(counts),
    )  # fmt: skip

    def walk(u: int, row: int, done: I64) -> tuple[int, int]:
        return walk_policy(u, row, room.where(), trials, since, room.keep, room.most, done)

    return _realised(asked, _walked(room, _done(len(asked)), walk))


def stream_log(
    asked: Opportunities, behaviour: Sequence[CompiledPolicy], start: Histories | None, failures: Failures
) -> tuple[AsReplayed, I64]:
    """Every logged request under the policy its `policy` column names, as `simulators.replay.course.follow_log`. Returns
    what was decided, and i64[n]: how many of its user's failed deliveries each decision knew of."""
    n, m = len(asked), asked.batch.candidates.rows
    room = _Room(asked, behaviour, behaviour, start, failures, keep=behaviour, own_segments=False)
    policy = plain(asked.batch.requests["policy"])
    room.extra = (0, 0, 0, 0, _own_variants(room.asked, policy, behaviour), policy, 0)
    more = Told(np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n), np.empty(n, np.bool_), np.empty(m))

    def walk(u: int, row: int, done: I64) -> tuple[int, int]:
        return walk_log(u, row, room.where(), room.keep, room.most, done, addresses(more))

    told = _realised(asked, _walked(room, _done(n), walk))
    return AsReplayed(**vars(told), **{name: getattr(more, name) for name in Told._fields[1:]}), more.known


def stream_on_log(
    partition: Partition,
    policies: Sequence[CompiledPolicy],
    behaviour: Sequence[CompiledPolicy],
    *,
    choices: bool = False,
    support: Support | None = None,
    teaching: int = 0,
) -> list[OnLog]:
    """How probable each policy makes what was logged, in each of its cells, all on the logged histories.

    behaviour: the policies that logged. choices: keep the probability of every candidate, for whoever predicts what each
    would have brought. support: keep each policy's mass on choices outside it; what the first `teaching` policies could
    choose in any cell is added to it on the way."""
    asked, n, m = partition.asked, len(partition.asked), partition.asked.batch.candidates.rows
    if not policies:
        return []
    room = _Room(
        asked, policies, behaviour, partition.start, partition.failures(), keep=behaviour, own_segments=True
    )  # fmt: skip
    cells, kept = [max(len(one.trials.cell_p), 1) for one in policies], len(policies) if choices else 0
    own = np.stack([variants(one.trials, room.asked.user, room.asked.decided_at) for one in policies])
    count, able = np.array(cells, np.int16)[:, None], support or Support.nothing(asked)
    views = Views(
        lengths_to_offsets(cells), own // count * count, own % count, plain(asked.logged_candidates["p_choice"]),
        plain(asked.logged["p_none"]), first_sends(asked), able.candidate, able.none, np.empty((n, sum(cells))),
        np.empty((len(policies), n)), np.empty((len(policies), n)), np.zeros((kept, m)),
        np.empty((0 if support is None else n, sum(cells))), len(policies), sum(cells), kept, teaching, support is not None,
    )  # fmt: skip

    def walk(u: int, row: int, _: I64) -> tuple[int, int]:
        separate, to = room.separate, addresses(views)
        return walk_views(u, row, room.where(), separate, room.keep, room.most, to)

    _walked(room, _done(0), walk)
    return [_on_log(views, p) for p in range(len(policies))]


def _on_log(views: Views, p: int) -> OnLog:
    mine = slice(views.first[p], views.first[p + 1])
    by_cell = np.ascontiguousarray(views.chosen[:, mine])
    own = by_cell[np.arange(len(by_cell)), views.cell[p]]
    probabilities = Probabilities(own, views.send[p], views.unsupported[p])
    beyond = np.ascontiguousarray(views.beyond[:, mine]) if views.judged else None
    return OnLog(probabilities, by_cell, views.choices[p] if views.kept else None, beyond)


class _Room:
    """What a walk reads, and what it works in."""

    def __init__(
        self, asked: Opportunities, policies: Sequence[CompiledPolicy], behaviour: Sequence[CompiledPolicy],
        start: Histories | None, failures: Failures, *, keep: Sequence[CompiledPolicy], own_segments: bool,
    ) -> None:  # fmt: skip
        """policies: that decide. keep: those whose windows say how long entries are kept. own_segments: they number segments
        in their own way."""
        rows, meta = asked.batch.candidates, asked.batch.meta
        segments = _segments(policies, behaviour, asked) if own_segments else (None, None)
        self.separate = segments[0] is not None and len(segments[0]) > 1
        self.asked = asked_of(asked, *segments)
        self.rules, self.logged, self.zones = rules_of(policies), logged_of(asked, behaviour), zones()
        self.start, self.failed = start_of(start, len(asked.users)), failed_of(failures)
        self.most = max(int(np.diff(asked.batch.offsets).max(initial=0)), 1)
        self.keep = max(LedgerSettings().history_horizon_us, *(one.longest_window_us for one in keep))
        self.entries, self.work, self.deferrals = entries(_ENTRIES + 4 * self.most), work(self.most), deferrals(_DEFERRALS)
        heads = plain(rows["heads"]) if "heads" in rows else np.empty((rows.rows, 0), np.float32)
        self.tables = tables_of(policies, meta.get("heads", ()), heads, _keys(self.entries))
        self.extra: tuple[object, ...] = ()

    def grow(self) -> None:
        """Twice the room for one user's entries and deferrals."""
        self.entries, self.deferrals = entries(2 * self.entries.room), deferrals(2 * self.deferrals.room)
        self.tables = self.tables._replace(keys=_keys(self.entries))

    def where(self) -> Where:
        """The addresses of it all."""
        columns = {name: addresses(getattr(self, name)) for name in Where._fields if name != "tables"}
        return Where(**columns, tables=shapes(self.tables))


def _keys(room: Entries) -> U64:
    return np.zeros((4, room.room), np.uint64)


def _walked(room: _Room, done: Done, walk: Callable[[int, int, I64], tuple[int, int]]) -> Done:
    """Walk to the end, with more room where it was too little."""
    u, row = walk(0, 0, addresses(done))
    while row < room.asked.n:
        room.grow()
        done = _grown(done)
        u, row = walk(u, row, addresses(done))
    return done


def _done(rows: int) -> Done:
    """Room for the results of about so many requests."""
    decisions, sends = rows + rows // 8 + 64, rows // 2 + 1024
    return Done(
        np.empty(decisions, np.int64), np.empty(decisions, np.int64), np.empty(decisions, np.int8),
        np.empty(decisions, np.int8), np.empty(sends, np.int64), np.empty(sends, np.int64),
        np.zeros(len(Reason), np.int64), np.zeros(len(Reason), np.int64), np.zeros(4, np.int64), decisions, sends,
    )  # fmt: skip


def _grown(done: Done) -> Done:
    """The same results with twice the room."""
    wider = {name: np.concatenate([one, np.empty_like(one)]) for name, one in zip(Done._fields[:6], done[:6], strict=True)}
    return done._replace(**wider, room=2 * done.room, sends=2 * done.sends)


def _realised(asked: Opportunities, done: Done) -> Realised:
    decisions, sends = int(done.total[0]), int(done.total[1])
    rows, at, action, reason = done.row[:decisions], done.at[:decisions], done.action[:decisions], done.reason[:decisions]
    decision, candidate = done.send_decision[:sends], done.send_candidate[:sends]
    if done.total[3]:  # some user's clock went back: decisions come in order of time
        order = np.lexsort((at, asked.owner[rows]))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        by_decision = np.argsort(back[decision], kind="stable")
        rows, at, action, reason = rows[order], at[order], action[order], reason[order]
        decision, candidate = back[decision][by_decision], candidate[by_decision]
    return Realised(rows, at, action, reason, decision, candidate, done.reasons, int(done.total[2]))


def _own_variants(a: Asked, policy: I16, behaviour: Sequence[CompiledPolicy]) -> I16:
    """i16[n]: of the policy that each request names."""
    if len(behaviour) == 1:
        return variants(behaviour[0].trials, a.user, a.decided_at)
    out = np.zeros(len(a.user), np.int16)
    for index, one in enumerate(behaviour):
        mine = np.flatnonzero(policy == index)
        out[mine] = variants(one.trials, a.user[mine], a.decided_at[mine])
    return out


def _segments(
    policies: Sequence[CompiledPolicy], behaviour: Sequence[CompiledPolicy], asked: Opportunities
) -> tuple[U64, I16]:
    """Logged memberships as each policy numbers its segments, one row a policy; one row alone where all number alike."""
    rows, segments = asked.batch.candidates.rows, [one.document.segments for one in policies]
    if not any(one.document.segments for one in behaviour):
        return np.zeros((1, len(asked)), np.uint64), np.full((1, rows), -1, np.int16)
    alike = all(one == segments[0] for one in segments)
    found = [segments_under(one, behaviour, asked.batch) for one in (policies[:1] if alike else policies)]
    return np.stack([one[0] for one in found]), np.stack([one[1] for one in found])
