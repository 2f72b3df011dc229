"""How many replicas a stage should have. Imported by Serve's controller: it imports nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

__all__ = ["NEAR", "POLICY", "replicas_wanted"]

NEAR = "near"
"""Name of the metric: calls under way that came over local sockets."""

POLICY = "serve_app.scaling:replicas_wanted"


def replicas_wanted(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """As many as give each `target_ongoing_requests`, as Serve's own policy does, with the calls that Serve does not see.
    Serve applies its factors, delays and bounds to the answer (see "Custom autoscaling policies" in its documentation)."""
    if context.current_num_replicas == 0:
        return float(context.target_num_replicas), {}
    ongoing = context.total_num_requests + sum((context.aggregated_metrics or {}).get(NEAR, {}).values())
    return ongoing / context.config.get_target_ongoing_requests(), {}
