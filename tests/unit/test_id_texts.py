"""Texts of ids by column are those of ids one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve_app.ids import decision_id_text, decision_id_texts, hex_texts, parse_decision_id

U64 = st.integers(0, 2**64 - 1)


@given(rows=st.lists(st.tuples(U64, U64, st.integers(0, 2**16 - 1)), max_size=40))  # few are made one by one, many by column
def test_decision_ids_by_column_are_those_one_by_one(rows: list[tuple[int, int, int]]) -> None:
    users, requests = (np.array([row[at] for row in rows], np.uint64) for at in (0, 1))
    texts = decision_id_texts(users, requests, np.array([row[2] for row in rows], np.int32))
    assert texts == [decision_id_text(*row) for row in rows]
    assert [parse_decision_id(text) for text in texts] == rows
    assert hex_texts(users) == [f"{row[0]:016x}" for row in rows]
