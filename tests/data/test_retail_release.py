"""Online Retail, whole: imported, built, judged, asked. Ours is ahead of best-sellers and of co-occurrence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hindcast.evaluation.retail import evaluate

pytestmark = [pytest.mark.shared_data, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def result(shared_data: Path) -> dict[str, Any]:
    folder = shared_data / "online_retail_uci"
    if not folder.is_dir():
        pytest.skip("no Online Retail among the public data")
    return evaluate(folder)


@pytest.mark.parametrize("surface", ["related", "gateway"])
@pytest.mark.parametrize("figure", ["recall@20", "ndcg@20"])
def test_lists_are_ahead_of_both_baselines(result: dict[str, Any], surface: str, figure: str) -> None:
    assert result["metrics"][f"{surface}.ahead"][figure]["low"] > 0


def test_heads_rank_and_are_calibrated(result: dict[str, Any]) -> None:
    for surface in ("related", "gateway"):
        figures = result["metrics"][f"{surface}.p_convert"]
        assert figures["auc"]["value"] > 0.8
        assert figures["calibration_error"]["value"] < 0.02


def test_the_index_finds_what_exact_search_finds(result: dict[str, Any]) -> None:
    assert result["metrics"]["index"]["recall@100"]["value"] >= 0.95


def test_surfaces_without_data_are_said_to_be_left_out(result: dict[str, Any]) -> None:
    assert {"reviews", "notification"} <= set(result["left_out"])


def test_the_release_answers_for_real_products(result: dict[str, Any]) -> None:
    assert len(result["first_answer"]) == 10
    assert all(result["first_answer"])
