"""kill -9 of `hindcast replay` at random moments: run again it goes on, and every byte is that of a run nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulators.world.publish import BEHAVIOUR, publish
from simulators.world.settings import world_settings

ROOT = Path(__file__).resolve().parents[2]
ASKED = ["replay", "--log", "data", "--out", "out", "--policy", "strict.yaml", "--allow-mismatch"]


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with the same log and policy: one for a run nobody disturbs, one for the others."""
    for name in ("quiet", "stormy"):
        publish(world_settings(users=60, items=40, days=5, seed=21), tmp_path / name / "data")
        strict = BEHAVIOUR.read_text().replace("limit: 2", "limit: 1").replace("world-behaviour", "strict")
        (tmp_path / name / "strict.yaml").write_text(strict)
    return tmp_path / "quiet", tmp_path / "stormy"


def started(place: Path, *more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "hindcast", *ASKED, *more]
    return subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(place: Path, *more: str) -> None:
    child = started(place, *more)
    _, told = child.communicate(timeout=600)
    assert child.returncode == 0, told.decode()


def bytes_of(place: Path) -> dict[str, bytes]:
    """Parts and reports by path, and the packs."""
    folders = (place / "out", place / "data" / "replay-packs")
    return {str(one.relative_to(place)): one.read_bytes() for top in folders for one in top.rglob("*") if one.is_file()}


@pytest.mark.timeout(900)
def test_a_replay_killed_at_random_moments_ends_with_the_same_bytes(places: tuple[Path, Path]) -> None:
    quiet, stormy = places
    began = time.monotonic()
    finished(quiet, "--in-process")
    took = time.monotonic() - began
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    draws, killed = random.Random(seed), 0
    for _ in range(3):
        child = started(stormy, "--in-process")
        try:
            child.wait(draws.uniform(0.2, 0.9) * took)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            killed += 1
        child.communicate()
    finished(stormy, "--in-process")
    assert killed >= 1, f"seed {seed}: every run was over before it was killed"
    found, expected = bytes_of(stormy), bytes_of(quiet)
    left_behind = {one for one in set(found) - set(expected) if "/." not in one}
    assert not left_behind, f"seed {seed}"
    assert {name for name in expected if found.get(name) != expected[name]} == set(), f"seed {seed}"
    assert any(name.endswith(".npz") for name in expected)
    assert "out/report.json" in expected
