"""What estimators read: one row per logged decision (or slot), as columns; checked once, before any estimator sees it.

A row whose probabilities cannot be used is never guessed at. With `on_bad="exclude"` it is left out and counted by its
fault, and verdicts look at the share left out; with `on_bad="error"` the first fault raises `InvalidInput`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.kernels import kernel
from serve_app.noise import absorb

__all__ = ["FAULTS", "Rows", "checked_rows", "trust_factors"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I8 = npt.NDArray[np.int8]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

# In the order in which a row is charged with one; their counts are a column of that order.
FAULTS = (
    "propensity_missing",
    "propensity_zero",
    "propensity_above_one",
    "target_missing",
    "target_out_of_range",
    "reward_missing",
    "outcome_model_missing",
    "duplicated",
    "not_reproduced",
    "user_missing",
)
_ROUNDING = 1e-9  # a sum of probabilities may exceed 1 by rounding


@dataclass(frozen=True)
class Rows:
    """n checked rows of P target policies and M metrics; rows of one user are adjacent and all here.

    user u64[n]. propensity f64[n] in (0, 1]: logged probability of what was logged (a choice or none), given prefix and
    history. target f64[n, P] in [0, 1]: the same event's probability under each target policy, on the logged history.
    reward f64[n, M].
    send f64[n] 0 / 1: the row's reward is not structurally zero (something was sent, shown). target_send f64[n, P]: known
    probability under each target that it would not be; the logged policy's own realisation is `send`.
    unsupported f64[n, P]: target mass on choices that the logging policy could not make.
    scale f64[n]: 1 / log_rate, 1 where every row is logged. q_logged f64[n, M], q_target f64[n, P, M]: the outcome model's
    reward of the logged choice, and its mean over the target's choices. groups: i32[n] codes by grouping, -1: in none.
    extra: further columns some estimators name. excluded i64[len(FAULTS)]: rows left out, by fault.
    """

    user: U64
    propensity: F64
    target: F64
    reward: F64
    send: F64
    target_send: F64
    unsupported: F64
    scale: F64
    q_logged: F64 | None = None
    q_target: F64 | None = None
    groups: Mapping[str, I32] = field(default_factory=dict)
    extra: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    excluded: I64 = field(default_factory=lambda: np.zeros(len(FAULTS), np.int64))

    def __len__(self) -> int:
        return len(self.user)

    @cached_property
    def weight(self) -> F64:
        """f64[n, 1 + P]: importance weights of the logged policy (1) and of each target, times `scale`."""
        out = np.empty((len(self), 1 + self.target.shape[1]))
        out[:, 0] = self.scale
        np.divide(self.target, self.propensity[:, None], out=out[:, 1:])
        if (self.scale != 1.0).any():
            out[:, 1:] *= self.scale[:, None]
        return out

    @cached_property
    def plain(self) -> F64:
        """f64[n, 2 + P + M]: one, send, each target's probability of a send, rewards: right factors of weighted sums."""
        targets = self.target.shape[1]
        out = np.empty((len(self), 2 + targets + self.reward.shape[1]))
        out[:, 0], out[:, 1] = 1.0, self.send
        out[:, 2 : 2 + targets] = self.target_send
        out[:, 2 + targets :] = self.reward
        return out

    @cached_property
    def trust_factors(self) -> F64:
        """`trust_factors` of the row weights."""
        return trust_factors(self.weight, self.send, self.unsupported)

    def blocks(self, most: int = 16_384) -> Iterator[Rows]:
        """These rows in pieces of whole users, of `most` rows where users allow: what is derived from a piece stays in the
        processor's cache. Views; the first carries `excluded`."""
        if len(self) <= most:
            yield self
            return
        ends = np.append(np.flatnonzero(self.user[1:] != self.user[:-1]) + 1, len(self))
        start, none = 0, np.zeros_like(self.excluded)
        while start < len(self):
            place = int(np.searchsorted(ends, start + most, "right")) - 1
            end = int(ends[place]) if place >= 0 and ends[place] > start else int(ends[place + 1])
            yield _part(self, slice(start, end), none if start else self.excluded)
            start = end

    def where(self, keep: Bool) -> Rows:
        """Some of the rows, with whole users, by a mask; `excluded` stays."""
        return _part(self, keep, self.excluded)

    def need_model(self) -> tuple[F64, F64]:
        """(q_logged, q_target), or InvalidInput."""
        if self.q_logged is None or self.q_target is None:
            raise InvalidInput(
                "the outcome model's predictions are absent", field="q_logged, q_target",
                hint="fit simulators.estimators.outcome_model first, or leave this estimator out",
            )  # fmt: skip
        return self.q_logged, self.q_target

    def need(self, name: str) -> npt.NDArray[Any]:
        """An extra column, or InvalidInput that names it."""
        if name not in self.extra:
            raise InvalidInput("this estimator needs the column", field=name, hint="pass it in `extra`")
        return self.extra[name]


