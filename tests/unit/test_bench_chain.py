"""The chain benchmark compares like with like."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loadtests.bench_chain import CANDIDATES, FEATURES, bare, build_parts, chain, measure, request_batch
from serve_app.stages.retrieval.neighbours import EXACT_BELOW


def test_both_ways_see_the_same_candidates_and_are_measured(tmp_path: Path) -> None:
    parts = build_parts(EXACT_BELOW, tmp_path)
    batch = request_batch(parts, 3, seed=1)
    made = chain(parts, batch)
    assert made.candidates["features"].shape == (made.candidates.rows, FEATURES)
    kept = made.candidates["drop_reason"] == 0
    rows, _ = parts.tables.neighbours.search(parts.tables.vectors[batch.requests["anchor"]], CANDIDATES)
    for r in range(3):
        own = slice(made.offsets[r], made.offsets[r + 1])
        found = set(made.candidates["item"][own][kept[own]].tolist())
        assert len(found) == CANDIDATES
        assert len(found & set(rows[r].tolist())) >= CANDIDATES - 1, "all but the anchor itself"
    assert bare(parts, batch).shape == (3, CANDIDATES)
    figures = measure(parts, 2, rounds=3, warm_up=1)
    assert np.isfinite([figures["ratio_p50"], figures["ratio_cpu"]]).all()
