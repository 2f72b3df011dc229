"""The document: the default compiles, revisions follow content, malformed documents name line, field and fix."""

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

ARMS = "arms: [{id: a, percent: 50}, {id: b, percent: 50, overrides: {%s}}]}\n"
NOTIFICATION = {"notification": ("p_click", "p_convert", "p_optout", "uplift")}

# (document, error text): line, field and fix are all in it.
MALFORMED = [
    ("name: a\nthresholt: 1\n", r"thresholt: .* line 2: unknown key \(remove it or correct its spelling\)"),
    ("threshold: 1\n", r"name: .*: missing \(state it\)"),
    ("name: a\nthreshold: high\n", r"threshold: .* line 2: input should be a valid number.*\(got 'high'\)"),
    ("name: a\nname: b\n", r"name: .* line 2: the key stands twice, first in line 1 \(keep one of them\)"),
    ("name: [a\n", r"document: .* line 2: .*\(fix the YAML\)"),
    ("", r"document: .* is empty \(start from"),
    ("name: a\ncaps:\n  - {id: c, scope: global, limit: -1, window: {rolling_hours: 24}}\n",
     r"caps.0.limit: .* line 3: .*greater than or equal to 0"),
    ("name: a\ncaps:\n  - {id: c, scope: global, limit: 1, window: {rolling_hours: 24, calendar: day}}\n",
     r"caps.0.window: .* line 3: give exactly one of rolling_hours and calendar"),
    ("name: a\ncaps:\n  - {id: c, scope: channel, only: [fax], limit: 1, window: {calendar: day}}\n",
     r"caps.0: .* unknown channel 'fax'.*one of push"),
    ("name: a\ncaps:\n  - {id: c, scope: global, limit: 1, window: {calendar: day}}\n"
     "  - {id: c, scope: global, limit: 2, window: {calendar: day}}\n",
     r"caps.1.id: .* line 4: the id 'c' stands twice \(rename one\)"),
    ("name: a\nquiet_hours:\n  - id: n\n    start: '22:00'\n    end: '8:00'\n",
     r"quiet_hours.0.end: .* line 5: '8:00' is not a time of day; write it in quotes as \"HH:MM\""),
    ("name: a\nquiet_hours:\n  - {id: n, start: '22:00', end: '22:00'}\n", r"start equals end"),
    ("name: a\ndefault_zone: Korea\n", r"zone: .*'Korea' is not a time zone \(use an IANA name such as Asia/Seoul\)"),
    ("name: a\nholdouts:\n  - {id: h, scope: global, percent: 0.005, salt: s}\n",
     r"holdouts.0.percent: .* line 3: 0.005 has more than two decimals; percent is exact to 0.01"),
    ("name: a\nholdouts:\n  - {id: h, scope: campaign, percent: 1, salt: s}\n", r"scope campaign needs `campaigns`"),
    ("name: a\nholdouts:\n  - {id: h, scope: global, percent: 1, salt: s, starts_at: '2026-02-01T00:00:00Z', "
     "ends_at: '2026-01-01T00:00:00Z'}\n", r"holdouts.0.ends_at: .* ends_at is not after starts_at"),
    ("name: a\nholdouts:\n  - {id: h, scope: global, percent: 1, salt: s, starts_at: 2026-02-01}\n",
     r"is not an instant; write date, time and offset as 2026-01-31T09:00:00\+09:00"),
    ("name: a\nholdouts:\n  - {id: h, scope: global, percent: 1, salt: s}\n"
     "  - {id: i, scope: global, percent: 1, salt: s}\n",
     r"holdouts.1.salt: .* line 4: the salt 's' is also that of holdouts.0.salt.*\(give each its own salt\)"),
    ("name: a\nexperiments:\n  - {id: e, salt: s, arms: [{id: a, percent: 50}, {id: b, percent: 40}]}\n",
     r"experiments.0: .* the arms' percents sum to 90, not to 100"),
    ("name: a\nexperiments:\n  - {id: e, salt: s, " + ARMS % "caps.x.limit: 1",
     r"experiments.0.arms.1.overrides.caps.x.limit: .* no element 'x' at caps.x \(ids there: none\)"),
    ("name: a\nexperiments:\n  - {id: e, salt: s, " + ARMS % "regions.kr: 1",
     r"'regions' must not be overridden here \(one of caps"),
    ("name: a\nexperiments:\n  - {id: e, salt: s, " + ARMS % "flips.probability: 2",
     r"override gives flips.probability: Input should be less than or equal to 1"),
    ("name: a\nexperiments:\n  - {id: e, salt: s, " + ARMS % "threshold: 2" +
     "  - {id: f, salt: t, " + ARMS % "threshold: 3",
     r"experiments.1.arms.1.overrides.threshold: .* line 4: 'threshold' is also overridden by experiment 'e' \(let one"),
    ("name: a\ncaps:\n  - {id: c, scope: global, limit: 1, window: {rolling_hours: 48}}\ncells:\n  epoch_hours: 24\n"
     "  variants: [{id: a, probability: 0.5}, {id: b, probability: 0.5}]\n",
     r"cells.epoch_hours: .* line 5: an epoch of 24 h is shorter than the longest window, 48 h \(make epoch_hours at"),
    ("name: a\ncells: {epoch_hours: 24, variants: [{id: a, probability: 0.5}, {id: b, probability: 0.4}]}\n",
     r"the cells' probabilities sum to 0.9, not to 1; add a cell without overrides for the rest"),
    ("name: a\nsegments:\n  - {id: s, where: {kind: segment, id: t}}\n",
     r"segments.0.where: .* line 3: no segment 't' \(define it\)"),
    ("name: a\nsegments:\n  - {id: s, where: {kind: not, of: {kind: segment, id: s}}}\n", r"the segment refers to itself"),
    ("name: a\nsurfaces: {gateway: {sources: {similar: 10, magic: 5}}}\n", r"unknown source 'magic'; one of similar"),
    ("name: a\nregions: {kr: {ad_label: '(광고)'}, us: {ad_label: AD}}\n", r"regions demand different labels"),
    ("name: a\nregions: {Korea: {}}\n", r"regions.Korea.*should match pattern"),
    ("name: a\nflips: {probability: .nan}\n", r"flips.probability"),
    ("[1, 2]", r"document: .*valid dictionary"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "error"), MALFORMED)
def test_a_malformed_document_is_refused_with_line_field_and_fix(text: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=error):
        load_policy(path)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot read"):
        load_policy(tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"name: \xff\xfe")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        load_policy(binary)


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
