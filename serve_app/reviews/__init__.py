"""Review quality: features of a review, and the model that scores how helpful readers will find it."""

from serve_app.reviews.model import ReviewModel, out_of_fold, train_review_model
from serve_app.reviews.release import ReviewPart, build_review_part
from serve_app.reviews.table import ReviewTable

__all__ = ["ReviewModel", "ReviewPart", "ReviewTable", "build_review_part", "out_of_fold", "train_review_model"]
