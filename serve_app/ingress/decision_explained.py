"""Why a decision is what it is: every candidate of it, gate by gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from serve_app.batch import Batch
from serve_app.clock import text_of
from serve_app.ingress.answers import feature_values, finite
from serve_app.ingress.decision_answers import campaign_texts, item_texts
from serve_app.serving.library import Edition
from serve_app.vocabulary import Action, Channel, GateOutcome, Reason

__all__ = ["explained_candidates", "gate_words"]


def explained_candidates(batch: Batch, row: int, edition: Edition) -> list[dict[str, Any]]:
    """Every candidate of one decision, gate by gate."""
    c = batch.candidates
    heads: Sequence[str] = batch.meta.get("heads", ())
    span = np.arange(int(batch.offsets[row]), int(batch.offsets[row + 1]))
    named = campaign_texts(c["campaign"][span], edition).to_pylist()
    items = item_texts(c["item"][span], edition).to_pylist()
    return [
        {
            "campaign": campaign,
            "item": item,
            "channel": Channel(int(c["channel"][at])).name,
            "action": Action(int(c["action"][at])).name,
            "reason": Reason(int(c["reason"][at])).name,
            "value": finite(c["value"][at]),
            "propensity": finite(c["p_choice"][at]),
            "ghost": bool(c["ghost"][at]),
            "heads": {h: finite(v) for h, v in zip(heads, c["heads"][at], strict=True)} if "heads" in c else None,
            "features": feature_values(batch, at),
            "gates": gate_words({name: c[name][at] for name in _GATE_COLUMNS}, batch.meta["gates"]),
        }
        for at, campaign, item in zip(span.tolist(), named, items, strict=True)
    ]


_GATE_COLUMNS = ("gate_outcome", "gate_reason", "used", "limit", "next_free_at")


def gate_words(columns: dict[str, Any], gates: Sequence[str]) -> list[dict[str, Any]]:
    """What every gate said of one candidate; columns are its rows of the per-gate columns."""
    return [
        {
            "gate": gate,
            "outcome": GateOutcome(int(columns["gate_outcome"][g])).name,
            "reason": Reason(int(columns["gate_reason"][g])).name if columns["gate_reason"][g] else None,
            "used": finite(columns["used"][g]),
            "limit": finite(columns["limit"][g]),
            "next_free_at": text_of(at) if (at := int(columns["next_free_at"][g])) else None,
        }
        for g, gate in enumerate(gates)
    ]
