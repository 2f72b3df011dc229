"""Rows of any system's table: columns by name, read into checked rows in an order that is the rows' own.

Totals of users are doubles, and adding doubles in another order gives other last bits. Rows come as files, shuffles and
clusters deliver them, so a user's rows are put in order of a hash of all that is read of them: rows that tie are the same
row, and the same rows give the same bytes however they came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.errors import InvalidInput
from serve_app.ids import hash_ids
from serve_app.kernels import kernel
from serve_app.noise import absorb
from simulators.estimators.dm import DM
from simulators.estimators.dr import DR
from simulators.estimators.dros import DRos
from simulators.estimators.estimator import Estimator
from simulators.estimators.ips import IPS
from simulators.estimators.rows import FAULTS, Rows, checked_rows
from simulators.estimators.sndr import SNDR
from simulators.estimators.snips import SNIPS
from simulators.estimators.suite import Suite
from simulators.estimators.switch_dr import SwitchDR

__all__ = ["ESTIMATORS", "RowColumns", "check_columns", "chosen", "plain", "rows_of_table", "user_keys"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_KINDS: tuple[type[Estimator], ...] = (IPS, SNIPS, DM, DR, SNDR, SwitchDR, DRos)
ESTIMATORS: Mapping[str, type[Estimator]] = {one.name: one for one in _KINDS}
"""By the names that `estimate_dataset` takes."""


@dataclass(frozen=True)
class RowColumns:
    """Names of the columns that hold what `checked_rows` takes, by policy and metric where there are several.

    user: None takes every row for a user of its own. send with target_send, unsupported, log_rate, row_id, q_logged with
    q_target: optional, as there."""

    propensity: str
    target: Mapping[str, str]
    reward: Mapping[str, str]
    user: str | None = None
    send: str | None = None
    target_send: Mapping[str, str] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)
    log_rate: str | None = None
    row_id: str | None = None
    q_logged: Mapping[str, str] = field(default_factory=dict)
    q_target: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def names(self) -> list[str]:
        """All of them, once."""
        of_model = [name for one in self.q_target.values() for name in one.values()]
        several = [*self.target.values(), *self.reward.values(), *self.target_send.values(), *self.unsupported.values()]
        single = [one for one in (self.user, self.propensity, self.send, self.log_rate, self.row_id) if one is not None]
        return list(dict.fromkeys([*single, *several, *self.q_logged.values(), *of_model]))

    def suite(self, estimators: Sequence[str]) -> Suite:
        """An empty suite. InvalidInput names an estimator there is none of, or what one lacks."""
        for name in estimators:
            if name not in ESTIMATORS:
                raise InvalidInput(f"no estimator {name!r}", field="estimators", hint=f"of {', '.join(ESTIMATORS)}")
            if name not in ("ips", "snips") and not (self.q_logged and self.q_target):
                raise InvalidInput(f"{name} needs the outcome model's predictions", field="q_logged, q_target",
                                   hint="name their columns, or leave it out")  # fmt: skip
        return Suite([ESTIMATORS[name](tuple(self.target), tuple(self.reward)) for name in dict.fromkeys(estimators)])


def check_columns(schema: pa.Schema, columns: RowColumns, where: str) -> None:
    """InvalidInput names the first column there is not, or a user's or row's that can name none."""
    for name in columns.names():
        if name not in schema.names:
            raise InvalidInput(f"{where} has no such column", field=name, hint=f"it has {', '.join(schema.names)}")
    for key in (columns.user, columns.row_id):
        if key is not None:
            _check_key(schema.field(key).type, key)


def _check_key(kind: pa.DataType, name: str) -> None:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InvalidInput(f"is of type {kind}", field=name, hint="whole numbers or texts are read")


def chosen(table: pa.Table, columns: RowColumns) -> pa.Table:
    """The columns that are read. InvalidInput: one is absent."""
    check_columns(table.schema, columns, "the rows")
    return table.select(columns.names())


def rows_of_table(table: pa.Table, columns: RowColumns, *, together: bool = False) -> Rows:
    """Checked rows; a user's in an order that does not depend on how they came; those without a user left out and counted.

    together: rows of a user are known to stand next to each other; otherwise rows are sorted by user. InvalidInput: a
    column is absent or of another kind."""
    lost = 0
    if columns.user is not None and table[columns.user].null_count:
        lost = table[columns.user].null_count
        table = table.filter(pc.is_valid(table[columns.user]))
    n = len(table)
    users = np.arange(n, dtype=np.uint64) if columns.user is None else user_keys(table[columns.user], columns.user)
    identity = None if columns.row_id is None else user_keys(table[columns.row_id], columns.row_id)
    keys = {columns.user, columns.row_id}
    numbers = {name: _numbers(table, name) for name in columns.names() if name not in keys}
    if columns.user is not None:
        order = _own_order(users, [*numbers.values(), *([] if identity is None else [identity])], together)
        users, numbers = users[order], {name: values[order] for name, values in numbers.items()}
        identity = None if identity is None else identity[order]
    found = _checked(users, identity, numbers, columns)
    found.excluded[FAULTS.index("user_missing")] += lost
    return found


def _checked(users: U64, identity: U64 | None, numbers: Mapping[str, F64], columns: RowColumns) -> Rows:
    def matrix(names: Mapping[str, str], wanted: Sequence[str]) -> F64:
        missing = [one for one in wanted if one not in names]
        if missing:
            raise InvalidInput(f"no column is named for {missing[0]!r}", field="columns", hint="name one each, or none")
        return np.stack([numbers[names[one]] for one in wanted], axis=1)

    policies, metrics = tuple(columns.target), tuple(columns.reward)
    reward, send = matrix(columns.reward, metrics), None
    if columns.send is not None:
        send = numbers[columns.send]
        reward[np.isnan(send)] = np.nan
        send = np.nan_to_num(send)
    return checked_rows(
        users, numbers[columns.propensity], matrix(columns.target, policies), reward, send=send,
        target_send=matrix(columns.target_send, policies) if columns.target_send else None,
        unsupported=matrix(columns.unsupported, policies) if columns.unsupported else None,
        log_rate=None if columns.log_rate is None else numbers[columns.log_rate],
        q_logged=matrix(columns.q_logged, metrics) if columns.q_logged else None,
        q_target=np.stack([matrix(columns.q_target.get(one, {}), metrics) for one in policies], axis=1)
        if columns.q_target
        else None,
        row_id=identity,
    )  # fmt: skip


def plain(column: pa.ChunkedArray) -> pa.Array:
    """One array of a column's values, not coded by a dictionary."""
    values = column.combine_chunks()
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def user_keys(column: pa.ChunkedArray, name: str) -> U64:
    """u64 of each: whole numbers as they are, texts hashed."""
    values = plain(column)
    if values.null_count:
        raise InvalidInput(f"{values.null_count} rows have none", field=name)
    _check_key(values.type, name)
    if pa.types.is_integer(values.type):
        wide = pa.uint64() if pa.types.is_unsigned_integer(values.type) else pa.int64()
        return values.cast(wide).to_numpy(zero_copy_only=False).astype(np.uint64)
    coded = values.dictionary_encode()
    hashes = hash_ids(coded.dictionary.to_pylist())
    return hashes[coded.indices.to_numpy(zero_copy_only=False)]


