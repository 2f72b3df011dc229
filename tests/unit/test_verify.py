"""A forecast of what then happened is matched, one of something else is missed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from hindcast.cli import _register, app
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.policy.document import PolicyDocument, canonical_json, parse_policy
from simulators.replay.asking import spec_for
from simulators.replay.job import run_replay
from simulators.replay.verify import compare, observed, read_forecast
from simulators.report.write import write_report
from simulators.world.publish import publish, read_world
from simulators.world.settings import world_settings

DAY_US = 86_400_000_000


def capped(document: PolicyDocument, limit: int) -> PolicyDocument:
    body: dict[str, Any] = orjson.loads(canonical_json(document))
    caps = [{**one, "limit": min(limit, one["limit"])} for one in body["caps"]]
    return parse_policy({**body, "caps": caps, "cells": None})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, a report on two targets, and two later logs: under the stricter target, and of other people under it."""
    root = tmp_path_factory.mktemp("verify")
    settings = world_settings(users=480, items=80, days=8, seed=31)
    publish(settings, root / "before")
    own = read_world(root / "before")[1]
    strict = capped(own, 1)
    spec = spec_for(root / "before", {"same": own, "strict": strict})
    write_report(run_replay(spec, root / "out", local=True), spec, root / "out", {}, allow_mismatch=False)
    publish(settings.model_copy(update={"seed": 32}), root / "later", policy=strict)
    return root


def test_the_logs_own_forecast_is_what_the_log_holds(folder: Path) -> None:
    forecast = read_forecast(folder / "out" / "report.json", "same")
    found = observed(folder / "before", forecast["revision"], DAY_US)
    by_name = {(one.metric, one.estimator): one for one in compare(forecast, found)}
    assert by_name["sends", "counted"].forecast == pytest.approx(by_name["sends", "counted"].found, rel=1e-12)
    assert by_name["sends", "counted"].forecast_low == pytest.approx(by_name["sends", "counted"].found_low, rel=1e-9)
    clicks = by_name["clicks", "ips"]
    assert clicks.forecast == pytest.approx(clicks.found, rel=0.02)
    assert all(one.matched for one in by_name.values())


def test_a_promoted_targets_volume_is_compared_and_a_wrong_forecast_is_missed(folder: Path) -> None:
    forecast = read_forecast(folder / "out" / "report.json", "strict")
    found = observed(folder / "later", forecast["revision"], DAY_US)
    assert found.days == 8
    sends = next(one for one in compare(forecast, found) if one.metric == "sends")
    assert sends.matched, "other people of the same kind"
    (same,) = [one for one in read_forecast(folder / "out" / "report.json", "same")["rates"] if one["metric"] == "sends"]
    assert not compare({"rates": [same]}, found)[0].matched, "the log's own policy sends far more"


def test_what_is_asked_for_wrongly_is_named(folder: Path, tmp_path: Path) -> None:
    report = folder / "out" / "report.json"
    with pytest.raises(InvalidInput, match="same, strict"):
        read_forecast(report)
    with pytest.raises(DamagedArtifact, match="no forecast"):
        read_forecast(folder / "before" / "world" / "world.json")
    revision = read_forecast(report, "same")["revision"]
    with pytest.raises(InvalidInput, match=revision):
        observed(folder / "later", revision, DAY_US)


def test_the_command_says_what_matched(folder: Path, tmp_path: Path) -> None:
    _register()
    out = tmp_path / "checked.json"
    command = ["verify", str(folder / "out" / "report.json"), "--policy", "strict", "--log", str(folder / "later")]
    done = CliRunner().invoke(app, [*command, "--all", "--out", str(out)])
    assert done.exit_code in (0, 10), done.output
    checks = json.loads(out.read_text())["checks"]
    assert f"{sum(one['matched'] for one in checks)} of {len(checks)} forecasts matched" in done.output


def test_only_the_number_at_the_top_of_the_report_is_shown_and_judged(folder: Path, tmp_path: Path) -> None:
    _register()
    out = tmp_path / "checked.json"
    command = ["verify", str(folder / "out" / "report.json"), "--policy", "same", "--log", str(folder / "before")]
    done = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert done.exit_code == 0, done.output
    checks = json.loads(out.read_text())["checks"]
    shown = [one for one in checks if one["speaks"]]
    assert [one["metric"] for one in shown] == list(dict.fromkeys(one["metric"] for one in shown))
    assert {"sends"} <= {one["metric"] for one in shown} < {*{one["metric"] for one in checks}, "none"}
    assert f"{len(shown)} of {len(shown)} forecasts matched" in done.output
