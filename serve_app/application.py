"""The graph on one screen.

::

    chain                                          fused
    HTTP -> Ingress -> Retrieval                   HTTP -> Ingress (all stages) -> Ledger
                    -> Ranking  -> Features
                    -> Decision -> Ranking
            every replica -> Ledger (state, live changes, promotions)
    Worker -> Decision (chain), or all stages in itself (fused): deferrals and the outbox
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

from serve_app.deployments import (
    DecisionReplica,
    FeaturesReplica,
    IngressReplica,
    LedgerReplica,
    RankingReplica,
    RetrievalReplica,
    WorkerReplica,
)
from serve_app.settings import DeploymentSettings, Settings

__all__ = ["APPLICATION", "build_application"]

APPLICATION = "hindcast"


def build_application(settings: Settings, *, admin_token: str = "", metrics_url: str | None = None) -> Application:
    """The deployments of `settings.topology`, bound to each other."""
    own = settings.deployments
    ledger = _deployment(LedgerReplica, "Ledger", own.ledger).bind(settings)
    ingress = _deployment(IngressReplica, "Ingress", own.ingress)
    worker = _deployment(WorkerReplica, "Worker", own.worker)
    if settings.topology == "fused":
        return ingress.bind(settings, admin_token, metrics_url, ledger, None, worker.bind(settings, ledger))
    retrieval = _deployment(RetrievalReplica, "Retrieval", own.retrieval).bind(settings, ledger)
    features = _deployment(FeaturesReplica, "Features", own.features).bind(settings, ledger)
    ranking = _deployment(RankingReplica, "Ranking", own.ranking).bind(settings, ledger, features)
    decision = _deployment(DecisionReplica, "Decision", own.decision).bind(settings, ledger, ranking)
    stages = (retrieval, ranking, decision)
    return ingress.bind(settings, admin_token, metrics_url, ledger, stages, worker.bind(settings, ledger, decision))


def _deployment(replica: type, name: str, own: DeploymentSettings) -> Any:
    """One deployment with its bounds; everything Serve would leave unbounded is set."""
    scaling: dict[str, Any] = {"num_replicas": own.min_replicas}
    if own.max_replicas > own.min_replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": own.min_replicas,
                "max_replicas": own.max_replicas,
                "target_ongoing_requests": own.target_ongoing,
                "upscale_delay_s": own.upscale_delay_s,
                "downscale_delay_s": own.downscale_delay_s,
            }
        }
    return serve.deployment(
        replica,
        name=name,
        max_ongoing_requests=own.max_ongoing,
        max_queued_requests=own.max_queued,
        ray_actor_options={"num_cpus": own.cpus},
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=10,
        **scaling,
    )