def trust_factors(weight: F64, live: F64, unsupported: F64) -> F64:
    """f64[n, 2 + 2P]: one, live, each target's live weight, unsupported: right factors of what diagnostics add up."""
    n, targets = unsupported.shape
    out = np.empty((n, 2 + 2 * targets))
    out[:, 0], out[:, 1] = 1.0, live
    np.multiply(weight[:, 1:], live[:, None], out=out[:, 2 : 2 + targets])
    out[:, 2 + targets :] = unsupported
    return out


def checked_rows(
    user: npt.ArrayLike,
    propensity: npt.ArrayLike,
    target: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    send: npt.ArrayLike | None = None,
    target_send: npt.ArrayLike | None = None,
    unsupported: npt.ArrayLike | None = None,
    log_rate: npt.ArrayLike | None = None,
    q_logged: npt.ArrayLike | None = None,
    q_target: npt.ArrayLike | None = None,
    groups: Mapping[str, npt.ArrayLike] | None = None,
    extra: Mapping[str, npt.ArrayLike] | None = None,
    row_id: npt.ArrayLike | None = None,
    not_reproduced: npt.ArrayLike | None = None,
    on_bad: Literal["exclude", "error"] = "exclude",
) -> Rows:
    """Rows from columns; shapes as in `Rows`, a last axis of length 1 may be left out.

    row_id u64[n]: identity of a row within its user; later rows of the same identity are `duplicated`. not_reproduced
    bool[n]: the logging policy does not give what was logged its propensity. Without `send`, any row may earn the reward.
    InvalidInput: lengths differ, a user's rows are not adjacent, `target_send` without `send` or
    the reverse, or (with on_bad="error") any fault.
    """
    users = _dense(user, np.uint64)
    n = len(users)
    _adjacent(users)
    p = _column("propensity", propensity, n)
    pi, y = _matrix("target", target, n), _matrix("reward", reward, n)
    if (send is None) != (target_send is None):
        raise InvalidInput("`send` and `target_send` describe the same event", field="target_send", hint="pass both or none")
    sent = np.ones(n) if send is None else _column("send", send, n)
    pi_send = np.ones_like(pi) if target_send is None else _matrix("target_send", target_send, n, pi.shape[1])
    lost = np.zeros_like(pi) if unsupported is None else _matrix("unsupported", unsupported, n, pi.shape[1])
    rate = np.ones(n) if log_rate is None else _column("log_rate", log_rate, n)
    if n and not ((rate > 0) & (rate <= 1)).all():
        raise InvalidInput("must lie in (0, 1]", field="log_rate", hint="rows outside the sample do not belong here")
    q, q_pi = _model(q_logged, q_target, n, pi.shape[1], y.shape[1])
    fault, none = np.empty(n, np.int8), np.empty((n, 0))
    flat = none if q_pi is None else q_pi.reshape(n, pi.shape[1] * y.shape[1])
    _faults(p, pi, pi_send, lost, y, none if q is None else q, flat, fault)
    if row_id is not None:
        again = _repeated(users, _dense(row_id, np.uint64))
        fault[(fault < 0) & again] = FAULTS.index("duplicated")
    if not_reproduced is not None:
        fault[(fault < 0) & np.asarray(not_reproduced, np.bool_)] = FAULTS.index("not_reproduced")
    counts = np.bincount(fault[fault >= 0], minlength=len(FAULTS)).astype(np.int64)
    if counts.any() and on_bad == "error":
        row = int(np.flatnonzero(fault >= 0)[0])
        raise InvalidInput(
            f"row {row} of user {users[row]:#018x} cannot be used: {FAULTS[fault[row]]}",
            field="rows", hint="mend the log, or exclude such rows and count them",
        )  # fmt: skip
    every = Rows(
        users, p, pi, y, sent, pi_send, lost, 1.0 / rate, q, q_pi,
        {name: _codes(name, code, n) for name, code in (groups or {}).items()},
        {name: _any_column(name, values, n) for name, values in (extra or {}).items()}, counts,
    )  # fmt: skip
    return _part(every, fault < 0, counts) if counts.any() else every


def _adjacent(users: U64) -> None:
    starts = np.flatnonzero(users[1:] != users[:-1]) + 1
    heads = users[np.concatenate([[0], starts])] if len(users) else users
    if not (heads[1:] > heads[:-1]).all() and len(np.unique(heads)) != len(heads):
        raise InvalidInput("rows of one user are not adjacent", field="user", hint="sort by (user, order) first")


def _dense(values: npt.ArrayLike, kind: type[np.generic]) -> npt.NDArray[Any]:
    """Contiguous and writable: kernels are compiled for such arrays, and columns that come from Arrow are read-only."""
    return np.require(np.asarray(values, kind), requirements=["C", "W"])


def _column(name: str, values: npt.ArrayLike, n: int) -> F64:
    out = _dense(values, np.float64)
    if out.shape != (n,):
        raise InvalidInput(f"has shape {out.shape}, expected ({n},)", field=name)
    return out


def _any_column(name: str, values: npt.ArrayLike, n: int) -> npt.NDArray[Any]:
    out = np.ascontiguousarray(values)
    if out.ndim < 1 or len(out) != n:
        raise InvalidInput(f"has shape {out.shape}, expected {n} rows", field=name)
    return out


