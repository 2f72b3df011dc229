"""The job over lists: resumed where it stopped, the same bytes, what it cannot do said before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.log.reader import bucket_groups
from simulators.replay.items import job
from simulators.replay.items.job import lists_spec, run_lists
from simulators.replay.items.shard import ListsShard, read_shard
from simulators.replay.parts import task_of
from simulators.report.items import lists_content, write_lists_report
from tests.unit.items_support import other
from tests.unit.world_log import behaviour, world_data


def _spec(**how: Any) -> Any:
    new = other(behaviour(), "gateway", temperature=0.07)
    return lists_spec(world_data(), {"new": new}, ["gateway", "widgets"], **how)


def test_a_killed_run_goes_on_where_it_stopped_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, honest, done = _spec(drawings=3), job.replay_lists, []
    whole = run_lists(spec, tmp_path / "whole", local=True)

    def dies_at_the_third(group: Any, *more: Any) -> ListsShard:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(group.low)
        return honest(group, *more)

    monkeypatch.setattr(job, "replay_lists", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_lists(spec, tmp_path / "resumed", local=True)
    monkeypatch.setattr(job, "replay_lists", lambda group, *more: done.append(group.low) or honest(group, *more))
    run_lists(spec, tmp_path / "resumed", local=True)
    assert len(done) == len(set(done)) > 2, "no group is replayed twice"
    first, second = (sorted((tmp_path / one).rglob("*.npz")) for one in ("whole", "resumed"))
    assert [one.read_bytes() for one in first] == [one.read_bytes() for one in second]
    assert whole.surfaces["gateway"].parity.share == 1.0
    assert "iips" in whole.surfaces["gateway"].suites["slots"].labels
    _report(whole, spec, tmp_path)


def _report(result: ListsShard, spec: Any, out: Path) -> None:
    content = lists_content(result, spec)
    gateway = content[0]
    assert gateway["scores"] == "logged scores"
    assert gateway["read"]["lists_unsampled"] > gateway["read"]["lists_read"] > 0
    assert 0 < gateway["targets"][0]["slots_changed"] < 1
    assert content[1]["targets"][0]["lists_changed"] == 0, "only the gateway's temperature was changed"
    refused = [row for row in gateway["outcomes"] if row["standing"] == "refused"]
    assert all("difference" not in row for row in refused)
    write_lists_report(content, spec, out, waived=False)
    page = (out / "report.html").read_text()
    assert "Lists: gateway" in page
    assert "bit for bit" in page


def test_tasks_travel_to_workers(tmp_path: Path) -> None:
    spec = _spec()
    groups = bucket_groups(spec.data, ("requests", "candidates", "events"))
    run = cloudpickle.loads(cloudpickle.dumps(job._task(spec, tmp_path)))
    run(task_of(groups[0]))
    assert read_shard(next(tmp_path.glob("*.npz")), spec).surfaces["gateway"].parity.share == 1.0


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    spec = _spec()
    run_lists(spec, tmp_path, local=True)
    part = next(tmp_path.rglob("*.npz"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DamagedArtifact, match=part.name):
        read_shard(part, spec)


@pytest.mark.parametrize(
    ("how", "said"),
    [({"retrieval": True}, "--release"), ({"segments": ["vip"]}, "no segment 'vip'"), ({"release": "next"}, "no release")],
)
def test_what_cannot_be_done_is_said(how: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=said):
        run_lists(_spec(**how), tmp_path, local=True)


def test_a_surface_without_lists_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidInput, match="logged are"):
        lists_spec(world_data(), {"same": behaviour()}, ["reviews"])
    assert lists_spec(world_data(), {"same": behaviour()}, ["reviews", "widgets"], if_logged=True).surfaces == ("widgets",)
    with pytest.raises(InvalidInput, match="no list of reviews"):
        lists_spec(world_data(), {"same": behaviour()}, ["reviews"], if_logged=True)
