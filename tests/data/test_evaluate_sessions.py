"""`hindcast evaluate sessions` on real click sessions, in its quick form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hindcast.evaluation.sessions import evaluate

pytestmark = [pytest.mark.shared_data, pytest.mark.long]

# The quick form gives about .47 and .19; its best single source .39 and .155.
RECALL_FLOOR, MRR_FLOOR = 0.44, 0.172


@pytest.fixture(scope="module")
def result(shared_data: Path) -> dict[str, Any]:
    folder = shared_data / "diginetica"
    if not folder.is_dir():
        pytest.skip("the click sessions are not among the public data sets here")
    return evaluate(folder, limit=4_000, threads=1, quick=True)


def test_the_ranked_list_stays_above_its_floor(result: dict[str, Any]) -> None:
    ranking = result["figures"]["ranking"]
    assert ranking["recall@20"]["value"] >= RECALL_FLOOR
    assert ranking["mrr@20"]["value"] >= MRR_FLOOR
    assert ranking["recall@20"]["value"] < result["figures"]["ceiling"]["recall"]["value"]


def test_the_ranker_beats_every_single_source_beyond_their_intervals(result: dict[str, Any]) -> None:
    figures = result["figures"]
    sources = {name: own for name, own in figures.items() if name.startswith("source ")}
    assert len(sources) == 5
    for name, own in sources.items():
        assert figures["ranking"]["recall@20"]["low"] > own["recall@20"]["high"], name
        assert figures["ranking"]["mrr@20"]["value"] > own["mrr@20"]["high"], name


def test_every_number_of_the_data_is_accounted_for(result: dict[str, Any]) -> None:
    data = result["data"]
    assert (data["sessions"], data["items"], data["prefixes"]) == (186_670, 43_097, 60_858)
    assert data["prefixes_answered"] == 4_000
    assert data["unknown_clicks_left_out"] == data["targets_unknown"] == 0
    assert {"1", "32"} == set(result["latency_by_batch"])
