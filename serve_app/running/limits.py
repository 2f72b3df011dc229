"""Serve's own limit on a request, which stands behind ours for what ours cannot stop."""

from __future__ import annotations

from serve_app.settings import Settings

__all__ = ["request_limit_s"]

_UPKEEP_CALL_S = 120.0


def request_limit_s(settings: Settings) -> float:
    """Seconds after which Serve gives a request up."""
    budgets = settings.budgets
    return 5.0 + max(_UPKEEP_CALL_S, max(budgets.request_ms, budgets.decide_ms, budgets.decide_batch_ms) / 1000)
