"""What a review's text, stars, product and date say about its quality: one f32 matrix, columns named."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serve_app.reviews.table import ReviewTable

__all__ = ["AGE_FEATURES", "FEATURES", "review_features"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_DAY_US = 86_400_000_000
_WORD = re.compile(r"\S+")
# Counted in the text; the logarithm of one more than the count is the feature.
_COUNTS = {
    "sentences": re.compile(r"[.!?]+"),
    "exclamations": re.compile("!"),
    "questions": re.compile(r"\?"),
    "commas": re.compile(","),
    "shouted_words": re.compile(r"\b[A-Z]{2,}\b"),
    "digits": re.compile(r"\d"),
    "lines": re.compile("\n"),
    "first_person": re.compile(r"\b(?:I|my|me|My)\b"),
    "second_person": re.compile(r"\byou", re.IGNORECASE),
    "contrasts": re.compile(r"\b(?:but|however|although|though)\b", re.IGNORECASE),
    "negations": re.compile(r"\b(?:not|no|never|\w+n't)\b", re.IGNORECASE),
}
_UPPER = re.compile("[A-Z]")

_TEXT = ("characters", "words", *_COUNTS, "sentence_length", "uppercase_share", "word_length", "distinct_words")
_TITLE = ("title_characters", "title_exclamations", "title_is_stars", "images")
_PRODUCT = (
    "stars",
    "verified",
    "item_reviews",
    "item_stars",
    "stars_deviation",
    "stars_distance",
    "length_rank",
    "longer_reviews",
)
FEATURES: tuple[str, ...] = _TEXT + _TITLE + _PRODUCT
AGE_FEATURES: tuple[str, ...] = ("age_days", "days_after_first", "reviews_before", "reviews_after", "month")


def review_features(reviews: ReviewTable, *, with_age: bool) -> F32:
    """f32[n, F], columns FEATURES, then AGE_FEATURES where `with_age`. Item statistics and ranks are over the table given,
    age counts from its newest review; nothing looks at votes."""
    columns = [*_text_columns(reviews.text), *_title_columns(reviews), *_product_columns(reviews)]
    if with_age:
        columns += _age_columns(reviews)
    return np.stack([np.asarray(column, np.float32) for column in columns], axis=1)


def _text_columns(texts: Sequence[str]) -> list[F64]:
    rows = np.array([_describe(text) for text in texts], np.float64).reshape(len(texts), len(_TEXT))
    return list(rows.T)


def _describe(text: str) -> list[float]:
    """Values of _TEXT."""
    words = _WORD.findall(text)
    counts = [len(pattern.findall(text)) for pattern in _COUNTS.values()]
    letters = sum(len(word) for word in words)
    distinct = len({word.lower() for word in words})
    return [
        np.log1p(len(text)),
        np.log1p(len(words)),
        *np.log1p(counts),
        np.log1p(len(words) / (counts[0] + 1)),
        len(_UPPER.findall(text)) / (len(text) + 1),
        letters / (len(words) + 1),
        distinct / (len(words) + 1),
    ]


def _title_columns(reviews: ReviewTable) -> list[F64]:
    titles = reviews.title
    return [
        np.log1p([len(title) for title in titles]),
        np.log1p([title.count("!") for title in titles]),
        np.array([title.endswith((" Stars", " Star")) for title in titles], np.float64),  # the form's own default
        np.log1p(reviews.images),
    ]


def _product_columns(reviews: ReviewTable) -> list[F64]:
    _, item = np.unique(reviews.item, return_inverse=True)
    stars = reviews.stars.astype(np.float64)
    count = np.bincount(item).astype(np.float64)
    mean = (np.bincount(item, weights=stars) / count)[item] if len(item) else stars
    length = np.array([len(text) for text in reviews.text], np.float64)
    rank = _rank_within(item, length)
    return [
        stars,
        reviews.verified.astype(np.float64),
        np.log1p(count)[item],
        mean,
        stars - mean,
        np.abs(stars - (stars.mean() if len(stars) else 0.0)),
        rank / count[item],
        np.log1p(count[item] - rank),
    ]


def _age_columns(reviews: ReviewTable) -> list[F64]:
    _, item = np.unique(reviews.item, return_inverse=True)
    count = np.bincount(item)
    first = np.full(len(count), np.iinfo(np.int64).max)
    np.minimum.at(first, item, reviews.at)
    rank = _rank_within(item, reviews.at.astype(np.float64))
    newest = reviews.at.max() if len(reviews) else 0
    month = reviews.at.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64) % 12 + 1
    return [
        (newest - reviews.at) / _DAY_US,
        (reviews.at - first[item]) / _DAY_US,
        rank - 1.0,
        count[item] - rank,
        month.astype(np.float64),
    ]


def _rank_within(group: npt.NDArray[np.intp], value: F64) -> F64:
    """1-based rank of each value among its group, equal values sharing their mean rank."""
    order = np.lexsort((value, group))
    g, v = group[order], value[order]
    place = np.arange(len(g), dtype=np.float64)
    starts = np.flatnonzero(np.concatenate([[True], g[1:] != g[:-1]])) if len(g) else np.empty(0, np.int64)
    place -= np.repeat(starts, np.diff(np.append(starts, len(g))))
    runs = np.flatnonzero(np.concatenate([[True], (g[1:] != g[:-1]) | (v[1:] != v[:-1])])) if len(g) else starts
    sizes = np.diff(np.append(runs, len(g)))
    shared = np.repeat(place[runs] + (sizes - 1) / 2 + 1, sizes) if len(g) else place
    out = np.empty(len(g))
    out[order] = shared
    return out
