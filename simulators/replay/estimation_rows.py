"""From a partition to the rows of the estimators, a few thousand at a time: what is put side by side for a block of users
stays in the processor's cache until it has been added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import orjson

from serve_app.kernels import kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.document import parse_policy
from simulators.estimators import Rows, checked_rows
from simulators.replay.analytic import OnLog, Support, first_sends, logged_probability
from simulators.replay.counts import DAY_US, Window
from simulators.replay.estimation import SHARES, WINDOWED, segments_of
from simulators.replay.gather import beside, codes_of, picked
from simulators.replay.opportunities import Opportunities
from simulators.replay.outcomes import Predicted, predictions
from simulators.replay.partition import Partition
from simulators.replay.rewards import METRICS, Attribution
from simulators.replay.spec import Breakdown, ReplaySpec
from simulators.replay.stream import stream_on_log

__all__ = ["estimation_blocks", "estimation_rows"]

Array = npt.NDArray[np.generic]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64] | slice


def estimation_blocks(
    partition: Partition,
    spec: ReplaySpec,
    targets: Sequence[CompiledPolicy],
    behaviour: Sequence[CompiledPolicy],
    *,
    most: int = 16_384,
) -> Iterator[Rows]:
    """Rows of the decisions in the window that are old enough for their rewards to be complete at the log's end, in blocks
    of whole users, of `most` rows where users allow. Rewards: `metrics_of`."""
    source = _Source(partition, spec, targets, behaviour)
    ends = np.searchsorted(source.chosen, partition.asked.begins)
    begin = 0
    while begin < len(source.chosen):
        within, next_user = np.searchsorted(ends, [begin + most, begin], "right")
        end = int(ends[max(within - 1, next_user)])
        yield source.rows(begin, end)
        begin = end


def estimation_rows(
    partition: Partition, spec: ReplaySpec, targets: Sequence[CompiledPolicy], behaviour: Sequence[CompiledPolicy]
) -> Rows:
    """All rows of `estimation_blocks` at once."""
    source = _Source(partition, spec, targets, behaviour)
    return source.rows(0, len(source.chosen))


class _Source:
    """Columns of all logged requests, and which of them are rows: chosen i64[k], rising."""

    def __init__(
        self, partition: Partition, spec: ReplaySpec, targets: Sequence[CompiledPolicy], behaviour: Sequence[CompiledPolicy]
    ) -> None:
        asked = partition.asked
        at = asked.batch.requests["decided_at"]
        old_enough = Window(spec.start, spec.end).holds(at) & (at + spec.attribution_us <= spec.log_end)
        counts = asked.members(behaviour, spec.segments)
        self.chosen = np.flatnonzero(old_enough if counts is None else old_enough & counts)
        first = first_sends(asked)
        self._asked, self._spec, self._logged = asked, spec, logged_probability(asked, first)
        by_cells = len(behaviour) == 1 and len(spec.behaviour) == 1 and len(behaviour[0].trials.cell_p) > 0
        looked = _looked(partition, behaviour if by_cells else (), targets, behaviour, choices=spec.outcome is not None)
        self._found = looked[len(looked) - len(targets) :]
        shares = [int(share * spec.attribution_us) for share in SHARES.values()]
        self._attribution = Attribution(asked, partition.events, shares)
        self._groups = _all_codes(asked, spec, first)
        self._explained = _explained(looked[0].by_cell, self._logged) if by_cells else None
        self._extra = _cell_columns(asked, spec, targets, behaviour[0], looked) if by_cells else {}
        if "windowed-ips" in spec.estimators:
            self._extra |= {"at": _not_decreasing(asked.owner, at)}
        self._q_logged, self._q_target = _modelled(partition, spec, self.chosen, self._found)

    def rows(self, begin: int, end: int) -> Rows:
        """Those of chosen[begin:end], which holds whole users."""
        places, asked, spec = self.chosen[begin:end], self._asked, self._spec
        rows = _adjacent(places)
        first, last = self._users_rows(places)
        within, places = self._attribution.of(first, last).reshape(last - first, -1), places - first
        extra: dict[str, Array] = {name: values[rows] for name, values in self._extra.items()}
        if "windows" in spec.estimators and not spec.halves:
            extra["windowed"] = picked(within, places, _WINDOWED_PLACES)
        reward = picked(within, places, _LAST_PLACES, more=1 if spec.reward else 0)
        _weigh(reward, spec)
        return checked_rows(
            asked.batch.requests["user"][rows],
            self._logged[rows],
            self._column(self._logged[rows], "chosen", rows),
            reward,
            send=(reward[:, 0] > 0).astype(np.float64),
            target_send=self._column(1.0 - asked.logged["p_none"][rows], "send", rows),
            unsupported=self._column(0.0, "unsupported", rows),
            q_logged=None if self._q_logged is None else self._q_logged[begin:end],
            q_target=None if self._q_target is None else self._q_target[begin:end],
            row_id=asked.batch.requests["request_id"][rows],
            not_reproduced=None if self._explained is None else ~self._explained[rows],
            groups={name: codes[rows] for name, codes in self._groups.items()},
            extra=extra,
        )

    def _users_rows(self, rows: I64) -> tuple[int, int]:
        """First and end of all requests of the users of these."""
        if not len(rows):
            return 0, 0
        begins, owner = self._asked.begins, self._asked.owner
        return int(begins[owner[rows[0]]]), int(begins[owner[rows[-1]] + 1])

    def _column(self, control: F64 | float, name: str, rows: Places) -> F64:
        """f64[k, 1 + targets]. control: of these very requests."""
        return beside([control, *(getattr(one.own, name)[rows] for one in self._found)])


def _adjacent(places: I64) -> Places:
    """The same as a slice where they lie side by side: what it takes is not copied."""
    begin, end = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
    return slice(begin, end) if end - begin == len(places) else places


def _looked(
    partition: Partition,
    own: Sequence[CompiledPolicy],
    targets: Sequence[CompiledPolicy],
    behaviour: Sequence[CompiledPolicy],
    *,
    choices: bool,
) -> list[OnLog]:
    """Of the policies that logged (own), on the logged scores, and of the targets, on theirs; in one walk where these are
    the same. Where there are own, the targets' mass on choices that none of their cells could make is kept."""
    support = Support.nothing(partition.asked) if own else None
    look = partial(stream_on_log, behaviour=behaviour, choices=choices, support=support)
    if partition.asked.rescored is None:
        return look(partition, [*own, *targets], teaching=len(own))
    first = look(partition, own, teaching=len(own))
    return [*first, *look(partition.with_asked(partition.asked.scored()), targets)]


