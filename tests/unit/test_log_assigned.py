"""The log's `arms` and `holdouts`: what the bits of a request say, with the key of its own policy."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.batch import Ragged
from serve_app.ids import hash_id
from serve_app.log.assigned import assigned_lists
from serve_app.log.filling import fill
from serve_app.policy.assigned import Trials

OLD = Trials((("price", (0.25, 0.75)), ("tone", (0.5, 0.25, 0.25))), (("quiet", 0.1),))
NEW = Trials((), (("quiet", 0.1), ("spring", 0.02)))


def _rows(trials: list[Trials], pinned: list[int], bits: list[int], held: list[int]) -> list[dict[str, Any]]:
    lists = assigned_lists(trials, np.array(pinned, np.int64), np.array(bits, np.uint64), np.array(held, np.uint64))
    rows: list[dict[str, Any]] = fill(
        "requests", len(pinned), {"user": np.zeros(len(pinned), np.uint64), **lists}
    ).to_pylist()
    return [{"arms": row["arms"], "holdouts": row["holdouts"]} for row in rows]


def test_experiments_a_request_is_not_in_are_left_out_and_every_holdout_is_named() -> None:
    (row,) = _rows([OLD], [0], [0x30], [1])
    assert row["arms"] == [{"id": hash_id("tone"), "arm": 2, "p": 0.25}]
    assert row["holdouts"] == [{"id": hash_id("quiet"), "arm": 1, "p": 0.1}]


def test_who_is_not_held_out_has_the_other_probability() -> None:
    (row,) = _rows([NEW], [0], [0], [2])
    assert row["arms"] == []
    assert row["holdouts"] == [
        {"id": hash_id("quiet"), "arm": 0, "p": 0.9},
        {"id": hash_id("spring"), "arm": 1, "p": 0.02},
    ]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)), max_size=6))
@settings(max_examples=100, deadline=None)
def test_requests_of_two_policies_are_logged_as_if_each_were_alone(rows: list[tuple[int, int, int, int]]) -> None:
    pinned, bits, held = [one[0] for one in rows], [one[1] | one[2] << 4 for one in rows], [one[3] for one in rows]
    together = _rows([OLD, NEW], pinned, bits, held)
    alone = [_rows([OLD, NEW], [pinned[at]], [bits[at]], [held[at]])[0] for at in range(len(rows))]
    assert together == alone


def test_lists_of_many_requests_share_one_run_of_values() -> None:
    lists = assigned_lists([NEW], np.zeros(3, np.int64), np.zeros(3, np.uint64), np.zeros(3, np.uint64))
    assert isinstance(lists["holdouts"], Ragged)
    assert lists["holdouts"].offsets.tolist() == [0, 2, 4, 6]
