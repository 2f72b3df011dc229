"""A replay killed with SIGKILL, again and again, ends with the bytes of one that was left alone, on Ray or without."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from serve_app.policy.document import canonical_json
from simulators.world.publish import publish, read_world
from simulators.world.settings import world_settings

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]

_WAIT_S = 240
_RESULTS = ("report.json", "report.html")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("killed") / "data"
    publish(world_settings(users=400, items=100, days=9, seed=31), data)
    return data


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    subprocess.run(_command(world, out, "--in-process"), cwd=out.parent, check=True, capture_output=True, timeout=_WAIT_S)
    found = _bytes(out)
    assert set(_RESULTS) < set(found)
    return found


def _command(world: Path, out: Path, *more: str) -> list[str]:
    """To be run in the folder above `out`: a report quotes its command."""
    out.mkdir(parents=True, exist_ok=True)
    plain = orjson.loads(canonical_json(read_world(world)[1]))
    plain["caps"][0]["limit"] = 1
    policy = out.parent / "strict.json"
    policy.write_bytes(orjson.dumps(plain))
    return [
        sys.executable, "-m", "hindcast", "replay", "--log", str(world), "--policy", policy.name, "--out", out.name,
        "--packs", f"{out.name}/packs", *more,
    ]  # fmt: skip


def _bytes(out: Path) -> dict[str, bytes]:
    """Sums of each group, and the report."""
    return {one.name: one.read_bytes() for one in [*(out / "parts").rglob("*.npz"), *(out / name for name in _RESULTS)]}


def _written(out: Path) -> int:
    """Parts, packs, and files of packs that are being made."""
    # os.walk passes over a folder that is renamed while it is walked.
    return sum(name.endswith((".npz", ".parquet")) for _, _, names in os.walk(out) for name in names)


@pytest.mark.parametrize(
    "more", [("--in-process",), pytest.param((), marks=pytest.mark.long)], ids=["in one process", "on Ray"]
)
def test_a_replay_killed_at_random_points_gives_the_same_bytes(
    world: Path, undisturbed: dict[str, bytes], tmp_path: Path, more: tuple[str, ...]
) -> None:
    killed, seed = tmp_path / "out", random.SystemRandom().randrange(10**6)
    rng, kills = random.Random(seed), 0
    for _ in range(3):
        before, more_files = _written(killed) if killed.exists() else 0, rng.randrange(1, 12)
        with subprocess.Popen(
            _command(world, killed, *more),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            ends = time.monotonic() + _WAIT_S
            while process.poll() is None and _written(killed) < before + more_files and time.monotonic() < ends:
                time.sleep(0.005)  # for a file: there is nothing else to wait on
            kills += process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
    assert kills, f"seed {seed}: every run was over before it was killed"
    subprocess.run(_command(world, killed, *more), cwd=tmp_path, check=True, capture_output=True, timeout=_WAIT_S)
    found, expected = _bytes(killed), undisturbed
    if not more:  # the report quotes another command; its numbers are the parts'
        expected = {name: part for name, part in undisturbed.items() if name not in _RESULTS}
    assert {name for name in expected if found.get(name) != expected[name]} == set(), f"seed {seed}"
    assert list((killed / "packs").glob(".*.new")) == [], "what a killed run left half-made is gone"
