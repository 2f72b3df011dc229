"""Lists in a report: what targets would have shown instead, and what that would have brought, surface by surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.ids import hash_id
from serve_app.log.fingerprint import code_version
from serve_app.log.reader import read_log
from serve_app.release.manifest import write_text_atomically
from simulators.estimators import Estimated, Per, Suite
from simulators.estimators.settings import EstimateSettings
from simulators.replay.items.changes import AT, UNIT
from simulators.replay.items.shard import ListsShard, SurfaceSums
from simulators.replay.items.spec import ListsSpec
from simulators.replay.spec import CONTROL
from simulators.report.items_view import surface_view
from simulators.report.page import templates
from simulators.report.tally import Tally
from simulators.report.words import about

__all__ = ["lists_content", "write_lists_report"]

Row = dict[str, Any]

_TOP = 8
SCORES = {
    "logged": "logged scores",
    "rescored": "re-scored from logged features",
    "retrieved": "retrieval re-run",
}


def lists_content(result: ListsShard, spec: ListsSpec, settings: EstimateSettings | None = None) -> list[Row]:
    """One entry a surface, as plain values."""
    settings = settings or EstimateSettings()
    names = _Names(Path(spec.data))
    return [_surface(name, sums, spec, settings, names) for name, sums in result.surfaces.items()]


def write_lists_report(surfaces: Sequence[Row], spec: ListsSpec, out: Path, *, waived: bool, command: str = "") -> None:
    """report.html and report.json of a replay of lists alone."""
    clean = all(one["parity"]["same"] == one["parity"]["requests"] for one in surfaces)
    outcome = "kept" if clean or waived else "parity"
    content = {
        "verdict": {"outcome": outcome, "exit_code": 0 if outcome == "kept" else 13, "guardrails": []},
        "lists": list(surfaces),
        "made": {"command": command, "code": code_version(), "attribution_hours": spec.attribution_us / 3.6e9},
    }
    write_text_atomically(out / "report.json", orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())
    title = f"Hindcast: {', '.join(one.name for one in spec.targets)} against the logged lists"
    views = [surface_view(one) for one in surfaces]
    page = templates().get_template("items_page.html.j2").render(content, title=title, list_views=views, waived=waived)
    write_text_atomically(out / "report.html", page)


def _surface(name: str, sums: SurfaceSums, spec: ListsSpec, settings: EstimateSettings, names: _Names) -> Row:
    tally = Tally(sums.counts)
    days = [day for day in tally.days("logged", "lists") if day >= 0]
    kind = "retrieved" if spec.retrieval else "rescored" if spec.release else "logged"
    return {
        "surface": name,
        "scores": SCORES[kind],
        "release": spec.release,
        "segments": list(spec.segments),
        "window": [_day(days[0]), _day(days[-1])] if days else [],
        "parity": {**asdict(sums.parity), "share": sums.parity.share},
        "read": {
            key: tally.total("logged", key)
            for key in ("lists_read", "lists_unsampled", "slots_unsampled", "fell_back", "lists_of_bots")
        },
        "notes": {key: n for key in NOTES if (n := tally.total("logged", key))},
        "lists": tally.total("logged", "lists") / UNIT,
        "distinct": len(tally.by("logged", "exposures", "thing")),
        "targets": [_target(tally, one.name, name, names) for one in spec.targets],
        "control": _control(sums.suites, settings),
        "outcomes": [row for suite in sums.suites.values() for row in _outcomes(suite, settings)],
        "attribution_hours": spec.attribution_us / 3.6e9,
        "estimators": {label: about(label, "estimator") for suite in sums.suites.values() for label in suite.labels},
    }


NOTES = {
    "unknown_things": "candidates that the release does not know, kept out of its lists",
    "not_retrieved": "logged candidates that the release's retrieval does not find",
    "newly_retrieved": "candidates that only the release's retrieval finds",
    "filtered": "logged candidates that a target's stricter filters leave out",
    "narrowed": "lists where stricter filters would have let in candidates beyond the logged width, which have no scores",
}
"""Counts that scorers leave, in words."""


def _target(tally: Tally, policy: str, surface: str, names: _Names) -> Row:
    compared = tally.by(policy, "slots_compared", "position")
    changed = tally.by(policy, "slots_changed", "position")
    shared, of = tally.by(policy, "overlap", "at"), tally.by(policy, "overlap_of", "at")
    lists, slots = tally.total(policy, "lists"), sum(compared.values())
    return {
        "policy": policy,
        "lists_changed": tally.total(policy, "lists_changed") / max(lists, 1),
        "slots_changed": sum(changed.values()) / max(slots, 1),
        "by_position": [{"position": place + 1, "changed": changed.get(place, 0) / n} for place, n in compared.items() if n],
        "overlap": {str(k): shared.get(k, 0) / of[k] for k in AT if of.get(k)},
        "distinct": len(tally.by(policy, "exposures", "thing")),
        "categories": _moved(tally, policy, "category", names.categories, None),
        "things": _moved(tally, policy, "thing", names.things(surface, _extremes(tally, policy)), _TOP),
    }


def _extremes(tally: Tally, policy: str) -> list[int]:
    return [row["key"] for row in _moved(tally, policy, "thing", {}, _TOP)]


def _moved(tally: Tally, policy: str, by: str, texts: Mapping[int, str], top: int | None) -> list[Row]:
    """Exposures of both, the most moved up first; the first and last `top` of them."""
    logged, mine = tally.by("logged", "exposures", by), tally.by(policy, "exposures", by)
    keys = sorted({*logged, *mine}, key=lambda key: (logged.get(key, 0) - mine.get(key, 0), key))
    if top is not None and len(keys) > 2 * top:
        keys = [*keys[:top], *keys[-top:]]
    return [
        {
            "key": key,
            "name": texts.get(key, f"{key:016x}" if key else "none"),
            "logged": logged.get(key, 0) / UNIT,
            "target": mine.get(key, 0) / UNIT,
        }
        for key in keys
    ]


def _outcomes(suite: Suite, settings: EstimateSettings) -> list[Row]:
    """Differences from the log, per list; refused ones have reasons and no number."""
    out = []
    for one in suite.estimates(settings, per=(Per.decision,), control=CONTROL):
        said = one.subject
        if said.versus is None or said.policy == CONTROL:
            continue
        row: Row = {
            "policy": said.policy,
            "metric": said.metric,
            "estimator": said.estimator,
            "standing": one.verdict.standing.value,
            "reasons": list(one.verdict.reasons),
            "comparisons": one.comparisons,
        }
        if isinstance(one, Estimated) and one.interval is not None:
            logged = suite[said.estimator].point("logged", said.metric, Per.decision).value
            row |= {"logged": logged, "difference": one.value, "notes": list(one.notes)}
            row |= {"low": one.interval.low, "high": one.interval.high}
        out.append(row)
    return out


def _control(suites: Mapping[str, Suite], settings: EstimateSettings) -> list[Row]:
    return [
        {"estimator": label, "metric": metric, "clean": suite.control_is_clean(label, CONTROL, metric, settings)}
        for suite in suites.values()
        for label in suite.labels
        for metric in suite.metrics
    ]


class _Names:
    """Texts of hashes, as far as log and catalogue have them."""

    def __init__(self, data: Path) -> None:
        self._data = data
        path = data / "catalogue" / "items.parquet"
        found = pc.unique(pq.read_table(path, columns=["category"])["category"]).to_pylist() if path.is_file() else []
        self.categories = {hash_id(text): text for text in found if text}

    def things(self, surface: str, wanted: Sequence[int]) -> dict[int, str]:
        """Of a few things of a surface."""
        if surface in ("widgets", "reviews"):
            column = f"{surface.removesuffix('s')}_id"
            path = self._data / "catalogue" / f"{surface}.parquet"
            texts = pq.read_table(path, columns=[column])[column].to_pylist() if path.is_file() else []
            return {key: text for text in texts if (key := hash_id(text)) in set(wanted)}
        rows = read_log(self._data, "items", columns=["item", "item_id"])
        rows = rows.filter(pc.is_in(rows["item"], pa.array(list(wanted), pa.uint64())))
        return dict(zip(rows["item"].to_pylist(), rows["item_id"].to_pylist(), strict=True))


def _day(number: int) -> str:
    return date.fromordinal(date(1970, 1, 1).toordinal() + number).isoformat()
