"""The document's list settings in the form the retrieval and ranking stages take them."""

from __future__ import annotations

from types import MappingProxyType

from serve_app.noise import salt_of
from serve_app.policy.base import SurfaceName
from serve_app.policy.document import PolicyDocument
from serve_app.stages.ranking.settings import ListSettings, Redundancy, Relax
from serve_app.stages.retrieval.stage import SurfaceRetrieval
from serve_app.vocabulary import Source

__all__ = ["list_settings", "retrieval_settings"]


def list_settings(document: PolicyDocument, surface: SurfaceName) -> ListSettings:
    """Weights, temperature and diversity of one surface."""
    own = document.surfaces.by_name(surface)
    rule = own.diversity.rules[0] if own.diversity.rules else None
    return ListSettings(
        weights=tuple(own.head_weights.items()),
        temperature=own.temperature,
        salt=int(salt_of(f"{surface}/{own.salt}")),
        window=rule.window if rule else 0,
        per_window=rule.max if rule else 1,
        mmr_lambda=own.diversity.mmr_lambda,
        redundancy=Redundancy[own.diversity.redundancy],
        relax=Relax[own.diversity.relax],
    )


def retrieval_settings(document: PolicyDocument, surface: SurfaceName) -> SurfaceRetrieval | None:
    """Quotas and filters of one surface; None where the document names no sources."""
    own = document.surfaces.by_name(surface)
    if not own.sources:
        return None
    quotas = MappingProxyType({Source[name]: quota for name, quota in own.sources.items()})
    return SurfaceRetrieval(quotas, drop_seen=own.filters.seen, drop_bought=own.filters.bought)
