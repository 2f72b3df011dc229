"""What travels between the owner and its callers arrives as it left, ready for kernels."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest

from serve_app.batch import Ragged
from serve_app.ledger.columns import HISTORY_DTYPE, CommitResult, Histories, LedgerView, Recents, UserState
from serve_app.ledger.records import Records
from tests.unit.ledger_support import entry, plan, u64


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
        assert other.flags.writeable
        assert other.flags.aligned
        assert other.flags.c_contiguous
    else:
        assert one == other


def histories(*lengths: int) -> Histories:
    entries = [entry(at, at) for at in range(sum(lengths))]
    joined = np.concatenate(entries) if entries else np.empty(0, HISTORY_DTYPE)
    return Histories(joined, np.r_[0, np.cumsum(lengths)].astype(np.int64))


def view(*lengths: int) -> LedgerView:
    n = len(lengths)
    users = np.arange(n).astype(np.uint64)
    return LedgerView(users, np.arange(n), UserState.unknown(n), histories(*lengths), np.arange(n))


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize(
    "sent",
    [
        view(), view(3), view(2, 0, 5), plan([1, 2], [0, 3], [7, 8]), plan([], [], []),
        plan([1], [0], [7], keys=[b"k" * 16], digests=[b"d" * 16], outbox=[b"{}"], settles=u64(9)),
        CommitResult(np.array([0, 1], np.int8), np.array([4, 5]), [b"", b"r"]),
        Recents(u64(1), np.array([2]), np.array([0, 1])),
    ],
)  # fmt: skip
def test_columns_arrive_as_they_left(sent: Any, protocol: int) -> None:
    same(sent, pickle.loads(pickle.dumps(sent, protocol)))


def test_a_column_of_another_dtype_is_not_taken_for_what_it_should_be() -> None:
    wrong = plan([1], [0], [7])
    wrong.new_entries = Ragged.empty(0, np.int16).values
    wrong.users = wrong.users[::-1]
    same(wrong, pickle.loads(pickle.dumps(wrong)))


def test_records_arrive_packed_and_are_read_where_they_are_wanted() -> None:
    sent = Records.of([b"one", b"", b"three" * 50])
    came: Records = pickle.loads(pickle.dumps(sent))
    assert list(came) == list(sent)
    assert came.present == 2


def test_a_view_of_some_users_is_what_reading_them_would_give() -> None:
    whole, rows = view(2, 0, 3, 1), np.array([3, 0, 1])
    part = whole.take(rows)
    assert part.users.tolist() == rows.tolist()
    assert part.histories.entries["at"].tolist() == [5, 0, 1]
    assert part.histories.offsets.tolist() == [0, 1, 3, 3]
    assert [len(getattr(part.state, field.name)) for field in dataclasses.fields(UserState)] == [3] * 7
