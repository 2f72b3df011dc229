"""The Decision stage: gates, value, exploration, choice, holdouts."""

from serve_app.stages.decision.stage import Decision

__all__ = ["Decision"]