def with_weighted(values: F64, spec: ReplaySpec) -> F64:
    """f64[..., METRICS] with the weighted sum as one more metric, where the spec asks for it."""
    if not spec.reward:
        return np.ascontiguousarray(values)
    out = np.concatenate([values, np.empty((*values.shape[:-1], 1))], axis=-1)
    _weigh(out.reshape(-1, out.shape[-1]), spec)
    return out


def _weigh(rewards: F64, spec: ReplaySpec) -> None:
    """Fill in the weighted sum, the last column, where the spec asks for it. rewards f64[n, METRICS and it]."""
    if spec.reward:
        places = np.array([METRICS.index(name) for name, _ in spec.reward], np.int64)
        _weighed(rewards, places, np.array([weight for _, weight in spec.reward]))


@kernel
def _weighed(rewards: F64, places: I64, weights: F64) -> None:
    for row in range(len(rewards)):
        total = 0.0
        for k in range(len(places)):
            total += weights[k] * rewards[row, places[k]]
        rewards[row, -1] = total


def _modelled(partition: Partition, spec: ReplaySpec, chosen: I64, found: Sequence[OnLog]) -> tuple[F64 | None, F64 | None]:
    """What the outcome model expects; nothing without one. A send is one of `sends`, for certain."""
    if spec.outcome is None:
        return None, None
    choices = [partition.asked.logged_candidates["p_choice"], *(one.choices for one in found if one.choices is not None)]
    q_logged, q_target = predictions(Predicted(partition, spec.outcome), partition, chosen, choices)
    return with_weighted(q_logged, spec), with_weighted(q_target, spec)


