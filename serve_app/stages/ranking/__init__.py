"""Ranking: heads, their weighted sum, and lists made slot by slot with exact propensities."""

from serve_app.stages.ranking.settings import ListSettings, Redundancy, Relax

# Heads and stage are imported from their modules: they load XGBoost, which readers of settings do not need.
__all__ = ["ListSettings", "Redundancy", "Relax"]
