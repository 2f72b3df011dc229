"""The Grafana dashboard asks only for metrics that exist, by labels they have, and shows every one of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.serving.meters import COUNTERS, GAUGES, TIMERS

FILE = Path(__file__).resolve().parents[2] / "grafana" / "hindcast.json"
DASHBOARD = json.loads(FILE.read_text())


def exported() -> dict[str, tuple[str, ...]]:
    """Name on /metrics -> labels of ours. Ray puts `ray_` before every name and `_total` behind a counter's."""
    names = {f"ray_{name}_total": tags for name, (_, tags) in COUNTERS.items()}
    names |= {f"ray_{name}": tags for name, (_, tags) in GAUGES.items()}
    for name, (_, tags) in TIMERS.items():
        names |= {f"ray_{name}_{part}": tags for part in ("sum", "count")}
        names[f"ray_{name}_bucket"] = (*tags, "le")
    return names


def queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(("title", "query"), list(queries()))
def test_every_query_names_a_metric_that_exists_by_labels_it_has(title: str, query: str) -> None:
    names, known = re.findall(r"\bray_\w+", query), exported()
    assert names, query
    for name in names:
        assert name in known, f"{title}: {name}"
    allowed = {label for name in names for label in known[name]}
    asked = {label.strip() for labels in re.findall(r"\b(?:by|ignoring) \(([^)]*)\)|\bignoring\(([^)]*)\)", query)
             for part in labels for label in part.split(",") if label.strip()}  # fmt: skip
    asked |= set(re.findall(r"(\w+)(?:!=|=~|!~|=)\"", query))
    assert asked <= allowed, f"{title}: {asked - allowed}"


def test_every_metric_is_shown() -> None:
    shown = {name for _, query in queries() for name in re.findall(r"\bray_(hindcast_\w+)", query)}
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in shown}
    assert {*COUNTERS, *TIMERS, *GAUGES} - shown == set()


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not own & taken, panel["title"]
        taken |= own
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
