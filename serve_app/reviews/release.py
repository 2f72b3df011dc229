"""What a release keeps of reviews: each one's score as a stored feature, the head that is that score, and the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.errors import InvalidInput
from serve_app.reviews.features import FEATURES, review_features
from serve_app.reviews.model import ReviewModel, train_review_model
from serve_app.reviews.table import ReviewTable
from serve_app.stages.features import Entity, FeatureSpec, FeatureTable
from serve_app.stages.ranking.heads import HeadSet

__all__ = ["REVIEW_QUALITY", "ReviewPart", "build_review_part"]

REVIEW_QUALITY = FeatureSpec("review_quality", Entity.review, default=0.0, writer="review model")
HEAD = "p_helpful"


@dataclass(frozen=True)
class ReviewPart:
    """table: `review_quality` by review row. heads: p_helpful. model: None where votes are too few to learn from; scores are
    then the review's length rank within its product, and `left_out` says so."""

    table: FeatureTable
    heads: HeadSet
    model: ReviewModel | None
    left_out: str = ""


def build_review_part(reviews: pa.Table, keys: npt.NDArray[np.uint64], as_of: int, *, seed: int) -> ReviewPart:
    """reviews: the catalogue's table in row order; keys u64[n]: hash of each review; as_of: when the scores are made, i64
    microseconds UTC."""
    table = ReviewTable.from_catalogue(reviews)
    model, left_out = None, ""
    try:
        model = train_review_model(table, seed=seed)
        scores = model.score(table)
    except InvalidInput as error:
        left_out = f"{error.message}; ordered by length"
        scores = review_features(table, with_age=False)[:, FEATURES.index("length_rank")].astype(np.float64)
    values = scores.astype(np.float32)[:, None]
    stored = FeatureTable(Entity.review, (REVIEW_QUALITY,), keys, values, np.full(len(keys), as_of, np.int64))
    return ReviewPart(stored, HeadSet.of_feature(HEAD, REVIEW_QUALITY.name), model, left_out)
