"""A replay killed with SIGKILL, again and again, ends with the bytes of one that was left alone."""

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

_WAIT_S = 240


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("killed") / "data"
    publish(world_settings(users=400, items=100, days=9, seed=31), data)
    return data


def _command(world: Path, out: Path, *more: str) -> list[str]:
    out.mkdir(parents=True, exist_ok=True)
    plain = orjson.loads(canonical_json(read_world(world)[1]))
    plain["caps"][0]["limit"] = 1
    policy = out / "strict.json"
    policy.write_bytes(orjson.dumps(plain))
    return [
        sys.executable, "-m", "hindcast", "replay", "--log", str(world), "--policy", str(policy), "--out", str(out),
        "--packs", str(out / "packs"), "--volume-only", *more,
    ]  # fmt: skip


def _parts(out: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in (out / "parts").rglob("*.npz")}


def _written(out: Path) -> int:
    """Parts, packs, and files of packs that are being made."""
    return sum(1 for _ in out.rglob("*.npz")) + sum(1 for _ in out.rglob("*.parquet"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("more", [("--in-process",), ()], ids=["in one process", "on Ray"])
def test_a_replay_killed_at_random_points_gives_the_same_bytes(world: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(_command(world, whole, *more), check=True, capture_output=True, timeout=_WAIT_S)
    rng = random.Random(5)
    for _ in range(3):
        before, more_files = _written(killed) if killed.exists() else 0, rng.randrange(1, 12)
        with subprocess.Popen(
            _command(world, killed, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            ends = time.monotonic() + _WAIT_S
            while process.poll() is None and _written(killed) < before + more_files and time.monotonic() < ends:
                time.sleep(0.005)  # for a file: there is nothing else to wait on
            os.killpg(process.pid, signal.SIGKILL)
    subprocess.run(_command(world, killed, *more), check=True, capture_output=True, timeout=_WAIT_S)
    assert _parts(killed) == _parts(whole)
    assert list((killed / "packs").glob(".*.new")) == [], "what a killed run left half-made is gone"
