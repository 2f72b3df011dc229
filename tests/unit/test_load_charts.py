"""Pictures of runs of any length: a day has more seconds than a chart takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loadtests.growth import Series
from loadtests.scenarios.charts import _in_spans, flow_chart, latency_chart
from loadtests.soak_report import write_soak

PHASES = [{"start_s": 0}, {"start_s": 40}]


def seconds(n: int) -> list[dict[str, float]]:
    return [
        {"second": at, "planned": 50, "ok": 49, "refused": at % 2, "failed": 0, "p50_ms": 10.0, "p99_ms": 20.0 + at % 7}
        for at in range(n)
    ]


@pytest.mark.parametrize("length", [0, 1, 90, 3_600, 86_400])
def test_a_run_of_any_length_has_its_pictures(length: int) -> None:
    for chart in (flow_chart(seconds(length), PHASES), latency_chart(seconds(length), PHASES)):
        assert chart.startswith("<svg")
        assert len(chart) < 400_000
        assert ("in spans of" in chart) == (length > 1_000)


def test_a_span_shows_the_mean_of_its_requests_and_its_largest_p99() -> None:
    rows = [{"second": at, "what": "p99", "ms": float(at)} for at in range(2_000)]
    rows += [{"second": at, "what": "median", "ms": float(at)} for at in range(2_000)]
    frame, span = _in_spans(rows, "ms", {"median": "median", "p99": "max"})
    assert span == 2
    assert frame[frame["second"] == 0].sort_values("what")["ms"].tolist() == [0.5, 1.0]
    assert len(frame) == 2_000


def test_a_soak_of_many_samples_has_its_picture(tmp_path: Path) -> None:
    series = {(f"process {n}", "memory"): Series([10.0 * at for at in range(400)], [100.0 + n] * 400) for n in range(40)}
    report = {
        "seconds": 4_000,
        "samples": 400,
        "topology": "chain",
        "rate": 50,
        "load_exit_code": 0,
        "faults": [],
        "series": [],
    }
    assert "Nothing grew" in write_soak(report, series, tmp_path)
    assert len(re.findall("process", (tmp_path / "soak.svg").read_text())) > 0
