"""From ranked batches to what callers read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.clock import text_of
from serve_app.ids import decision_id_text
from serve_app.ingress.asks import Ask
from serve_app.ingress.recommend import Lists
from serve_app.serving.library import Edition
from serve_app.vocabulary import DropReason, FeatureStatus, Source, StageBit

__all__ = ["degraded_names", "envelope", "explained", "feature_values", "finite", "names_of", "ranked_items"]

_STAGES = [(int(stage), stage.name) for stage in StageBit if stage.name is not None]
Names = Callable[[npt.NDArray[np.int32]], list[str]]


def degraded_names(bits: int) -> list[str]:
    """Names of the stages whose bit is set."""
    return [name for bit, name in _STAGES if bits & bit]


def finite(value: float) -> float | None:
    """JSON has no NaN: null stands for unknown."""
    return float(value) if np.isfinite(value) else None


def envelope(lists: Lists, row: int, ask: Ask) -> dict[str, Any]:
    """What every answer says."""
    requests = lists.batch.requests
    return {
        "request_id": f"{int(requests['request_id'][row]):016x}",
        "release": lists.edition.release.version,
        "policy": lists.edition.policy.revision,
        "decided_at": text_of(ask.decided_at),
        "cold_start": bool(lists.cold[row]),
        "degraded": degraded_names(int(requests["degraded"][row])),
    }


def names_of(kind: str, edition: Edition) -> Names:
    """Row -> the shop's id, for items, widgets or reviews."""
    if kind == "item":
        return edition.view.ids_of
    rows = edition.release.catalogue
    if kind == "widget":
        return lambda found: [rows.widget_ids[row] for row in found.tolist()]
    return lambda found: [rows.reviews["review_id"][row].as_py() for row in found.tolist()]


def chosen(batch: Batch, row: int) -> npt.NDArray[np.int64]:
    """Flat positions of one request's chosen candidates, in order of slot."""
    start, stop = int(batch.offsets[row]), int(batch.offsets[row + 1])
    slots = batch.candidates["slot"][start:stop].tolist()
    at = sorted([place for place, slot in enumerate(slots, start) if slot >= 0], key=lambda place: slots[place - start])
    return np.array(at, np.int64)


def ranked_items(lists: Lists, row: int, ask: Ask, kind: str = "item") -> list[dict[str, Any]]:
    """One request's list."""
    at = chosen(lists.batch, row)
    request_id = int(lists.batch.requests["request_id"][row])
    names = names_of(kind, lists.edition)(lists.batch.candidates[kind][at])
    slots = lists.batch.candidates["slot"][at].tolist()
    return [
        {"id": name, "slot": slot, "decision_id": decision_id_text(ask.user_hash, request_id, slot)}
        for name, slot in zip(names, slots, strict=True)
    ]


def explained(lists: Lists, row: int, kind: str = "item") -> list[dict[str, Any]]:
    """Every candidate of one request: chosen ones by slot, then the others by value, then the dropped."""
    batch, candidates = lists.batch, lists.batch.candidates
    at = np.arange(batch.offsets[row], batch.offsets[row + 1])
    slot, value = candidates["slot"][at], candidates["value"][at]
    order = at[np.lexsort((-np.nan_to_num(value, nan=-np.inf), np.where(slot < 0, np.iinfo(np.int32).max, slot)))]
    names = names_of(kind, lists.edition)(candidates[kind][order])
    return [_explain_one(batch, int(c), name) for c, name in zip(order, names, strict=True)]


def _explain_one(batch: Batch, c: int, name: str) -> dict[str, Any]:
    candidates = batch.candidates
    slot, drop = int(candidates["slot"][c]), DropReason(int(candidates["drop_reason"][c]))
    heads: Sequence[str] = batch.meta.get("heads", ())
    scored = "heads" in candidates and drop is DropReason.kept
    return {
        "id": name,
        "slot": slot if slot >= 0 else None,
        "sources": _sources(batch, c),
        "retrieval_score": finite(candidates["retrieval_score"][c]),
        "drop_reason": None if drop is DropReason.kept else drop.name,
        "heads": {h: finite(v) for h, v in zip(heads, candidates["heads"][c], strict=True)} if scored else None,
        "features": feature_values(batch, c) if scored else None,
        "value": finite(candidates["value"][c]),
        "propensity": finite(candidates["p_slot"][c]),
    }


def feature_values(batch: Batch, c: int) -> dict[str, Any] | None:
    """What was read for one candidate, with the status of each value."""
    if "features" not in batch.candidates:
        return None
    values, status = batch.candidates["features"][c], batch.candidates["feature_status"][c]
    return {
        name: {"value": finite(value), "status": FeatureStatus(int(flag)).name}
        for name, value, flag in zip(batch.meta["features"], values, status, strict=True)
    }


def _sources(batch: Batch, c: int) -> dict[str, float | None]:
    bits = int(batch.candidates["sources"][c])
    named = {one.name: one for one in Source if bits & one and one.name is not None}
    columns: Sequence[str] = batch.meta.get("sources", ())
    if "source_scores" not in batch.candidates:
        return dict.fromkeys(named)
    scores = batch.candidates["source_scores"][c]
    return {name: finite(scores[columns.index(name)]) if name in columns else None for name in named}
