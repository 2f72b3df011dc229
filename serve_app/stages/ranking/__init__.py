"""Ranking: heads, their weighted sum, and lists made slot by slot with exact propensities."""

from serve_app.stages.ranking.settings import ListSettings, Redundancy, Relax

__all__ = ["ListSettings", "Redundancy", "Relax"]
