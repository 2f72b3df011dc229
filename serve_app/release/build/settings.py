"""Every setting of a build: bounded, documented, its unit in its name; all of them go into the release's lineage."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["BuildSettings"]


class BuildSettings(BaseModel):
    """Settings of `hindcast build`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    seed: int = Field(7, ge=0)
    """Fixes every sample and start vector."""
    dimensions: int = Field(64, ge=2, le=512)
    """Length of the item embeddings."""
    embedding: Literal["svd", "session"] = "svd"
    """How item embeddings are learned: from co-visits whatever their order (quick), or from the order of clicks."""
    holdout_days: float = Field(14.0, gt=0, le=365)
    """Days at the log's end that offline figures are measured on; the models behind the figures never saw them."""
    example_days: float = Field(28.0, gt=0, le=365)
    """Days before the holdout that examples for the heads are taken from; their retrieval tables end before."""
    max_examples: int = Field(4_000, ge=10)
    """Requests used to train each surface's heads at most; more are sampled by a seeded hash."""
    max_decisions: int = Field(200_000, ge=100)
    """Sends, and rows of pages, used to train or judge heads at most."""
    max_measured: int = Field(6_000, ge=10)
    """Requests each offline figure is measured on at most."""
    negatives: int = Field(30, ge=1, le=1000)
    """Candidates without the label kept per training request (a seeded sample of what retrieval gave)."""
    width: int = Field(200, ge=1, le=5_000)
    """Candidates asked of retrieval, as in serving."""
    trees: int = Field(100, ge=1, le=2_000)
    """Boosting rounds of each head."""
    depth: int = Field(6, ge=1, le=12)
    """Depth of the trees."""
    threads: int = Field(1, ge=1, le=256)
    """Threads of model training; the result does not depend on it."""
    buckets_per_task: int = Field(256, ge=1, le=4096)
    """User buckets that one task of the extraction reads."""
