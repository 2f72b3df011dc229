"""Same seed, same bytes; other seed, other bytes; two policies, one noise; nothing half-made."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hindcast.commands.world import register
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.policy.document import DEFAULT_POLICY, PolicyDocument, load_policy, parse_policy
from serve_app.vocabulary import EventType
from simulators.world import publish as publishing
from simulators.world.driver import World, world_policy
from simulators.world.publish import publish, read_world
from simulators.world.settings import WorldSettings, world_settings
from tests.unit.world_log import behaviour

TINY = WorldSettings(users=60, items=80, days=2, seed=5, blocks_per_day=2)


def _bytes(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        publish(TINY.model_copy(update={"seed": seed}), tmp_path / name, code_version="test")
    one, two, three = (_bytes(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert len(one) > 20
    for table in ("requests", "candidates", "decisions", "events"):
        mine, theirs = ({value for name, value in all_.items() if f"log/{table}/" in name} for all_ in (one, three))
        assert mine
        assert mine.isdisjoint(theirs)


def _sent(policy) -> dict[tuple[int, int, int], int]:
    """(user, campaign, channel) -> outcome bits of the first day's sends, which both policies decide from the same state."""
    found = {}
    day = next(World(TINY.model_copy(update={"users": 2_000})).run(policy))
    for one in day.decided[:1]:
        cand, at = one.batch.candidates, one.granted
        keys = zip(one.sent.user[at].tolist(), cand["campaign"][at].tolist(), cand["channel"][at].tolist(), strict=True)
        found.update(zip(keys, one.sent.outcome.bits()[at].tolist(), strict=True))
    return found


def test_two_policies_meet_the_same_noise() -> None:
    data = behaviour().model_dump(mode="json")
    other = parse_policy({**data, "threshold": -10.0, "flips": {"probability": 0.0}, "cells": None, "name": "other"})
    one, two = _sent(world_policy(behaviour())), _sent(world_policy(other))
    shared = one.keys() & two.keys()
    assert one.keys() != two.keys()
    assert len(shared) > 100
    assert all(one[key] == two[key] for key in shared)
    assert len({one[key] for key in shared}) > 3


def _course(document: PolicyDocument) -> tuple[float, int, int]:
    """Mean chance of opening the app on the last day, sends and opt-outs of a run."""
    sends = opt_outs = 0
    for day in World(TINY.model_copy(update={"users": 3_000, "days": 6})).run(world_policy(document)):
        sends += sum(len(one.granted) for one in day.decided)
        opt_outs += int((day.events["type"] == EventType.opt_out).sum())
    return float(day.p_active.mean()), sends, opt_outs


def test_sending_more_tires_people_and_drives_them_out() -> None:
    data = behaviour().model_dump(mode="json")
    open_ = {"caps": [], "cells": None, "holdouts": [], "threshold": -100.0, "min_gap": {"minutes": 0}}
    active, sent, left = _course(parse_policy({**data, **open_}))
    silent, none, nobody = _course(parse_policy({**data, "kill_switches": {"all": True}}))
    assert (none, nobody) == (0, 0)
    assert sent > 5_000
    assert left > 5
    assert active < silent - 0.002


def test_any_policy_on_heads_the_world_has_runs_in_it() -> None:
    data = load_policy(DEFAULT_POLICY).model_dump(mode="json")
    data["surfaces"]["widgets"]["head_weights"] = {"p_widget": 1.0}
    day = next(World(TINY).run(world_policy(parse_policy(data))))
    assert len(day.slates) == 3
    assert sum(len(one.batch) for one in day.decided) > 30


def test_runs_of_one_world_do_not_disturb_each_other() -> None:
    world, policy = World(TINY), world_policy(behaviour())
    first = [day.events for day in world.run(policy)]
    again = [day.events for day in world.run(policy)]
    assert [one.tobytes() for one in first] == [one.tobytes() for one in again]


def test_a_written_world_can_be_lived_again(tmp_path: Path) -> None:
    publish(TINY, tmp_path / "data", code_version="test")
    world, document = read_world(tmp_path / "data")
    assert world.settings == TINY
    assert document.revision == behaviour().revision
    (tmp_path / "data" / "world" / "world.json").write_text('{"settings": {"users": 0}}')
    with pytest.raises(DamagedArtifact, match=r"world\.json"):
        read_world(tmp_path / "data")
    with pytest.raises(InvalidInput, match="no world"):
        read_world(tmp_path / "elsewhere")


def test_a_world_grows_nowhere_it_might_do_harm(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "catalogue").mkdir()
    with pytest.raises(InvalidInput, match="not empty"):
        publish(TINY, full)
    (full / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInput, match="thesis"):
        publish(TINY, full, replace=True)
    assert (full / "thesis.txt").read_text() == "years of work"


def test_a_world_that_fails_half_way_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    publish(TINY, data, code_version="test")
    before = _bytes(data)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(publishing, "write_day_truth", fail)
    with pytest.raises(OSError, match="disk full"):
        publish(TINY, data, replace=True, code_version="test")
    assert _bytes(data) == before
    assert [one.name for one in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("field", "value"), [("users", 0), ("items", 0), ("days", 731), ("seed", -1), ("start", "yesterday")]
)
def test_settings_out_of_bounds_are_named(field: str, value: object) -> None:
    given = {"users": 10, "items": 10, "days": 2, "seed": 1, field: value}
    with pytest.raises(InvalidInput, match=field):
        world_settings(**given)  # type: ignore[arg-type]


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    arguments = ["--users", "60", "--items", "80", "--days", "1", "--data", str(tmp_path / "data")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "60 users, 80 items, 1 days" in result.output
    assert (tmp_path / "data" / "world" / "world.json").is_file()
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, InvalidInput)
