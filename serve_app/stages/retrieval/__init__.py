"""Retrieval: candidates for the item surfaces. `stage.py` is the stage, `gather.py` its kernel, `tables.py` its arrays; one
file a source (covisit, sessions, neighbours, popular, availability for new items)."""

from serve_app.stages.retrieval.availability import ItemChange, Overlay
from serve_app.stages.retrieval.evidence import EVIDENCE
from serve_app.stages.retrieval.filters import drop_unavailable
from serve_app.stages.retrieval.stage import DEFAULT_RETRIEVAL, Retrieval, SurfaceRetrieval
from serve_app.stages.retrieval.tables import RetrievalBuild, RetrievalTables, SessionLog

__all__ = [
    "DEFAULT_RETRIEVAL",
    "EVIDENCE",
    "ItemChange",
    "Overlay",
    "Retrieval",
    "RetrievalBuild",
    "RetrievalTables",
    "SessionLog",
    "SurfaceRetrieval",
    "drop_unavailable",
]
