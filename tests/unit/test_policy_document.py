"""The document: the default compiles, revisions follow content, variants combine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import ContradictoryPolicy, InvalidInput
from serve_app.policy.compile import compile_policy
from serve_app.policy.document import DEFAULT_POLICY, PolicyDocument, canonical_json, load_policy, parse_policy
from serve_app.policy.tables import CAP_LIMIT
from serve_app.vocabulary import Surface

NOTIFICATION = {"notification": ("p_click", "p_convert", "p_optout", "uplift")}


def test_the_default_policy_loads_compiles_and_survives_json(tmp_path: Path) -> None:
    default = load_policy(DEFAULT_POLICY)
    policy = compile_policy(default, heads=NOTIFICATION)
    assert len(policy.variants) == 3
    path = tmp_path / "policy.json"
    path.write_bytes(canonical_json(default))
    again = load_policy(path)
    assert again == default
    assert again.revision == default.revision


def test_a_revision_follows_content_and_not_form() -> None:
    plain: dict[str, Any] = {"name": "a", "threshold": 0.5}
    assert parse_policy(plain).revision == parse_policy(json.loads(json.dumps(plain)) | {"format": 1}).revision
    assert parse_policy(plain).revision != parse_policy(plain | {"threshold": 0.6}).revision


def test_plain_words_stay_words_and_clock_times_need_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("name: no\nquiet_hours:\n  - {id: on, start: 21:00, end: 08:30}\n")
    document = load_policy(path)
    assert document.name == "no"
    assert (document.quiet_hours[0].id, document.quiet_hours[0].start) == ("on", "21:00")


def test_a_head_nobody_provides_is_named() -> None:
    document = parse_policy({"name": "a", "surfaces": {"gateway": {"head_weights": {"p_magic": 1.0}}}})
    with pytest.raises(InvalidInput, match=r"surfaces.gateway.head_weights.p_magic: no model provides this head"):
        compile_policy(document, heads=["p_click"])
    with pytest.raises(InvalidInput, match="no surface 'gatewya'"):
        compile_policy(document, heads={"gatewya": ["p_click"]})
    compile_policy(document, heads=NOTIFICATION)  # a release without the gateway does not need its heads


def test_a_class_weighs_heads_of_its_own() -> None:
    classes = {"advertising": {"head_weights": {"uplift": 2.0}}}
    surfaces = {"notification": {"head_weights": {"p_click": 1.0}}}
    policy = compile_policy(
        parse_policy({"name": "a", "message_classes": classes, "surfaces": surfaces}), heads=NOTIFICATION
    )
    assert policy.weights[0].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 2]]


def test_variants_combine_arms_and_cells() -> None:
    cap = {"id": "c", "scope": "global", "limit": 3, "window": {"rolling_hours": 24}}
    arms = [{"id": "a", "percent": 50}, {"id": "b", "percent": 50, "overrides": {"threshold": 0.9}}]
    cells = [{"id": "base", "probability": 0.5}, {"id": "tight", "probability": 0.5, "overrides": {"caps.c.limit": 1}}]
    document = parse_policy({
        "name": "a", "caps": [cap], "experiments": [{"id": "e", "salt": "e", "arms": arms}],
        "cells": {"epoch_hours": 24, "variants": cells},
    })  # fmt: skip
    policy = compile_policy(document, heads=NOTIFICATION)
    assert policy.settings.caps[:, 0, CAP_LIMIT].tolist() == [3, 1, 3, 1, 3, 1]
    assert policy.settings.thresholds[:, 2].tolist() == [0, 0, 0, 0, 0.9, 0.9]


def test_list_settings_reach_the_stages_as_they_take_them() -> None:
    policy = compile_policy(load_policy(DEFAULT_POLICY), heads=NOTIFICATION)
    gateway = policy.list_settings(Surface.gateway)
    assert (gateway.window, gateway.per_window, gateway.mmr_lambda) == (4, 2, 0.8)
    retrieval = policy.retrieval(Surface.gateway)
    assert retrieval is not None
    assert retrieval.drop_bought
    assert not retrieval.drop_seen


def test_the_longest_window_covers_every_variant() -> None:
    cap = {"id": "c", "scope": "global", "limit": 3, "window": {"rolling_hours": 24}}
    arms = [{"id": "a", "percent": 50}, {"id": "b", "percent": 50, "overrides": {"caps.c.window.rolling_hours": 72}}]
    document = PolicyDocument.model_validate(
        {"name": "a", "caps": [cap], "experiments": [{"id": "e", "salt": "e", "arms": arms}]}
    )
    assert compile_policy(document, heads=NOTIFICATION).longest_window_us == 72 * 3_600_000_000


def test_contradictions_are_their_own_kind_of_error() -> None:
    with pytest.raises(ContradictoryPolicy):
        parse_policy({"name": "a", "segments": [{"id": "s", "where": {"kind": "segment", "id": "t"}}]})
