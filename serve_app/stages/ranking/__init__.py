"""Ranking: heads, their weighted sum, and lists made slot by slot with exact propensities."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from serve_app.stages.ranking.settings import ListSettings, Redundancy, Relax

if TYPE_CHECKING:
    from serve_app.stages.ranking.heads import Head, HeadSet, Models
    from serve_app.stages.ranking.stage import Identities, Ranking

__all__ = ["Head", "HeadSet", "Identities", "ListSettings", "Models", "Ranking", "Redundancy", "Relax"]

# Heads and stage load XGBoost; a policy, which only needs the settings, must not.
_LATER = {"Head": "heads", "HeadSet": "heads", "Models": "heads", "Identities": "stage", "Ranking": "stage"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