def _numbers(table: pa.Table, name: str) -> F64:
    """f64[n] of a column; NaN where it is null."""
    try:
        values = table[name].combine_chunks().cast(pa.float64())
    except pa.ArrowException as error:
        raise InvalidInput(f"holds no numbers: {error}", field=name) from None
    return np.array(values.to_numpy(zero_copy_only=False), np.float64)  # writable: kernels are compiled for such arrays


def _own_order(users: U64, values: Sequence[F64 | U64], together: bool) -> I64:
    """i64[n]: rows by user, unless they stand `together`, and within a user by a hash of `values` (f64 or u64 [n] each)."""
    key = np.zeros(len(users), np.uint64)
    for one in values:
        _absorb_each(key, one.view(np.uint64))
    sorted_already = together or bool((users[1:] >= users[:-1]).all())
    order = np.arange(len(users)) if sorted_already else np.argsort(users)
    _sort_within(users[order], key[order], order)
    return order


@kernel
def _absorb_each(state: U64, part: U64) -> None:
    """Fold one more column into each row's key."""
    for row in range(len(state)):
        state[row] = absorb(state[row], part[row])


@kernel
def _sort_within(users: U64, key: U64, order: I64) -> None:
    """Sort `order` by `key` within each user, in place (Shell 1959: most users have few rows, any may have many)."""
    start = 0
    for end in range(1, len(users) + 1):
        if end < len(users) and users[end] == users[start]:
            continue
        gap = 1
        while 3 * gap < end - start:
            gap = 3 * gap + 1
        while gap > 0:
            for row in range(start + gap, end):
                mine, place, at = key[row], order[row], row
                while at >= start + gap and key[at - gap] > mine:
                    key[at], order[at] = key[at - gap], order[at - gap]
                    at -= gap
                key[at], order[at] = mine, place
            gap //= 3
        start = end