@kernel
def _rise(owner: I64, at: I64, out: I64) -> None:
    for row in range(len(owner)):
        out[row] = max(at[row], out[row - 1]) if row and owner[row] == owner[row - 1] else at[row]


def _not_decreasing(owner: I64, at: I64) -> I64:
    """i64[n]: times of a user's requests in the ledger's order, a clock that went back held still."""
    out = np.empty(len(at), np.int64)
    _rise(owner, at, out)
    return out


def _explained(by_cell: F64, logged: F64) -> npt.NDArray[np.bool_]:
    """bool[n]: some cell gives what was logged its probability. Where none does, the log's own policy did not reproduce it
    (parity says so), and the weight of its epoch would mean nothing."""
    return np.asarray(by_cell.max(axis=1) >= logged * (1 - 1e-9))


def _cell_columns(
    asked: Opportunities, spec: ReplaySpec, targets: Sequence[CompiledPolicy], behaviour: CompiledPolicy, looked: list[OnLog]
) -> dict[str, npt.NDArray[np.generic]]:
    """What the estimator by cells reads. looked: of the policy that logged, then of the targets."""
    out: dict[str, npt.NDArray[np.generic]] = {
        "epoch": asked.assigned(behaviour).epoch.astype(np.int64),
        "cell_probability": looked[0].by_cell,
    }
    unsupported = np.zeros((len(asked), 1 + len(targets)))
    for p, (target, policy, one) in enumerate(zip(spec.targets, targets, looked[1:], strict=True), 1):
        if one.beyond is None:
            raise ValueError("the targets' mass on choices that no cell could make was not kept")
        if len(policy.trials.cell_p):
            out[f"cells of {target.name}"], out[f"unsupported of {target.name}"] = one.by_cell, one.beyond
        else:
            unsupported[:, p] = one.beyond[:, 0]
    return out | {"cell_unsupported": unsupported}


def _all_codes(asked: Opportunities, spec: ReplaySpec, first: I64) -> dict[str, I32]:
    """i32[n] of each breakdown."""
    if "breakdowns" not in spec.estimators or spec.halves:
        return {}
    found = {one.name: _codes(asked, one, first) for one in spec.breakdowns}
    for name in segments_of(spec):
        found[f"segment {name}"] = _segment_codes(asked, spec, name)
    return found


def _segment_codes(asked: Opportunities, spec: ReplaySpec, name: str) -> I32:
    """i32[n]: 0 of a member, 1 of another, as the policy that logged had it."""
    documents = {one.name: one.document for one in spec.behaviour}
    bits, pinned = asked.batch.requests["segments"], asked.logged["policy"]
    out = np.full(len(asked), -1, np.int32)
    for index, revision in enumerate(asked.revisions):
        places = [one.id for one in parse_policy(orjson.loads(documents[revision])).segments]
        mine = pinned == index
        out[mine] = 1 - ((bits[mine] >> np.uint64(places.index(name))) & np.uint64(1)).astype(np.int32)
    return out


def _codes(asked: Opportunities, by: Breakdown, first: I64) -> I32:
    """i32[n]: the group of each logged request; -1: none. first: `first_sends`."""
    if by.name == "day":
        days = asked.batch.requests["decided_at"] // DAY_US
        low, high = (int(days.min()), int(days.max())) if len(days) else (0, 0)
        values, codes, places = np.arange(low, high + 1), days - low, np.arange(len(asked))
    else:
        (values, codes), places = asked.coded(by.name), first
    keys = np.array(by.keys, np.uint64)
    order = np.argsort(keys)
    place = order[np.minimum(np.searchsorted(keys[order], values.astype(np.uint64)), len(keys) - 1)]
    table = np.where(keys[place] == values.astype(np.uint64), place, -1).astype(np.int32)
    return codes_of(codes, table, places)


_LAST_PLACES = tuple((len(SHARES) - 1) * len(METRICS) + place for place in range(len(METRICS)))
_WINDOWED_PLACES = (0, *(w * len(METRICS) + METRICS.index(one) for one in WINDOWED for w in range(len(SHARES))))
"""Of `sends`, and of what the windows compare, among the metrics by window."""
