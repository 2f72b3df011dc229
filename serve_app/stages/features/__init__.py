"""Features: declared, compiled into a plan, gathered from columnar tables with a status for every value."""

from serve_app.stages.features.computed import COMPUTED, source_specs
from serve_app.stages.features.plan import FeaturePlan
from serve_app.stages.features.stage import Features, ItemFacts, status_counts
from serve_app.stages.features.tables import Entity, FeatureSpec, FeatureTable

__all__ = [
    "COMPUTED",
    "Entity",
    "FeaturePlan",
    "FeatureSpec",
    "FeatureTable",
    "Features",
    "ItemFacts",
    "source_specs",
    "status_counts",
]
