"""Ranking: heads, their weighted sum, and lists made slot by slot with exact propensities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serve_app.stages.ranking.settings import ListSettings, Redundancy, Relax

if TYPE_CHECKING:
    from serve_app.stages.ranking.heads import Head, HeadSet, Models
    from serve_app.stages.ranking.stage import Identities, Ranking

__all__ = ["Head", "HeadSet", "Identities", "ListSettings", "Models", "Ranking", "Redundancy", "Relax"]


def __getattr__(name: str) -> Any:
    # Heads and stage load XGBoost; a policy, which only needs the settings, must not.
    from serve_app.stages.ranking import heads, stage

    if name in {"Head", "HeadSet", "Models"}:
        return getattr(heads, name)
    if name in {"Identities", "Ranking"}:
        return getattr(stage, name)
    raise AttributeError(name)
