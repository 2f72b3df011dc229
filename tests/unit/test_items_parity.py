"""Lists under the policy that made them are the lists that were logged; what differs is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from serve_app.errors import InvalidInput
from serve_app.policy.document import canonical_json
from serve_app.vocabulary import Surface
from simulators.replay.items.logged import Lists
from simulators.replay.items.making import Made, as_logged
from simulators.replay.items.parity import parity_of
from simulators.replay.items.spec import compiled_for, surfaces_named
from simulators.replay.parity import Parity
from simulators.replay.spec import Target
from tests.unit.items_support import full_world, lists_of, logging_policy, other

DATA = full_world(3)
DOCUMENT = logging_policy(DATA)


def made(lists: Lists, **changed: object) -> Made:
    document = other(DOCUMENT, lists.surface.name, **changed)
    target = Target("logged", canonical_json(document).decode())
    return as_logged(lists, [compiled_for(target, lists.surface.name, lists.head_names)])


@pytest.mark.parametrize("surface", [Surface.related, Surface.gateway, Surface.widgets])
def test_every_list_comes_out_bit_for_bit(surface: Surface) -> None:
    total = sum((parity_of(one, made(one)) for one in lists_of(DATA, surface)), Parity())
    assert total.requests > 300
    assert (total.same, total.columns) == (total.requests, {}), total.examples


@pytest.mark.parametrize(("column", "row"), [("p_slot", 0), ("value", 3)])
def test_a_single_bit_is_noticed_and_shown(column: str, row: int) -> None:
    lists = lists_of(DATA, Surface.gateway)[0]
    changed = lists.candidates[column].copy()
    place = int(np.flatnonzero(~np.isnan(changed))[row])
    changed[place] = np.nextafter(changed[place], 9.0)
    found = parity_of(replace(lists, candidates={**lists.candidates, column: changed}), made(lists))
    assert found.columns == {column: 1}
    assert found.same == found.requests - 1
    assert found.examples[0].request_id == lists.requests["request_id"][lists.owner[place]]
    assert found.examples[0].logged != found.examples[0].replayed


def test_another_policy_is_not_taken_for_the_one_that_logged() -> None:
    lists = lists_of(DATA, Surface.gateway)[0]
    found = parity_of(lists, made(lists, temperature=0.0801))
    assert found.same == 0
    assert "p_slot" in found.columns


def test_a_head_that_was_not_logged_is_refused_with_what_would_help() -> None:
    lists = lists_of(DATA, Surface.related)[0]
    with pytest.raises(InvalidInput, match=r"p_regret.*--release"):
        made(lists, head_weights={"p_regret": 1.0})


def test_similarity_by_embedding_asks_for_the_release() -> None:
    lists = lists_of(DATA, Surface.related)[0]
    with pytest.raises(InvalidInput, match="vectors of the release"):
        made(lists, diversity={"mmr_lambda": 0.5, "redundancy": "embedding"})


def test_surfaces_by_name() -> None:
    assert surfaces_named([]) == (True, ())
    assert surfaces_named(["gateway"]) == (False, ("gateway",))
    assert surfaces_named(["widgets", "notification"]) == (True, ("widgets",))
    assert surfaces_named(["all"]) == (True, ("related", "gateway", "widgets", "reviews"))
    with pytest.raises(InvalidInput, match="one of related, gateway"):
        surfaces_named(["front page"])
