"""From a surface's content to what its section of the page shows: texts, charts, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulators.report.charts import bars_by_policy, changes, forest
from simulators.report.words import change, figure

__all__ = ["surface_view"]

Row = dict[str, Any]

_METRICS = {"clicks": "clicks", "carts": "added to the cart", "conversions": "conversions", "revenue": "revenue"}
_PER = {"revenue": ("list", 1.0)}
_THOUSAND = ("1,000 lists", 1000.0)
_SHOWN = 12


def surface_view(content: Mapping[str, Any]) -> Row:
    """content: one entry of `items.lists_content`."""
    policies = [one["policy"] for one in content["targets"]]
    return {
        **content,
        "policies": policies,
        "positions": _positions(content["targets"]),
        "views": [_target(one, content["outcomes"]) for one in content["targets"]],
        "chart": _forest(content["outcomes"], policies),
        "faults": [f"{one['estimator']} of {_METRICS[one['metric']]}" for one in content["control"] if not one["clean"]],
    }


def _positions(targets: Sequence[Mapping[str, Any]]) -> str:
    """Share of slots with another thing in them, by position."""
    names = [one["policy"] for one in targets]
    by = {one["policy"]: {row["position"]: row["changed"] for row in one["by_position"]} for one in targets}
    places = sorted({place for one in by.values() for place in one})
    rows = [{"name": str(p), "the log": 0.0, **{name: 100 * by[name].get(p, 0.0) for name in names}} for p in places]
    return bars_by_policy(rows, ["the log", *names], what="% of slots changed", along="position") if rows else ""


def _target(one: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]]) -> Row:
    policy = one["policy"]

    def drawn(rows: Sequence[Mapping[str, Any]], most: int) -> str:
        moved = sorted(rows, key=lambda row: (-abs(row["target"] - row["logged"]), row["name"]))[:most]
        whole = [{"name": r["name"], "logged": round(r["logged"]), policy: round(r["target"])} for r in moved]
        return changes(whole, policy, what="exposures") if whole else ""

    return {
        **one,
        "categories_chart": drawn(one["categories"], _SHOWN),
        "things_chart": drawn(one["things"], _SHOWN),
        "rows": [_row(row) for row in outcomes if row["policy"] == policy],
    }


def _row(row: Mapping[str, Any]) -> Row:
    per, scale = _PER.get(row["metric"], _THOUSAND)
    said: Row = {
        "text": f"{_METRICS[row['metric']]} per {per}",
        "estimator": row["estimator"],
        "standing": row["standing"],
        "why": "; ".join([*row["reasons"], *row.get("notes", ())]),
        "difference": "",
    }
    if "difference" not in row:
        return said
    return {
        **said,
        "logged": figure(scale * row["logged"]),
        "difference": figure(scale * row["difference"], signed=True),
        "span": f"{figure(scale * row['low'], signed=True)} … {figure(scale * row['high'], signed=True)}",
        "relative": change(row["difference"] / row["logged"]) if row["logged"] else "",
    }


def _forest(outcomes: Sequence[Mapping[str, Any]], policies: Sequence[str]) -> str:
    """Differences as shares of the log's value. Refused numbers are not drawn."""
    rows = [
        {
            "name": f"{_METRICS[row['metric']]}, {row['estimator']}",
            "policy": row["policy"],
            **{key: row[name] / row["logged"] for key, name in (("value", "difference"), ("low", "low"), ("high", "high"))},
        }
        for row in outcomes
        if row.get("logged")
    ]
    return forest(rows, ["logged", *policies], what="change from the log", percent=True) if rows else ""
