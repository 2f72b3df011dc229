"""Growing lists in one array: whatever is appended, dropped and replaced, each list holds its own records and no other's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.batch import lengths_to_offsets
from serve_app.ledger.arena import Arena

RECORD = np.dtype([("at", "i8"), ("value", "i8")])
LISTS = 6

counts = st.lists(st.integers(0, 5), min_size=LISTS, max_size=LISTS)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), counts), st.tuples(st.just("replace"), counts), st.tuples(st.just("trim"), counts)
    ),
    max_size=40,
)


def _records(values: list[list[int]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    flat = np.array([value for one in values for value in one], np.int64)
    records = np.empty(len(flat), RECORD)
    records["at"] = records["value"] = flat
    return records, lengths_to_offsets([len(one) for one in values])


@settings(max_examples=300)
@given(steps)
def test_lists_are_what_plain_lists_would_be(steps: list[tuple[str, list[int]]]) -> None:
    arena, plain, newest = Arena(RECORD), [[] for _ in range(LISTS)], 0
    arena.grow_rows(LISTS)
    rows = np.arange(LISTS)
    for kind, sizes in steps:
        new: list[list[int]] = []
        for size in sizes:
            new.append(list(range(newest + 1, newest + 1 + size)))
            newest += size
        if kind == "trim":
            keep = max(sizes)
            arena.trim(rows, np.full(LISTS, -1), keep, np.zeros(LISTS, np.int64))
            plain = [one[max(0, len(one) - keep) :] for one in plain]
        elif kind == "replace":
            arena.replace(rows, *_records(new))
            plain = new
        else:
            arena.append(rows, *_records(new))
            plain = [one + more for one, more in zip(plain, new, strict=True)]
        records, offsets = arena.gather(rows)
        assert [records["value"][offsets[i] : offsets[i + 1]].tolist() for i in range(LISTS)] == plain
        for row in range(-1, LISTS):
            own, ends = arena.gather(np.array([row]))
            assert own["value"].tolist() == (plain[row] if row >= 0 else [])
            assert ends.tolist() == [0, len(own)]


@pytest.mark.parametrize("several", [2, 3])
def test_packing_takes_no_room_from_a_list_that_several_records_are_appended_to(several: int) -> None:
    """A list with spare room keeps it, or moves, when the same append makes the arena pack."""
    arena = Arena(RECORD)
    arena.grow_rows(40)
    for row in range(14):  # fills the first words but for a little
        arena.append(np.array([row]), *_records([[row]]))
    rows = np.arange(0, 40)
    new = [[100 + row * 10 + k for k in range(several)] for row in rows.tolist()]
    arena.append(rows, *_records(new))
    records, offsets = arena.gather(rows)
    for row in rows.tolist():
        assert records["value"][offsets[row] : offsets[row + 1]].tolist() == ([row] if row < 14 else []) + new[row]
