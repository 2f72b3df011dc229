"""A soak's judgement: leaks are found, noise and collectors are not."""

from __future__ import annotations

import json

import numpy as np
import psutil
import pytest

from loadtests.growth import Growth, Limits, Series, judged, trend
from loadtests.soak import Watch
from loadtests.soak_report import write_soak

HOUR = np.arange(0, 3600, 10.0)
NOISE = np.random.default_rng(0).normal(size=len(HOUR))


def of(values: np.ndarray, what: str = "memory", name: str = "Ranking 1") -> Growth:
    return judged(name, what, Series(HOUR.tolist(), values.tolist()), Limits())


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (300 + 20 * NOISE, "memory"),
        (300 + 100 * np.minimum(HOUR / 600, 1), "memory"),  # it warms up, then stays
        (300 + 60 * (HOUR % 300) / 300, "memory"),  # a collector's sawtooth
        (300 + 0.005 * HOUR + NOISE, "memory"),  # 14 MB an hour: less than is allowed
        (np.full(len(HOUR), 70.0), "handles"),
        (70 + (HOUR > 3000) * 5.0, "handles"),
    ],
)
def test_what_does_not_grow_is_no_fault(values, what) -> None:
    assert not of(values, what).fault


@pytest.mark.parametrize(
    ("values", "what", "growth"),
    [
        (300 + 0.05 * HOUR + 10 * NOISE, "memory", 144),
        (300 + 60 * (HOUR % 300) / 300 + 0.05 * HOUR, "memory", 144),
        (70 + np.floor(HOUR / 120), "handles", 24),
        (10 + np.floor(HOUR / 60), "files", 48),
    ],
)
def test_a_leak_is_a_fault_of_about_its_size(values, what, growth) -> None:
    found = of(values, what)
    assert found.fault
    assert json.loads(json.dumps(found.told))["fault"]
    assert found.growth == pytest.approx(growth, rel=0.15)
    assert what in found.words
    assert "Ranking 1" in found.words


def test_what_grows_by_design_is_told_and_no_fault() -> None:
    found = of(10 + HOUR, "files", "log")
    assert found.growth > 1000
    assert not found.fault
    assert found.told["told_only"]


def test_too_few_samples_prove_nothing() -> None:
    assert not judged("x", "memory", Series([0.0, 10.0, 20.0], [1.0, 500.0, 1000.0]), Limits()).fault


def test_one_wild_sample_moves_no_slope() -> None:
    values = 300 + np.zeros(len(HOUR))
    values[-1] = 1e6
    assert trend(HOUR, values)[0] == 0


def test_a_watch_sees_this_process_and_its_files(tmp_path) -> None:
    (tmp_path / "a").write_text("hello")
    watch = Watch(psutil.Process(), {"folder": tmp_path}, every_s=0.02)
    watch.start()
    for _ in range(1000):
        if watch.samples >= 3:
            break
        watch._over.wait(0.01)
    watch.stop()
    own = next(one for (name, what), one in watch.series.items() if what == "handles" and str(psutil.Process().pid) in name)
    assert min(own.values) > 0
    assert set(watch.series["folder", "files"].values) == {1}
    assert watch.ended(0) == []
    report = {"seconds": 1, "samples": 3, "topology": "fused", "rate": 1, "load_exit_code": 0, "faults": [],
              "series": [judged(n, w, one, Limits()).told for (n, w), one in watch.series.items()]}  # fmt: skip
    assert "Nothing grew" in write_soak(report, watch.series, tmp_path)
