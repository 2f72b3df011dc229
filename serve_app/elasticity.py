"""How each deployment grows, queues and stops, as the options Serve takes. Nothing is left at Serve's defaults: those queue
without bound, and stop a lone replica before its successor has started.

`serve_app.application` and the Serve config file (`serve_app.running.serve_file`) both read it, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.scaling import POLICY
from serve_app.settings import DeploymentSettings, Settings

__all__ = ["APPLICATION", "CALLED_NEAR", "DEPLOYMENTS", "STATE_APPLICATION", "deployment_names", "deployment_options"]

APPLICATION = "hindcast"
STATE_APPLICATION = "hindcast-state"
"""The owner of the state by itself, on a cluster."""

DEPLOYMENTS: Mapping[str, str] = {
    "Ledger": "ledger",
    "Retrieval": "retrieval",
    "Features": "features",
    "Ranking": "ranking",
    "Decision": "decision",
    "Worker": "worker",
    "Ingress": "ingress",
}
"""Deployment -> its group in `settings.deployments`."""

CALLED_NEAR = frozenset({"Retrieval", "Features", "Ranking", "Decision"})
"""Called over local sockets too, which Serve does not see: they grow by our own policy."""

_FUSED = ("Ledger", "Worker", "Ingress")


def deployment_names(settings: Settings) -> tuple[str, ...]:
    """The deployments of `settings.topology`."""
    return _FUSED if settings.topology == "fused" else tuple(DEPLOYMENTS)


def deployment_options(settings: Settings, name: str) -> dict[str, Any]:
    """Keyword arguments of `serve.deployment`, by the same names as in a Serve config file."""
    own: DeploymentSettings = getattr(settings.deployments, DEPLOYMENTS[name])
    return {
        **_replicas(own, near=name in CALLED_NEAR),
        "max_ongoing_requests": own.max_ongoing,
        "max_queued_requests": own.max_queued,
        "ray_actor_options": {"num_cpus": own.cpus},
        "health_check_period_s": 1,
        "health_check_timeout_s": 10,
        "graceful_shutdown_wait_loop_s": 0.2,
        "graceful_shutdown_timeout_s": own.drain_s,
        # `logs.calls` writes a line a call where one is wanted; Serve's own for each costs a small call a twentieth, and at
        # INFO it is made even where it is thrown away.
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
        # The state owner's file has one owner at a time: its successor starts when it has let go.
        "max_surge_percent": 0 if name == "Ledger" else 100,
    }


def _replicas(own: DeploymentSettings, *, near: bool) -> dict[str, Any]:
    if own.max_replicas == own.min_replicas:
        return {"num_replicas": own.min_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": own.min_replicas,
            "max_replicas": own.max_replicas,
            "target_ongoing_requests": own.target_ongoing,
            "upscale_delay_s": own.upscale_delay_s,
            "downscale_delay_s": own.downscale_delay_s,
            "look_back_period_s": own.look_back_s,
            "metrics_interval_s": own.look_back_s / 5,
            **({"policy": {"policy_function": POLICY}} if near else {}),
        }
    }
