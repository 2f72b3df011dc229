"""Reviews as columns, whatever they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.errors import InvalidInput
from serve_app.ids import hash_ids

__all__ = ["ReviewTable"]


@dataclass(frozen=True, slots=True)
class ReviewTable:
    """n reviews. item, user u64[n]: hashes; at i64[n]: when written, microseconds UTC; stars f32[n]: 1..5; verified bool[n];
    text: n strings; votes i32[n]: helpful votes, -1 where never counted; title: n strings and images i32[n], where the
    source has them."""

    item: npt.NDArray[np.uint64]
    user: npt.NDArray[np.uint64]
    at: npt.NDArray[np.int64]
    stars: npt.NDArray[np.float32]
    verified: npt.NDArray[np.bool_]
    text: Sequence[str]
    votes: npt.NDArray[np.int32]
    title: Sequence[str]
    images: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        for one in fields(self):
            if len(getattr(self, one.name)) != len(self.text):
                raise InvalidInput(f"has {len(getattr(self, one.name))} rows, text has {len(self.text)}", field=one.name)

    def __len__(self) -> int:
        return len(self.text)

    @classmethod
    def from_catalogue(cls, reviews: pa.Table) -> ReviewTable:
        """From the catalogue's `reviews` table (serve_app.catalogue)."""
        n = len(reviews)
        votes = reviews["helpful_votes"].fill_null(-1)
        return cls(
            hash_ids(reviews["item_id"].to_pylist()),
            hash_ids(reviews["user_id"].to_pylist()),
            np.asarray(reviews["at"].to_numpy(), np.int64),
            np.asarray(reviews["stars"].to_numpy(), np.float32),
            np.asarray(reviews["verified"].to_numpy(zero_copy_only=False), np.bool_),
            reviews["text"].to_pylist(),
            np.asarray(votes.to_numpy(), np.int32),
            [""] * n,
            np.zeros(n, np.int32),
        )

    def take(self, rows: npt.ArrayLike) -> ReviewTable:
        """The given rows, in that order."""
        at = np.asarray(rows, np.int64)
        text, title = ([values[i] for i in at.tolist()] for values in (self.text, self.title))
        return ReviewTable(
            self.item[at], self.user[at], self.at[at], self.stars[at], self.verified[at], text, self.votes[at], title,
            self.images[at],
        )  # fmt: skip

    def distinct_texts(self) -> npt.NDArray[np.int64]:
        """Rows of the first appearance of each text. (Shops show one text under several products: copies on both sides of
        a fold would let a model recognise what it has learned by heart.)"""
        first: dict[str, int] = {}
        for row, text in enumerate(self.text):
            first.setdefault(text, row)
        return np.fromiter(first.values(), np.int64, len(first))
