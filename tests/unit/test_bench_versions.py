"""States of the code side by side: what a side is, and that a difference is told from noise."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import typer

from loadtests.bench_versions import Side, ratio


def test_a_side_is_a_revision_with_switches() -> None:
    assert Side.parse("HEAD~2,A=1,B=x=y") == Side("HEAD~2,A=1,B=x=y", "HEAD~2", {"A": "1", "B": "x=y"})
    assert Side.parse(".").environment == {}
    assert Side.parse(".").tree(Path("unused")) == Path.cwd()


@pytest.mark.parametrize("text", ["", ",A=1", "HEAD,A", "HEAD,=1"])
def test_what_is_no_side_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="REVISION"):
        Side.parse(text)


def test_a_side_has_the_files_of_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    for text in ("first", "second"):
        (tmp_path / "file").write_text(text)
        git("add", "file")
        git("commit", "-m", text)
    monkeypatch.chdir(tmp_path)
    tree = Side.parse("HEAD~1").tree(tmp_path / "tree")
    assert (tree / "file").read_text() == "first"
    with pytest.raises(typer.BadParameter, match="no-such"):
        Side.parse("no-such").tree(tmp_path / "other")


@pytest.mark.parametrize("truth", [0.9, 1.0, 1.25])
def test_the_interval_covers_the_truth_though_the_machine_changes_by_half(truth: float) -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        machine = rng.uniform(600, 1200, 12)
        ours, first = (machine * factor * rng.lognormal(0, 0.08, 12) for factor in (truth, 1.0))
        mean, low, high = ratio(ours, first, seed)
        assert low <= mean <= high
        assert high / low < 1.25
        covered += low <= truth <= high
    assert 82 <= covered < 100
