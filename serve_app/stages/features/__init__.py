"""Features: declared, compiled into a plan, gathered from columnar tables with a status for every value."""

from serve_app.stages.features.plan import FeaturePlan
from serve_app.stages.features.tables import Entity, FeatureSpec, FeatureTable

__all__ = ["Entity", "FeaturePlan", "FeatureSpec", "FeatureTable"]
