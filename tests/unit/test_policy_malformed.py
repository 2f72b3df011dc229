"""Malformed documents: each is refused with line, field and fix in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.errors import ContradictoryPolicy, InvalidInput
from serve_app.policy.document import load_policy, review_policy

ARMS = "arms: [{id: a, percent: 50}, {id: b, percent: 50, overrides: {%s}}]}\n"
CAP_C = "caps:\n  - {id: c, scope: global, limit: 3, window: {rolling_hours: 24}}\n"

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
    # --- text: bounded before it is built
    ("name: a\ncaps: &a [*a, *a]\n", r"caps.*line 2: nested deeper than 100 \(flatten it\)"),
    ("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n"
     for i in range(9)), r"line 1: more than 400000 values, aliases unfolded \(use fewer aliases\)"),
    ("[" * 3000 + "]" * 3000, r"document: .*nested deeper than 100"),
    ("name: a\nthreshold: " + "1" * 5000 + "\n", r"threshold: .* line 2: a number of 5000 digits \(write it shorter\)"),
    ("name: !!python/object/apply:os.system [ls]\n",
     r"name: .* line 1: the tag .*os.system is not read here \(remove the tag\)"),
    ("name: a\nthreshold: !!int high\n", r"threshold: .* line 2: 'high' is no int"),
    ("name: !!binary aGk=\n", r"name: .* the tag .*binary is not read here"),
    ("? [a]\n: 1\n", r"document: .* line 1: a key is a list or a mapping \(keys are text\)"),
    ("name: a\n---\nname: b\n", r"document: .* line 2: but found another document"),
    ("name: a\n\tthreshold: 1\n", r"document: .* line 2: .*\(fix the YAML\)"),
    ("name: *b\n", r"document: .* line 1: found undefined alias 'b'"),
    ("name: a\x00\n", r"document: .*special characters are not allowed"),
    ('{"name": "a", "caps": [], "caps": []}', r"caps: .* line 1: the key stands twice"),
    ('{"name": "a",\n\t"colour": 1}', r"colour: .* line 2: unknown key"),
    ('{"name": "a", "threshold": NaN}', r"threshold: .*finite number"),
    ("just text\n", r"document: .*valid dictionary"),
    ("<<: {threshold: 1}\nname: a\n", r"<<: .* line 1: unknown key"),
    # --- types are never guessed
    ("name: a\nthreshold: '0.5'\n", r"threshold: .*valid number \(got '0.5'\)"),
    ("name: 7\n", r"name: .* line 1: input should be a valid string \(got 7\)"),
    ("name: a\nmax_sends_per_decision: 1.0\n", r"max_sends_per_decision: .*valid integer \(got 1.0\)"),
    ("name: a\nmax_sends_per_decision: true\n", r"max_sends_per_decision: .*valid integer \(got True\)"),
    ("name: a\nkill_switches: {all: 'yes'}\n",
     r"kill_switches.all: .* line 2: input should be a valid boolean \(got 'yes'\)"),
    ("name: a\nmessage_classes: {transactional: {bypass_caps: 1}}\n", r"bypass_caps: .*valid boolean \(got 1\)"),
    ("name: a\ncaps: {}\n", r"caps: .* line 2: input should be a valid list"),
    ("name: a\nmin_gap: 60\n", r"min_gap: .* line 2: input should be a valid dictionary \(got 60\)"),
    # --- bounds
    ("name: ''\n", r"name: .*at least 1 character"),
    ("name: a\nformat: 2\n", r"format: .* line 2: input should be 1 \(got 2\)"),
    ("name: a\nmax_sends_per_decision: 17\n", r"max_sends_per_decision: .*less than or equal to 16 \(got 17\)"),
    ("name: a\nthreshold: .inf\n", r"threshold: "),
    ("name: a\nmin_gap: {minutes: -1}\n", r"min_gap.minutes: .*greater than or equal to 0 \(got -1\)"),
    ("name: a\nmin_gap: {counts: [spam]}\n",
     r"min_gap.counts.0: .*'transactional', 'informational' or 'advertising' \(got 'spam'\)"),
    ("name: a\norder: random\n", r"order: .*'priority_then_value' or 'value' \(got 'random'\)"),
    ("name: a\ndeferral: {max_attempts: 31}\n", r"deferral.max_attempts: .*less than or equal to 30"),
    ("name: a\ndeferral: {spread_minutes: 721}\n", r"deferral.spread_minutes: .*less than or equal to 720"),
    ("name: a\nsegment_staleness_hours: 0\n", r"segment_staleness_hours: .*greater than 0"),
    ("name: a\nduplicate_window_hours: 10000\n", r"duplicate_window_hours: .*less than or equal to 8784"),
    ("name: a\nkill_switches: {channels: [fax]}\n", r"kill_switches.channels.0: .* line 2: .*'push'.*\(got 'fax'\)"),
    ("name: a\nflips: {probability: 1.5}\n", r"flips.probability: .*less than or equal to 1 \(got 1.5\)"),
    ("name: a\nflips: {to: best}\n", r"flips.to: .*\(got 'best'\)"),
    # --- caps
    ("name: a\ncaps:\n  - {scope: global, limit: 1, window: {calendar: day}}\n",
     r"caps.0.id: .* line 3: missing \(state it\)"),
    ("name: a\ncaps:\n  - {id: 'a.b', scope: global, limit: 1, window: {calendar: day}}\n", r"caps.0.id: .*match pattern"),
    ("name: a\ncaps:\n  - {id: c, scope: user, limit: 1, window: {calendar: day}}\n", r"caps.0.scope: .*\(got 'user'\)"),
    ("name: a\ncaps:\n  - {id: c, scope: global, only: [push], limit: 1, window: {calendar: day}}\n",
     r"caps.0: .* line 3: a global cap has no `only`; use scope channel, category or campaign"),
    ("name: a\ncaps:\n  - {id: c, scope: global, limit: 1, window: {calendar: year}}\n",
     r"window.calendar: .*\(got 'year'\)"),
    ("name: a\ncaps:\n  - {id: c, scope: global, limit: 1, window: {}}\n", r"caps.0.window: .*exactly one of"),
    ("name: a\ncaps:\n  - {id: c, scope: global, limit: 1, window: {rolling_hours: 0}}\n",
     r"caps.0.window.rolling_hours: .*greater than or equal to 0.0002"),
    ("name: a\ncaps:\n  - {id: c, scope: global, limit: 1, window: {rolling_hours: 9999}}\n", r"less than or equal to 8784"),
    ("name: a\ncaps:\n  - {id: c, scope: global, limit: 1, per: day, window: {calendar: day}}\n",
     r"caps.0.per: .*unknown key"),
    ("name: a\ncaps: ["
     + ",".join(f"{{id: c{i}, scope: global, limit: 1, window: {{calendar: day}}}}" for i in range(33)) + "]\n",
     r"caps: .* line 2: the list should have at most 32 items"),
    # --- quiet hours, regions
    ("name: a\nquiet_hours:\n  - {id: n, start: 2200, end: '08:00'}\n", r"quiet_hours.0.start: .*2200 is not a time of day"),
    ("name: a\nquiet_hours:\n  - {id: n, start: '22:00', end: '25:00'}\n", r"'25:00' is not a time of day"),
    ("name: a\nquiet_hours:\n  - {id: n, start: '22:00', end: '08:00', action: wait}\n", r"action: .*'drop' or 'defer'"),
    ("name: a\nregions:\n  kr: {night_start: '21:00', night_end: '21:00'}\n",
     r"regions.kr: .* line 3: night_start equals night_end; for the whole day write 00:00 to 24:00"),
    ("name: a\nregions:\n  kr: {ad_label: ''}\n", r"regions.kr.ad_label: .*at least 1 character"),
    ("name: a\nregions:\n  KR: {}\n", r"regions.KR.*line 3: .*match pattern '\^\[a-z\]\{2\}\$'"),
    ("name: a\nother_regions: {consent_valid_days: 730.5}\n", r"consent_valid_days: .*valid integer"),
    # --- holdouts, experiments, cells
    ("name: a\nholdouts:\n  - {id: h, scope: global, percent: 101, salt: s}\n",
     r"holdouts.0.percent: .*less than or equal to 100"),
    ("name: a\nholdouts:\n  - {id: h, scope: global, percent: 1, salt: ''}\n", r"holdouts.0.salt: .*at least 1 character"),
    ("name: a\nholdouts:\n  - {id: h, scope: global, campaigns: [x], percent: 1, salt: s}\n",
     r"scope campaign needs `campaigns`, scope global must not have them"),
    ("name: a\nholdouts:\n  - {id: h, scope: global, percent: 1, salt: s, starts_at: '2026-02-30T00:00:00Z'}\n",
     r"holdouts.0.starts_at: .* line 3: '2026-02-30T00:00:00Z' is no day and time of the calendar"),
    ("name: a\nholdouts:\n  - {id: h, scope: global, percent: 1, salt: s, starts_at: '2026-02-01T00:00:00'}\n",
     r"is not an instant; write date, time and offset"),
    ("name: a\nexperiments:\n  - {id: e, salt: s, arms: [{id: a, percent: 100}]}\n", r"arms: .*at least 2 items"),
    ("name: a\nexperiments:\n  - {id: e, salt: s, arms: [{id: a, percent: 50}, {id: a, percent: 50}]}\n",
     r"experiments.0.arms.1.id: .* line 3: the id 'a' stands twice \(rename one\)"),
    ("name: a\n" + CAP_C + "experiments:\n  - {id: e, salt: s, " + ARMS % "caps.c.limit: 1, caps.0.limit: 2",
     r"overrides.caps.0.limit: .*'caps.0.limit' is the same setting as 'caps.c.limit' \(keep one of them\)"),
    ("name: a\n" + CAP_C + "experiments:\n  - {id: e, salt: s, " + ARMS % "caps.c.limit: 1" +
     "  - {id: f, salt: t, " + ARMS % "caps.0.limit: 2",
     r"experiments.1.arms.1.overrides.caps.0.limit: .* line 6: 'caps.0.limit' is also overridden by experiment 'e'"),
    ("name: a\n" + CAP_C + "experiments:\n  - {id: e, salt: s, " + ARMS % "caps.c.limit: many",
     r"overrides.caps.c.limit: .* line 5: override gives caps.0.limit: Input should be a valid integer"),
    ("name: a\n" + CAP_C + "experiments:\n  - {id: e, salt: s, " + ARMS % "caps.c.window.calendar: day",
     r"override gives caps.0.window: give exactly one of rolling_hours and calendar"),
    ("name: a\n" + CAP_C + "experiments:\n  - {id: e, salt: s, " + ARMS % "caps.c.scope: channel",
     r"'scope' is not a setting to override \(not to be overridden: id, only, salt, scope\)"),
    ("name: a\n" + CAP_C + "experiments:\n  - {id: e, salt: s, " + ARMS % "caps.c.window: day",
     r"the path leads to a group of settings, not to one \(extend the path\)"),
    ("name: a\nexperiments:\n  - {id: e, salt: s, " + ARMS % "surfaces.gateway.width: 60" +
     "  - {id: f, salt: t, " + ARMS % "surfaces.gateway.min_width: 90",
     r"experiments.0.arms.1.overrides: .* together with experiment 'f': .*min_width is larger than width"),
    ("name: a\n" + CAP_C + "experiments:\n  - {id: e, salt: s, " + ARMS % "caps.c.window.rolling_hours: 50" +
     "cells: {epoch_hours: 48, variants: [{id: a, probability: 0.5}, {id: b, probability: 0.5}]}\n",
     r"cells.epoch_hours: .* line 6: an epoch of 48 h is shorter than the longest window, 50 h"),
    ("name: a\ncells: {epoch_hours: 24, variants: [{id: a, probability: 0.5}, {id: b, probability: 0.5, "
     "overrides: {order: value}}]}\n",
     r"'order' must not be overridden here \(one of caps, min_gap, quiet_hours, threshold\)"),
    ("name: a\nthreshold: 0\ncells: {epoch_hours: 24, variants: [{id: a, probability: 0.5}, {id: b, probability: 0.5, "
     "overrides: {threshold: 1}}]}\nexperiments:\n  - {id: e, salt: s, " + ARMS % "threshold: 2",
     r"cells.variants.1.overrides.threshold: .* line 3: 'threshold' is also overridden by experiment 'e'"),
    ("name: a\nexperiments:\n" + "".join(f"  - {{id: e{i}, salt: s{i}, arms: ["
     "{id: a, percent: 50}, {id: b, percent: 50}, {id: c, percent: 0}]}\n" for i in range(6)),
     r"arms and cells combine to 4096 variants, more than 1024 \(run fewer"),
    ("name: a\nholdouts:\n  - {id: h, scope: global, percent: 1, salt: s}\nsegments:\n"
     "  - {id: v, where: {kind: not, of: {kind: bucket, salt: s, percent: 5}}}\n",
     r"segments.0.where.*: .* line 5: a bucket's salt 's' is also that of holdouts.0.salt"),
    # --- lists, segments
    ("name: a\nsurfaces:\n  gateway:\n    diversity:\n      rules: [{window: 4, max: 2}, {window: 9, max: 3}]\n",
     r"surfaces.gateway.diversity: .* line 4: 2 window rules on one surface, and lists obey one; keep the strictest"),
    ("name: a\nsurfaces: {gateway: {diversity: {rules: [{window: 4, max: 4}]}}}\n", r"max must be smaller than window"),
    ("name: a\nsurfaces: {gateway: {min_width: 90, width: 50}}\n", r"surfaces.gateway: .* min_width is larger than width"),
    ("name: a\nsurfaces: {push: {}}\n", r"surfaces.push: .* line 2: unknown key"),
    ("name: a\nsurfaces: {gateway: {head_weights: {p_click: a lot}}}\n",
     r"head_weights.p_click: .*valid number \(got 'a lot'\)"),
    ("name: a\nsegments:\n  - {id: s, where: {kind: magic}}\n", r"segments.0.where: .*"),
    ("name: a\nsegments:\n  - {id: s, where: {kind: bucket, salt: s, percent: 5.001}}\n",
     r"5.001 has more than two decimals"),
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


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_text("name: " + "a" * (4 * 1024 * 1024))
    with pytest.raises(InvalidInput, match=r"file: large\.yaml has 4194310 bytes, more than 4194304"):
        load_policy(large)


def test_json_may_be_written_with_tabs_and_pairs_of_surrogates(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{\n\t"name": "\\ud83d\\ude00",\n\t"threshold": 1\n}')
    assert load_policy(path).name == "\U0001f600"


def test_a_review_lists_every_problem_and_a_load_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("name: a\nthresholt: 1\nthreshold: high\nmin_gap: {minutes: -1}\n")
    document, _, problems = review_policy(path)
    assert document is None
    assert [one.field for one in problems] == ["thresholt", "threshold", "min_gap.minutes"]
    with pytest.raises(InvalidInput, match="line 2: unknown key; 2 more after it"):
        load_policy(path)
    path.write_text("name: a\ndefault_zone: Korea\nholdouts:\n" + "  - {id: h, scope: global, percent: 1, salt: s}\n" * 2)
    _, _, contradictory = review_policy(path)
    assert [one.field for one in contradictory] == ["default_zone", "holdouts.1.id", "holdouts.1.salt"]
    assert all(isinstance(one, ContradictoryPolicy) for one in contradictory)
