"""Stored policies: content-addressed, atomic current pointer, promote and roll back; diffs in words; the command."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hindcast import cli
from serve_app.errors import DamagedArtifact, InvalidInput, NotReady, UnknownIdentifier
from serve_app.policies import (
    current_policy,
    list_policies,
    promote_policy,
    read_current_policy,
    read_policy,
    rollback_policy,
    store_policy,
)
from serve_app.policy.compile import compile_policy
from serve_app.policy.diff import policy_diff
from serve_app.policy.document import (
    DEFAULT_POLICY,
    PolicyDocument,
    canonical_json,
    load_policy,
    parse_policy,
    revision_of,
)
from serve_app.policy.remarks import remarks
from tests.unit.decision_worlds import a_policy

NIGHT = {"id": "night", "start": "22:00", "end": "08:00"}
HOLDOUT = {"id": "h", "scope": "global", "percent": 2.5, "salt": "h"}
EXPERIMENT: dict[str, Any] = {"id": "e", "salt": "e", "arms": [{"id": "a", "percent": 50}, {"id": "b", "percent": 50}]}
CELLS: dict[str, Any] = {
    "epoch_hours": 48, "variants": [{"id": "x", "probability": 0.6}, {"id": "y", "probability": 0.4}],
}  # fmt: skip
BUCKET = {"kind": "bucket", "salt": "v", "percent": 5}
CAP = {"id": "day", "scope": "global", "limit": 3, "window": {"rolling_hours": 24}}


def policy(**settings: Any) -> PolicyDocument:
    return parse_policy({"name": "a"} | settings)


def test_promote_and_roll_back_walk_the_history(tmp_path: Path) -> None:
    first, second = (store_policy(tmp_path, policy(threshold=t)) for t in (0.1, 0.2))
    with pytest.raises(NotReady, match="no policy has been promoted"):
        current_policy(tmp_path)
    promote_policy(tmp_path, first, now=1)
    promote_policy(tmp_path, second, now=2)
    assert current_policy(tmp_path).threshold == 0.2
    assert rollback_policy(tmp_path, now=3).revision == first
    assert read_current_policy(tmp_path)[0] == first
    with pytest.raises(InvalidInput, match="no earlier policy"):
        rollback_policy(tmp_path, now=4)
    assert [one.current for one in list_policies(tmp_path)] == [True, False]


def test_an_altered_or_unknown_policy_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    first, second = (store_policy(tmp_path, policy(threshold=t)) for t in (0.1, 0.2))
    promote_policy(tmp_path, first, now=1)
    path = tmp_path / "policies" / f"{second}.json"
    path.write_text(path.read_text().replace("0.2", "0.3"))
    with pytest.raises(DamagedArtifact, match="the content has revision"):
        promote_policy(tmp_path, second, now=2)
    with pytest.raises(UnknownIdentifier, match=r"no policy '../x'"):
        read_policy(tmp_path, "../x")
    assert read_current_policy(tmp_path)[0] == first
    assert next(one for one in list_policies(tmp_path) if one.revision == second).problem


class RefusingServer:
    """A server of which one replica cannot load (phase prepare) or flip (phase commit)."""

    def __init__(self, phase: str) -> None:
        self.phase = phase

    def prepare(self, version: str) -> None:
        if self.phase == "prepare":
            raise NotReady("a replica cannot load it")

    def commit(self, version: str) -> None:
        if self.phase == "commit":
            raise NotReady("a replica did not flip")


def test_rollbacks_walk_back_through_what_was_promoted_again_and_end(tmp_path: Path) -> None:
    a, b = (store_policy(tmp_path, policy(name=name)) for name in "ab")
    for at, revision in enumerate([a, b, a, a]):
        promote_policy(tmp_path, revision, now=at)
    assert [rollback_policy(tmp_path, now=9).revision for _ in range(2)] == [b, a]
    with pytest.raises(InvalidInput, match="no earlier policy"):
        rollback_policy(tmp_path, now=9)
    promote_policy(tmp_path, b, now=10)
    assert rollback_policy(tmp_path, now=11).revision == a


def test_promotion_and_rollback_flip_a_server_in_two_phases_around_the_pointer(tmp_path: Path) -> None:
    first, second = (store_policy(tmp_path, policy(threshold=t)) for t in (0.1, 0.2))
    promote_policy(tmp_path, first, now=1)
    seen: list[tuple[str, str, str | None]] = []

    class Watching:
        def prepare(self, version: str) -> None:
            seen.append(("prepare", version, read_current_policy(tmp_path)[0]))

        def commit(self, version: str) -> None:
            seen.append(("commit", version, read_current_policy(tmp_path)[0]))

    promote_policy(tmp_path, second, now=2, flip=Watching())
    rollback_policy(tmp_path, now=3, flip=Watching())
    assert seen == [
        ("prepare", second, first), ("commit", second, second), ("prepare", first, second), ("commit", first, first),
    ]  # fmt: skip


@pytest.mark.parametrize("phase", ["prepare", "commit"])
def test_a_server_that_refuses_keeps_the_old_policy(tmp_path: Path, phase: str) -> None:
    first, second = (store_policy(tmp_path, policy(threshold=t)) for t in (0.1, 0.2))
    promote_policy(tmp_path, first, now=1)
    with pytest.raises(NotReady):
        promote_policy(tmp_path, second, now=2, flip=RefusingServer(phase))
    assert read_current_policy(tmp_path)[0] == first


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ({}, {}, []),
        ({"caps": [CAP]}, {"caps": [CAP | {"limit": 2}]}, ["global cap 3 -> 2 per rolling 24 h"]),
        (
            {"caps": [CAP]},
            {"caps": [CAP | {"window": {"calendar": "week"}}]},
            ["global cap 3 per rolling 24 h -> 3 per calendar week"],
        ),
        ({}, {"caps": [CAP]}, ["cap day (global, 3 per rolling 24 h) added"]),
        (
            {"caps": [CAP, CAP | {"id": "b"}]},
            {"caps": [CAP | {"limit": 1, "binds": ["advertising"]}]},
            [
                "cap b (global, 3 per rolling 24 h) removed", "global cap day 3 -> 1 per rolling 24 h",
                "global cap day binds [informational, advertising] -> [advertising]",
            ],
        ),
        ({"threshold": 0.1}, {"threshold": 0.25}, ["threshold 0.1 -> 0.25"]),
        ({}, {"min_gap": {"minutes": 90}}, ["min gap minutes 0 -> 90"]),
        ({}, {"deferral": {"spread_minutes": 10}}, ["deferral spread minutes 30 -> 10"]),
        ({}, {"max_sends_per_decision": 2}, ["max sends per decision 1 -> 2"]),
        ({}, {"default_zone": "UTC"}, ["default zone Asia/Seoul -> UTC"]),
        ({}, {"quiet_hours": [NIGHT]}, ["quiet hours night (22:00 to 08:00, defer) added"]),
        (
            {"quiet_hours": [NIGHT]}, {"quiet_hours": [NIGHT | {"end": "07:30", "channels": ["sms"]}]},
            [
                "quiet hours night (22:00 to 08:00, defer) end 08:00 -> 07:30",
                "quiet hours night (22:00 to 08:00, defer) channels [] -> [sms]",
            ],
        ),
        (
            {"quiet_hours": [NIGHT, NIGHT | {"id": "b"}]}, {"quiet_hours": [NIGHT | {"id": "b"}, NIGHT]},
            ["quiet hours: order changed to b, night"],
        ),
        ({"regions": {"kr": {}}}, {"regions": {"kr": {"night_end": "09:00"}}}, ["regions kr night end 08:00 -> 09:00"]),
        ({"regions": {"us": {"ad_label": None}}}, {"regions": {"us": {}}}, ["regions us ad label none -> (광고)"]),
        ({}, {"holdouts": [HOLDOUT]}, ["holdout h (global, 2.5 %) added"]),
        (
            {"holdouts": [HOLDOUT]}, {"holdouts": [HOLDOUT | {"percent": 5, "blocking": True}]},
            ["holdout h (global, 2.5 %) percent 2.5 -> 5", "holdout h (global, 2.5 %) blocking no -> yes"],
        ),
        ({}, {"experiments": [EXPERIMENT]}, ["experiment e (a 50 %, b 50 %) added"]),
        (
            {"experiments": [EXPERIMENT]}, {"experiments": [EXPERIMENT | {"arms": EXPERIMENT["arms"][::-1]}]},
            ["experiment e (a 50 %, b 50 %) arms: order changed to b, a"],
        ),
        (
            {"experiments": [EXPERIMENT]},
            {"experiments": [EXPERIMENT | {"arms": [{"id": "a", "percent": 50},
                                                    {"id": "b", "percent": 50, "overrides": {"threshold": 0.2}}]}]},
            ["experiment e (a 50 %, b 50 %) arms b overrides threshold: 0.2 added"],
        ),
        ({"cells": CELLS}, {}, ["cells (x 60 %, y 40 %; drawn anew every 48 h) removed"]),
        ({"cells": CELLS}, {"cells": CELLS | {"epoch_hours": 72}}, ["cells epoch hours 48 -> 72"]),
        (
            {"cells": CELLS}, {"cells": CELLS | {"variants": CELLS["variants"][::-1]}},
            ["cells variants: order changed to y, x"],
        ),
        ({}, {"flips": {"probability": 0.05, "to": "none"}}, ["flips probability 0 -> 0.05", "flips to either -> none"]),
        (
            {}, {"message_classes": {"advertising": {"threshold": 0.5}}},
            ["message classes advertising threshold none -> 0.5"],
        ),
        ({}, {"kill_switches": {"all": True}}, ["kill switch: everything off"]),
        ({"kill_switches": {"channels": ["sms"]}}, {}, ["kill switch: channels sms on again"]),
        ({}, {"segments": [{"id": "v", "where": BUCKET}]}, ["segment v added"]),
        (
            {"segments": [{"id": "v", "where": BUCKET}]}, {"segments": [{"id": "v", "where": BUCKET | {"percent": 6}}]},
            ["segment v where percent 5 -> 6"],
        ),
        ({}, {"kill_switches": {"campaigns": ["spring"]}}, ["kill switch: campaigns spring off"]),
        (
            {"surfaces": {"notification": {"head_weights": {"p_click": 1.0}}}},
            {"surfaces": {"notification": {"head_weights": {"p_click": 2.0, "uplift": 1.0}}}},
            ["surfaces notification head weights p click 1 -> 2", "surfaces notification head weights uplift: 1 added"],
        ),
    ],
)  # fmt: skip
def test_a_diff_is_said_in_words(before: dict[str, Any], after: dict[str, Any], lines: list[str]) -> None:
    assert policy_diff(policy(**before), policy(**after)) == lines


@pytest.mark.parametrize("seed", range(30))
def test_a_diff_is_empty_only_where_nothing_changed(seed: int) -> None:
    rng = Random(seed)
    one, other = a_policy(rng), a_policy(rng)
    assert policy_diff(one, one) == []
    plain = one.model_dump(mode="json")
    assert policy_diff(one, parse_policy(plain)) == []
    lines = policy_diff(one, other)
    assert lines
    assert len(set(lines)) == len(lines)
    for name, value in other.model_dump(mode="json").items():
        if value != plain[name] and name not in ("caps", "quiet_hours", "experiments", "cells"):  # trials name caps
            assert policy_diff(one, parse_policy(plain | {name: value, "experiments": [], "cells": None})), name


def test_the_command_checks_compares_promotes_and_shows(tmp_path: Path) -> None:
    cli._register()
    runner, data = CliRunner(), ["--data", str(tmp_path / "data")]
    other = tmp_path / "other.yaml"
    other.write_text(DEFAULT_POLICY.read_text().replace("limit: 3", "limit: 2"))
    checked = runner.invoke(cli.app, ["policy", "check", str(other)])
    assert checked.exit_code == 0
    assert load_policy(other).revision in checked.output
    compared = runner.invoke(cli.app, ["policy", "diff", str(DEFAULT_POLICY), str(other)])
    assert compared.output == "global cap 3 -> 2 per rolling 24 h\n"
    for path in (DEFAULT_POLICY, other):
        assert runner.invoke(cli.app, ["policy", "promote", str(path), *data]).exit_code == 0
    shown = runner.invoke(cli.app, ["policy", "show", *data])
    assert parse_policy(yaml.safe_load(shown.output)) == load_policy(other)
    listed = runner.invoke(cli.app, ["policy", "list", *data]).output
    assert [line.split()[1] for line in listed.splitlines() if "*" in line] == ["*"]
    back = runner.invoke(cli.app, ["policy", "rollback", *data])
    assert back.exit_code == 0
    assert back.stdout.splitlines()[1:] == ["  global cap 2 -> 3 per rolling 24 h"]
    assert current_policy(tmp_path / "data") == load_policy(DEFAULT_POLICY)
    wrong = runner.invoke(cli.app, ["policy", "check", str(tmp_path / "none.yaml")])
    assert isinstance(wrong.exception, InvalidInput)


def test_the_command_says_where_nothing_is_and_what_a_misspelt_name_is_not(tmp_path: Path) -> None:
    cli._register()
    runner, data, away = CliRunner(), ["--data", str(tmp_path)], ["--data", str(tmp_path / "away")]
    for words in (["list"], ["show"], ["rollback"]):
        assert runner.invoke(cli.app, ["policy", *words, *away]).exit_code == 2
    assert "no policy is stored in" in runner.invoke(cli.app, ["policy", "list", *data]).output
    wrong = runner.invoke(cli.app, ["policy", "promote", "summer", *data])
    assert isinstance(wrong.exception, UnknownIdentifier)
    assert f"'summer' is neither a file nor a policy stored in {tmp_path}" in str(wrong.exception)
    assert runner.invoke(cli.app, ["segment", "refresh", *away]).exit_code == 2


def test_check_ends_in_0_for_good_1_for_remarks_under_strict_and_2_for_refused(tmp_path: Path) -> None:
    cli._register()
    runner, file = CliRunner(), tmp_path / "p.yaml"

    def check(text: str, *options: str) -> tuple[int, str]:
        file.write_text(text)
        done = runner.invoke(cli.app, ["policy", "check", *options, str(file)])
        return done.exit_code, done.output

    assert check("name: a\n", "--strict")[0] == 0
    gap = "name: a\nmin_gap: {minutes: 720}\ncaps:\n  - {id: day, scope: global, limit: 3, window: {rolling_hours: 24}}\n"
    code, said = check(gap)
    assert code == 0
    assert "remark: p.yaml line 4: caps.0.limit: cap 'day' is never reached: the gap of 720 min lets at most 2" in said
    assert check(gap, "--strict")[0] == 1
    code, said = check("name: a\nthresholt: 1\nmin_gap: 5\n")
    assert code == 2
    assert "hindcast: thresholt: p.yaml line 2: unknown key (remove it or correct its spelling)" in said
    assert "hindcast: min_gap: p.yaml line 3:" in said
    assert check("name: [a\n")[0] != 0


REMARKS: list[tuple[dict[str, Any], str, str]] = [
    ({"caps": [CAP | {"binds": ["transactional"]}]}, "caps.0.binds", "refuses nothing: transactional is all it binds"),
    ({"caps": [CAP | {"binds": []}]}, "caps.0.binds", "refuses nothing: no class is all it binds"),
    ({"caps": [CAP | {"counts": []}]}, "caps.0.counts", "counts no class"),
    ({"caps": [CAP | {"limit": 0}]}, "caps.0.limit", "sends nothing, ever"),
    ({"caps": [CAP], "min_gap": {"minutes": 480}}, "caps.0.limit", "lets at most 3 into its 24 h"),
    ({"caps": [CAP, CAP | {"id": "b", "scope": "campaign", "limit": 3}]}, "caps.1.limit", "'day' allows 3 per rolling 24 h"),
    (
        {"caps": [CAP | {"id": "b", "scope": "campaign", "limit": 1}], "duplicate_window_hours": 24}, "caps.0.limit",
        "duplicate_window_hours 24 is tighter",
    ),
    ({"min_gap": {"minutes": 5}, "max_sends_per_decision": 3}, "max_sends_per_decision", "cannot keep a gap of 5 min"),
    ({"quiet_hours": [NIGHT | {"classes": ["transactional"]}]}, "quiet_hours.0.classes", "silence nothing"),
    ({"quiet_hours": [NIGHT, NIGHT | {"id": "b", "start": "08:00", "end": "22:00"}]}, "quiet_hours", "cover the whole day"),
    ({"quiet_hours": [{"id": "n", "start": "00:00", "end": "24:00"}]}, "quiet_hours", "advertising messages by any channel"),
    ({"quiet_hours": [{"id": "n", "start": "00:00", "end": "24:00", "channels": ["sms", "push"]}]}, "quiet_hours",
     "informational messages by push or sms are never sent"),
    ({"regions": {"uk": {}}}, "regions.uk", "UK is no code of ISO 3166-1"),
    ({"holdouts": [HOLDOUT | {"percent": 100}]}, "holdouts.0.percent", "from everybody"),
    (
        {"quiet_hours": [NIGHT], "deferral": {"max_attempts": 0}}, "deferral.max_attempts", "no deferral is allowed",
    ),
    (
        {"quiet_hours": [NIGHT | {"start": "09:00"}], "deferral": {"spread_minutes": 120}}, "deferral.spread_minutes",
        "leave 60 min of the day",
    ),
    ({"holdouts": [HOLDOUT | {"classes": ["transactional"]}]}, "holdouts.0.classes", "withholds transactional messages"),
    ({"flips": {"probability": 0.1, "classes": []}}, "flips.classes", "nothing is ever flipped"),
    ({"experiments": [EXPERIMENT]}, "experiments.0.arms", "changes nothing in any arm"),
    ({"threshold": 0.1}, "surfaces.notification.head_weights", "advertising messages are never sent"),
    (
        {"message_classes": {"advertising": {"bypass_opt_out": True}}}, "message_classes.advertising.bypass_opt_out",
        "which consent laws forbid",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "field", "words"), REMARKS)
def test_rules_that_can_never_bite_are_remarked_on(settings: dict[str, Any], field: str, words: str) -> None:
    assert any(one.field == field and words in one.message for one in remarks(policy(**settings)))


def test_the_default_policy_gives_no_cause_for_remarks() -> None:
    assert remarks(load_policy(DEFAULT_POLICY)) == []


def test_a_stored_policy_keeps_its_name_when_a_later_schema_knows_more_settings(tmp_path: Path) -> None:
    """What an older version stored lacks a setting that this one has: still whole, still called the same."""
    content = json.loads(canonical_json(load_policy(DEFAULT_POLICY)))
    del content["description"]
    older = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    path = tmp_path / "policies" / f"{revision_of(older)}.json"
    path.parent.mkdir()
    path.write_bytes(older)
    document = read_policy(tmp_path, path.stem)
    assert document.revision == path.stem
    assert compile_policy(document, heads={}).revision == path.stem
