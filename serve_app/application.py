"""The graph on one screen.

::

    chain                                          fused
    HTTP -> Ingress -> Retrieval                   HTTP -> Ingress (all stages) -> Ledger
                    -> Ranking  -> Features, Retrieval
                    -> Decision -> Ranking
            every replica -> Ledger (state, live changes, promotions)
    Worker -> Decision (chain), or all stages in itself (fused): deferrals and the outbox

On a cluster Ledger is an application of its own (`build_state`), which updates of the rest leave running.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from serve_app.deployments import (
    DecisionReplica,
    FeaturesReplica,
    IngressReplica,
    LedgerReplica,
    RankingReplica,
    RetrievalReplica,
    WorkerReplica,
)
from serve_app.elasticity import APPLICATION, STATE_APPLICATION, deployment_options
from serve_app.settings import Settings

__all__ = ["APPLICATION", "STATE_APPLICATION", "build_application", "build_state"]


def build_application(settings: Settings, *, admin_token: str = "", state: DeploymentHandle | None = None) -> Application:
    """The deployments of `settings.topology`, bound to each other. state: the Ledger of another application, if it has one
    of its own."""

    def deployment(replica: type, name: str) -> Any:
        return serve.deployment(replica, name=name, **deployment_options(settings, name))

    ledger = state if state is not None else build_state(settings)
    ingress, worker = deployment(IngressReplica, "Ingress"), deployment(WorkerReplica, "Worker")
    if settings.topology == "fused":
        return ingress.bind(settings, admin_token, ledger, None, worker.bind(settings, ledger))
    retrieval = deployment(RetrievalReplica, "Retrieval").bind(settings, ledger)
    features = deployment(FeaturesReplica, "Features").bind(settings, ledger)
    ranking = deployment(RankingReplica, "Ranking").bind(settings, ledger, retrieval, features)
    decision = deployment(DecisionReplica, "Decision").bind(settings, ledger, ranking)
    return ingress.bind(
        settings, admin_token, ledger, (retrieval, ranking, decision), worker.bind(settings, ledger, decision)
    )


def build_state(settings: Settings) -> Application:
    """The owner of ledger, live changes and promotions."""
    return serve.deployment(LedgerReplica, name="Ledger", **deployment_options(settings, "Ledger")).bind(settings)
