"""`hindcast segment`: what is wrong with a file is said with field, line and fix; checks, counts, refreshes."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hindcast.commands import policy, segment
from serve_app.errors import InvalidInput
from serve_app.policies import current_policy
from serve_app.policy.instants import instant_text
from tests.unit.test_segment_refresh import NOW, USERS, VIEWED, catalogue, document, log, promote

MALFORMED = [
    ("id: a\nwhere: {kind: attribute, name: vip, op: '==', value: true}\n",
     r"where.name: file.yaml line 2: users have no attribute 'vip' \(known: user_id, zone, "),
    ("id: a\nwhere: {kind: attribute, name: region, op: '<', value: KR}\n",
     r"where.op: .* line 2: region is text, which has no order \(use == or !=, or kind: membership\)"),
    ("id: a\nwhere: {kind: attribute, name: region, op: '==', value: Korea}\n", r"where.value: .*'Korea' is not a region"),
    ("id: a\nwhere: {kind: attribute, name: zone, op: '==', value: Seoul}\n", r"where.value: .*'Seoul' is not a time zone"),
    ("id: a\nwhere: {kind: attribute, name: consent_ad, op: '==', value: 1}\n", r"where.value: .*1 does not fit consent_ad"),
    ("id: a\nwhere: {kind: attribute, name: age_days, op: '>', value: old}\n", r"where.value: .*'old' does not fit"),
    ("id: a\nwhere: {kind: attribute, name: created_at, op: '>', value: 2026-01-01}\n", r"where.value: .*not an instant"),
    ("id: a\nwhere: {kind: event_count, event: sale, within_days: 3, op: '>', count: 1}\n", r"where.event: .*'view'"),
    ("id: a\nwhere: {kind: event_count, event: view, within_days: 0, op: '>', count: 1}\n", r"where.within_days: .*greater"),
    ("id: a\nwhere: {kind: last_event, event: view, op: '==', days_ago: 1}\n", r"where.op: .*'<'"),
    ("id: a\nwhere: {kind: bucket, salt: s, percent: 0.001}\n", r"where.percent: .*two decimals"),
    ("id: a\nwhere: {kind: and, of: []}\n", r"where.of: .*at least 1"),
    ("id: a\nwhere: {kind: xor, of: []}\n", r"where: .*'xor'"),
    ("id: a\nwhere: {kind: not, of: {kind: segment, id: b}}\n", r"where: .*no segment 'b' \(define it\)"),
    ("id: a\nwhen: {}\nwhere: {kind: segment, id: korea}\n", r"when: .* line 2: unknown key"),
    ("segments: []\n", r"segments: file.yaml has no segments"),
    ("- a\n", r"document: file.yaml is not a mapping"),
    ("name: a\n", r"segments: file.yaml has no segments"),
    ("id: a\nwhere: {kind: event_count, event: view, within_days: 3, op: '>', count: 1, category: boats}\n",
     r"category: no item has category 'boats' \(known: tv\)"),
    ("id: a\nwhere: {kind: attribute, name: customer, op: '==', value: true}\n", r"name: customer is the ledger's to say"),
]  # fmt: skip


def app() -> typer.Typer:
    made = typer.Typer()
    segment.register(made)
    policy.register(made)
    return made


@pytest.mark.parametrize(("text", "error"), MALFORMED)
def test_what_is_wrong_with_a_file_is_said_with_field_and_fix(tmp_path: Path, text: str, error: str) -> None:
    catalogue(tmp_path / "data")
    promote(tmp_path / "data", document())
    file = tmp_path / "file.yaml"
    file.write_text(text)
    ran = CliRunner().invoke(app(), ["segment", "check", str(file), "--data", str(tmp_path / "data")])
    assert isinstance(ran.exception, InvalidInput), ran.output
    with pytest.raises(InvalidInput, match=error):
        raise ran.exception


def test_the_command_checks_counts_and_refreshes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    catalogue(data)
    promote(data, document())
    log(data, [(1, (USERS[1], 0, NOW, 0))])
    file = tmp_path / "segment.yaml"
    file.write_text("id: rest\nwhere: {kind: not, of: {kind: segment, id: korea}}\n")
    runner = CliRunner()
    said = {
        name: runner.invoke(app(), ["segment", name, *rest, "--data", str(data)], catch_exceptions=False).output
        for name, rest in (("check", [str(file)]), ("count", [str(file)]), ("refresh", ["--full"]))
    }
    assert "segment.yaml: 1 segments, good" in said["check"]
    assert "not: 2 (50.0 %)" in said["count"]
    assert "segment korea: 2 (50.0 %)" in said["count"]
    assert "korea: 2 of 4 users" in said["refresh"]
    assert f"published for policy {document().revision}" in said["refresh"]


def test_promoting_a_policy_evaluates_its_segments_first_and_refuses_one_that_cannot_be(tmp_path: Path) -> None:
    data = tmp_path / "data"
    catalogue(data)
    promote(data, document())
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("name: b\nsegments:\n  - {id: some, where: {kind: bucket, salt: s, percent: 50}}\n")
    bad.write_text(f"name: c\nsegments:\n  - {{id: boats, where: {VIEWED | {'category': 'boats'}}}}\n")
    runner = CliRunner()
    said = runner.invoke(app(), ["policy", "promote", str(good), "--data", str(data)], catch_exceptions=False).output
    assert "members of 1 segments computed over 4 users" in said
    refused = runner.invoke(app(), ["policy", "promote", str(bad), "--data", str(data)])
    assert "no item has category 'boats'" in str(refused.exception)
    assert current_policy(data).name == "b"


def test_counting_as_of_an_instant_sees_what_had_happened_by_then(tmp_path: Path) -> None:
    catalogue(tmp_path / "data")
    log(tmp_path / "data", [(1, (USERS[1], 0, NOW, 0)), (2, (USERS[2], 0, NOW + 1, 0))])
    file = tmp_path / "segment.yaml"
    file.write_text(f"id: viewers\nwhere: {VIEWED}\n")
    count = ["segment", "count", str(file), "--data", str(tmp_path / "data"), "--as-of"]
    assert "in 30 days: 1 (25.0 %)" in CliRunner().invoke(app(), [*count, instant_text(NOW)], catch_exceptions=False).output
    refused = CliRunner().invoke(app(), [*count, "yesterday"])
    assert str(refused.exception).startswith("--as-of: 'yesterday' is not an instant (write date")
