"""What targets would have shown: nothing else under the same policy, less where a filter is stricter, and it adds up."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.errors import InvalidInput
from serve_app.policy.document import PolicyDocument, canonical_json
from serve_app.vocabulary import Surface
from simulators.replay.counts import add_counts
from simulators.replay.items.changes import UNIT, changes_of, logged_counts
from simulators.replay.items.logged import Lists
from simulators.replay.items.making import under
from simulators.replay.items.scoring import LoggedScores, stricter
from simulators.replay.items.spec import compiled_for
from simulators.replay.spec import Target
from simulators.report.tally import Tally
from tests.unit.items_support import full_world, lists_of, logging_policy, other

DATA = full_world(3)
DOCUMENT = logging_policy(DATA)
SOURCES = {"sources": {"popular": 50}}


def slots(lists: Lists, document: PolicyDocument, filtered: bool = False) -> np.ndarray:
    policy = compiled_for(Target("t", canonical_json(document).decode()), lists.surface.name, lists.head_names)
    allowed = stricter(lists, policy, [policy], "t") if filtered else None
    return under(lists, policy, None, allowed).select().slot


def counts(lists: Lists, document: PolicyDocument) -> Tally:
    return Tally(changes_of("t", lists, slots(lists, document)))


def test_the_same_policy_changes_nothing() -> None:
    for lists in lists_of(DATA, Surface.gateway):
        found = counts(lists, DOCUMENT)
        assert found.total("t", "lists") == len(lists) * UNIT
        assert found.total("t", "lists_changed") == found.total("t", "slots_changed", "position") == 0
        assert found.by("t", "overlap", "at") == found.by("t", "overlap_of", "at")
        logged = Tally(logged_counts(lists))
        assert found.by("t", "exposures", "thing") == logged.by("logged", "exposures", "thing")


def test_a_higher_temperature_changes_more_and_shows_more_different_things() -> None:
    lists = lists_of(DATA, Surface.related)[0]
    some, more = (counts(lists, other(DOCUMENT, "related", temperature=t)) for t in (0.1, 1.0))
    assert 0 < some.total("t", "slots_changed", "position") < more.total("t", "slots_changed", "position")
    assert some.by("t", "overlap", "at")[3] > more.by("t", "overlap", "at")[3]


def test_counts_by_hand() -> None:
    lists = lists_of(DATA, Surface.widgets)[0].take([4])
    slot = lists.candidates["slot"].copy()
    first, second = (int(np.flatnonzero(slot == k)[0]) for k in (0, 1))
    slot[[first, second]] = 1, 0
    found = Tally(changes_of("t", lists, slot))
    assert found.total("t", "lists_changed") == UNIT
    assert found.by("t", "slots_changed", "position") == {0: UNIT, 1: UNIT}
    assert found.by("t", "overlap", "at")[3] == found.by("t", "overlap_of", "at")[3] == 3 * UNIT
    assert found.by("t", "overlap", "at").get(1, 0) == 0


def test_counts_do_not_depend_on_how_lists_are_parted() -> None:
    lists = lists_of(DATA, Surface.gateway)[0]
    warmer = other(DOCUMENT, "gateway", temperature=0.2)
    rows = np.arange(len(lists))
    parts = [lists.take(rows[rows % 3 == k]) for k in (2, 0, 1)]
    whole = changes_of("t", lists, slots(lists, warmer))
    assert add_counts([changes_of("t", one, slots(one, warmer)) for one in parts]).equals(whole)


def test_stricter_filters_leave_out_what_was_seen() -> None:
    lists = lists_of(DATA, Surface.related)[0]
    seen = lists.candidates["seen"]
    assert seen.any()
    strict = other(DOCUMENT, "related", filters={"seen": True}, **SOURCES)
    policy = compiled_for(Target("t", canonical_json(strict).decode()), "related", lists.head_names)
    plain = compiled_for(Target("t", canonical_json(DOCUMENT).decode()), "related", lists.head_names)
    with pytest.raises(InvalidInput, match="--retrieval"):
        LoggedScores().score(lists, [plain], lambda heads: {"t": policy})
    slot = slots(lists, strict, filtered=True)
    assert not (seen & (slot >= 0)).any()
    assert (slot >= 0).any()
