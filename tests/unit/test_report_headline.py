"""Which estimator speaks at the top of a report follows from what a policy changes, not from what the numbers are."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from serve_app.policy.document import PolicyDocument, canonical_json, load_policy, parse_policy
from simulators.replay.spec import ReplaySpec, Target
from simulators.report.headline import MYOPIC, headlines, preferred
from simulators.world.publish import BEHAVIOUR

VOLUME = [{"policy": "logged", "sends": 100, "users": 50}, {"policy": "new", "sends": 80, "users": 50}]


def changed(**parts: Any) -> PolicyDocument:
    body: dict[str, Any] = orjson.loads(canonical_json(load_policy(BEHAVIOUR)))
    for name, value in parts.items():
        body[name] = value(body[name]) if callable(value) else value
    return parse_policy(body)


def first_choice(document: PolicyDocument) -> str:
    texts = [canonical_json(one).decode() for one in (load_policy(BEHAVIOUR), document)]
    spec = ReplaySpec("", (Target("new", texts[1]),), (Target("old", texts[0]),), 0, 1)
    return preferred(spec)["new"][0]


@pytest.mark.parametrize(
    "parts",
    [
        {"caps": lambda caps: [{**caps[0], "limit": 1}, *caps[1:]]},
        {"threshold": 0.2},
        {"quiet_hours": []},
        {"min_gap": {"minutes": 5}},
        {"cells": None},
        {"max_sends_per_decision": 2},
    ],
)
def test_rules_that_act_through_histories_are_left_to_cells(parts: dict[str, Any]) -> None:
    assert first_choice(changed(**parts)) == "cells"


@pytest.mark.parametrize(
    "parts", [{"description": "the same"}, {"order": "value"}, {"flips": lambda one: {**one, "probability": 0.2}}]
)
def test_other_changes_are_weighed_decision_by_decision(parts: dict[str, Any]) -> None:
    assert first_choice(changed(**parts)) == "sndr"


def _row(estimator: str, difference: float | None, standing: str = "usable") -> dict[str, Any]:
    row: dict[str, Any] = {
        "policy": "new", "metric": "clicks", "per": "user", "estimator": estimator, "standing": standing, "reasons": [],
        "plan": "",
    }  # fmt: skip
    ends = (
        {}
        if difference is None
        else {"logged": 2.0, "difference": difference, "low": difference - 1, "high": difference + 1}
    )
    return {**row, **ends}


def test_sends_are_counted_and_shares_are_of_the_logs_value() -> None:
    found = headlines([_row("snips", 1.0)], VOLUME, {"new": ("snips",)})["new"]
    assert (found["sends"]["standing"], found["sends"]["relative"]) == ("exact", pytest.approx(-0.2))
    assert (found["clicks"]["relative"], found["clicks"]["relative_low"]) == (0.5, 0.0)


def test_what_stands_in_for_refused_cells_is_weak_and_says_why() -> None:
    rows = [_row("snips", 1.0), _row("cells", None, "refused")]
    found = headlines(rows, VOLUME, {"new": ("cells", "snips")})["new"]["clicks"]
    assert (found["estimator"], found["standing"]) == ("snips", "weak")
    assert MYOPIC in found["reasons"]


def test_where_all_are_refused_there_is_no_number() -> None:
    rows = [_row("snips", None, "refused"), _row("cells", None, "refused")]
    found = headlines(rows, VOLUME, {"new": ("snips", "cells")})["new"]["clicks"]
    assert found["standing"] == "refused"
    assert not {"difference", "relative", "low"} & set(found)


def test_a_better_number_changes_nothing_about_who_speaks() -> None:
    for value in (-5.0, 0.0, 5.0):
        rows = [_row("snips", value, "weak"), _row("ips", 1.0), _row("cells", 2.0)]
        assert headlines(rows, VOLUME, {"new": ("snips", "ips", "cells")})["new"]["clicks"]["estimator"] == "snips"
