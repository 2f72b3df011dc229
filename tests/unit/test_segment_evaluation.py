"""Segments over columns against the obvious oracle, one user at a time."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import InvalidInput
from serve_app.ids import hash_id
from serve_app.policy.document import parse_policy
from serve_app.policy.segment_tree import Segment
from serve_app.segments.evaluate import CountedNode, check_answerable, evaluate
from serve_app.segments.events import DAY_US, EventColumns, EventHistory, group_events
from serve_app.segments.population import Population
from serve_app.vocabulary import EventType
from tests.unit.segment_support import AS_OF, Person, counts_of, history_of, matches, people, population_of, trees

HOUR = DAY_US // 24


def segments_of(**trees: dict[str, Any]) -> tuple[Segment, ...]:
    return parse_policy({"name": "a", "segments": [{"id": name, "where": tree} for name, tree in trees.items()]}).segments


def shape(node: CountedNode) -> list[Any]:
    return [node.count, [shape(child) for child in node.children]]


@settings(max_examples=150, deadline=None)
@given(persons=people(), first=trees(), second=trees())
def test_members_and_counts_at_every_node_are_the_oracles(
    persons: list[Person], first: dict[str, Any], second: dict[str, Any]
) -> None:
    second = {"kind": "or", "of": [second, {"kind": "not", "of": {"kind": "segment", "id": "first"}}]}
    population = population_of(persons)
    found = evaluate(segments_of(second=second, first=first), population, history_of(persons), AS_OF)
    documents = {"first": first, "second": second}
    for name, tree in documents.items():
        expected = {one.user for one in persons if matches(tree, one, documents)}
        assert {int(population.users[row]) for row in found.members[name]} == expected
        assert shape(found.trees[name]) == counts_of(tree, persons, documents)


def counted(tree: dict[str, Any], persons: list[Person]) -> int:
    return evaluate(segments_of(one=tree), population_of(persons), history_of(persons), AS_OF).trees["one"].count


@pytest.mark.parametrize(
    ("at", "inside"),
    [(AS_OF - DAY_US, False), (AS_OF - DAY_US + 1, True), (AS_OF, True), (AS_OF + 1, False)],
)
def test_a_window_is_open_at_its_old_end_and_closed_at_the_instant(at: int, inside: bool) -> None:
    person = Person("a", events=[("view", at, 0)])
    tree = {"kind": "event_count", "event": "view", "within_days": 1, "op": ">=", "count": 1}
    assert counted(tree, [person]) == inside
    assert counted({"kind": "last_event", "event": "view", "op": "<", "days_ago": 1}, [person]) == inside


def test_events_at_one_instant_all_count() -> None:
    person = Person("a", events=[("view", AS_OF - HOUR, 0)] * 3)
    assert counted({"kind": "event_count", "event": "view", "within_days": 1, "op": "==", "count": 3}, [person]) == 1


def test_nobody_without_an_event_has_a_last_one() -> None:
    never, later = Person("a"), Person("b", events=[("view", AS_OF + 1, 0)])
    for op in ("<", ">"):
        assert counted({"kind": "last_event", "event": "view", "op": op, "days_ago": 3}, [never, later]) == 0


def test_an_unknown_attribute_value_matches_neither_equal_nor_unequal() -> None:
    for op in ("==", "!="):
        assert counted({"kind": "attribute", "name": "zone", "op": op, "value": "Asia/Seoul"}, [Person("a")]) == 0


def test_a_bucket_is_its_percent_in_expectation_and_stable_and_nested() -> None:
    users = np.sort(np.random.default_rng(3).integers(1, 2**63, 200_000).astype(np.uint64))
    population = Population(users, {}, {}, np.zeros(len(users), np.int64))
    history = EventHistory(users, [], np.empty(0, np.uint64), np.empty(0, np.int32), [])

    def of(percent: float, salt: str = "s") -> set[int]:
        tree = {"kind": "bucket", "salt": salt, "percent": percent}
        return set(evaluate(segments_of(one=tree), population, history, AS_OF).members["one"])

    for percent in (0.05, 10, 33.33):
        expected = len(users) * percent / 100
        assert abs(len(of(percent)) - expected) < 4.5 * expected**0.5
    assert of(10) < of(33.33)
    assert len(of(100)) == len(users)
    assert not of(0)
    both = len(of(10) & of(10, "other"))
    assert abs(both - len(users) / 100) < 4.5 * (len(users) / 100) ** 0.5


def test_a_repeated_event_counts_once_as_it_was_first_received() -> None:
    user, item = hash_id("a"), np.zeros(4, np.uint64)
    columns = EventColumns(
        user=np.array([user, user, user, 0], np.uint64),
        type=np.full(4, EventType.view, np.int8),
        at=np.array([AS_OF - 1, AS_OF - 2, AS_OF - 3, AS_OF - 4]),
        event_id=np.array([7, 7, 8, 9], np.uint64),
        ingested_at=np.array([20, 10, 30, 1]),
        item=item,
    )
    grouped = group_events(columns)
    assert grouped.at.tolist() == [AS_OF - 3, AS_OF - 2]
    assert grouped.users.tolist() == [user]  # the anonymous event is nobody's


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 50), st.integers(0, 6), st.integers(0, 3)),
        max_size=30,
    ),
    order=st.randoms(),
)
def test_the_order_of_rows_leaves_no_trace(rows: list[tuple[int, ...]], order: Any) -> None:
    def grouped(given: list[tuple[int, ...]]) -> list[list[int]]:
        user, kind, at, event_id, item = (np.array([row[k] for row in given], np.int64) for k in range(5))
        day = group_events(
            EventColumns(
                user.astype(np.uint64), kind.astype(np.int8), at, event_id.astype(np.uint64), at, item.astype(np.uint64)
            )
        )
        return [getattr(day, name).tolist() for name in day.__slots__]

    shuffled = list(rows)
    order.shuffle(shuffled)
    assert grouped(shuffled) == grouped(rows)


def test_asking_for_what_the_data_lacks_names_the_field_and_the_fix() -> None:
    persons = [Person("a", events=[("view", AS_OF, 0)])]
    tree = {"kind": "not", "of": {"kind": "event_count", "event": "view", "within_days": 1, "op": ">", "count": 0,
                                  "category": "boats"}}  # fmt: skip
    with pytest.raises(InvalidInput, match=r"segments.0.where.of.category: no item has category 'boats' \(known: books, "):
        check_answerable(segments_of(one=tree), population_of(persons), history_of(persons))
    tree = {"kind": "and", "of": [{"kind": "attribute", "name": "customer", "op": "==", "value": True}]}
    with pytest.raises(InvalidInput, match=r"segments.0.where.of.0.name: customer is the ledger's to say.*ledger seed"):
        check_answerable(segments_of(one=tree), population_of(persons), history_of(persons))


def test_a_chain_of_many_references_is_no_deep_recursion() -> None:
    tree: dict[str, Any] = {"kind": "attribute", "name": "consent_ad", "op": "==", "value": True}
    chain = {"s0": tree}
    for number in range(1, 64):
        below: dict[str, Any] = {"kind": "segment", "id": f"s{number - 1}"}
        for _ in range(30):
            below = {"kind": "not", "of": below}
        chain[f"s{number}"] = below
    persons = [Person("a", consent_ad=True), Person("b")]
    found = evaluate(segments_of(**dict(reversed(chain.items()))), population_of(persons), history_of(persons), AS_OF)
    assert found.trees["s63"].count == 1


def test_evaluating_needs_no_ray_no_files_and_no_ledger() -> None:
    impure = "{'ray', 'pyarrow', 'sqlite3', 'redis'} & set(sys.modules)"
    code = f"import sys, serve_app.segments.evaluate; print({impure})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