def _codes(name: str, values: npt.ArrayLike, n: int) -> I32:
    out = _dense(values, np.int32)
    if out.shape != (n,):
        raise InvalidInput(f"has shape {out.shape}, expected ({n},)", field=f"groups[{name}]")
    return out


def _matrix(name: str, values: npt.ArrayLike, n: int, width: int | None = None) -> F64:
    out = _dense(values, np.float64)
    out = out[:, None] if out.ndim == 1 else out
    if out.ndim != 2 or len(out) != n or (width is not None and out.shape[1] != width):
        raise InvalidInput(f"has shape {out.shape}, expected ({n}, {width or 'any'})", field=name)
    return out


def _model(
    q_logged: npt.ArrayLike | None, q_target: npt.ArrayLike | None, n: int, policies: int, metrics: int
) -> tuple[F64 | None, F64 | None]:
    if q_logged is None or q_target is None:
        return None, None
    q = _matrix("q_logged", q_logged, n, metrics)
    q_pi = _dense(q_target, np.float64)
    if q_pi.size == n * policies * metrics:
        q_pi = q_pi.reshape(n, policies, metrics)
    if q_pi.shape != (n, policies, metrics):
        raise InvalidInput(f"has shape {q_pi.shape}, expected {(n, policies, metrics)}", field="q_target")
    return q, q_pi


@kernel
def _outside(matrix: F64, row: int) -> int:
    """0: all in [0, 1]; 1: something is missing; 2: something is outside."""
    worst = 0
    for column in range(matrix.shape[1]):
        value = matrix[row, column]
        if np.isnan(value):
            return 1
        if not -_ROUNDING <= value <= 1.0 + _ROUNDING:
            worst = 2
    return worst


@kernel
def _finite(matrix: F64, row: int) -> bool:
    fine = True
    for column in range(matrix.shape[1]):
        fine = fine and np.isfinite(matrix[row, column])
    return fine


@kernel
def _faults(p: F64, pi: F64, pi_send: F64, lost: F64, y: F64, q: F64, q_target: F64, fault: I8) -> None:
    """fault i8[n]: index of each row's first fault in FAULTS, -1: none. q, q_target: no columns where there is no model."""
    for row in range(len(p)):
        target = max(_outside(pi, row), _outside(pi_send, row), _outside(lost, row))
        missing = _outside(pi, row) == 1 or _outside(pi_send, row) == 1 or _outside(lost, row) == 1
        fault[row] = -1
        if np.isnan(p[row]):
            fault[row] = 0
        elif p[row] <= 0.0:
            fault[row] = 1
        elif p[row] > 1.0 + _ROUNDING:
            fault[row] = 2
        elif missing:
            fault[row] = 3
        elif target == 2:
            fault[row] = 4
        elif not _finite(y, row):
            fault[row] = 5
        elif not (_finite(q, row) and _finite(q_target, row)):
            fault[row] = 6


def _repeated(users: U64, row_id: U64) -> Bool:
    """bool[n]: an earlier row of the same user has the same identity. Rows of a user are adjacent."""
    if len(row_id) != len(users):
        raise InvalidInput(f"has {len(row_id)} rows, expected {len(users)}", field="row_id")
    out = np.zeros(len(users), np.bool_)
    edges = np.flatnonzero(np.diff(users, prepend=users[:1] + np.uint64(1), append=users[-1:] + np.uint64(1)))
    longest = int(np.diff(edges).max()) if len(edges) > 1 else 0
    room = 1 << (2 * longest).bit_length()
    _mark_repeated(edges, row_id, np.empty(room, np.uint64), np.full(room, -1, np.int64), out)
    return out


@kernel
def _mark_repeated(edges: I64, row_id: U64, table: U64, owner: I64, out: Bool) -> None:
    """A table of the user's identities, open addressing; owner i64[room]: whose entry it is, so that nothing is cleared."""
    for u in range(len(edges) - 1):
        size = 2
        while size < 2 * (edges[u + 1] - edges[u]):
            size *= 2
        for row in range(edges[u], edges[u + 1]):
            place = absorb(np.uint64(0), row_id[row]) & np.uint64(size - 1)
            while owner[place] == u and table[place] != row_id[row]:
                place = (place + np.uint64(1)) & np.uint64(size - 1)
            out[row] = owner[place] == u
            owner[place], table[place] = u, row_id[row]


def _part(rows: Rows, keep: slice | Bool, excluded: I64) -> Rows:
    return Rows(
        rows.user[keep], rows.propensity[keep], rows.target[keep], rows.reward[keep], rows.send[keep],
        rows.target_send[keep], rows.unsupported[keep], rows.scale[keep],
        None if rows.q_logged is None else rows.q_logged[keep], None if rows.q_target is None else rows.q_target[keep],
        {name: code[keep] for name, code in rows.groups.items()},
        {name: values[keep] for name, values in rows.extra.items()}, excluded,
    )  # fmt: skip
