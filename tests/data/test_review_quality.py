"""Review quality on Amazon's All Beauty reviews: the floors the project promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from hindcast.evaluation.reviews import evaluate, read_reviews

pytestmark = pytest.mark.shared_data


def test_helpful_reviews_are_told_apart_with_and_without_their_age(shared_data: Path) -> None:
    folder = shared_data / "amazon_all_beauty_5core_2018"
    if not folder.is_dir():
        pytest.skip("the data folder has no amazon_all_beauty_5core_2018")
    result = evaluate(read_reviews(folder), seed=7, repeats=3)
    assert (result["texts"], result["helpful"]) == (1_364, 161)
    assert result["auc"]["length_alone"]["auc"] == pytest.approx(0.651, abs=0.001)
    assert result["auc"]["with_age"]["auc"] >= 0.76
    assert result["auc"]["without_age"]["auc"] >= 0.72
