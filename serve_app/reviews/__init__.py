"""Review quality: features of a review, and the model that scores how helpful readers will find it."""

from serve_app.reviews.model import ReviewModel, out_of_fold, train_review_model
from serve_app.reviews.table import ReviewTable

__all__ = ["ReviewModel", "ReviewTable", "out_of_fold", "train_review_model"]
