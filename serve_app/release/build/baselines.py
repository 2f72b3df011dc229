"""What the release's lists are measured against: the overall best-sellers, and plain co-occurrence in sessions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse

from serve_app.batch import Batch, Ragged
from serve_app.release.build.interactions import Sessions

__all__ = ["CoOccurrence", "last_items", "popularity_lists"]

I32 = npt.NDArray[np.int32]


def popularity_lists(sessions: Sessions, items: int, excluded: Ragged, length: int, recent: float = 1.0) -> I32:
    """i32[n, length]: items in most sessions (of the last `recent` share of them), without each request's excluded ones."""
    begin = sessions.offsets[int((1 - recent) * len(sessions))]
    best = np.argsort(-np.bincount(sessions.items[begin:], minlength=items), kind="stable")
    most = int(excluded.lengths.max(initial=0)) + length
    out = np.full((len(excluded), length), -1, np.int32)
    for row, own in enumerate(excluded):
        head = best[:most]
        kept = head[~np.isin(head, own)][:length]
        out[row, : len(kept)] = kept
    return out


class CoOccurrence:
    """How many sessions hold both of two items."""

    def __init__(self, sessions: Sessions, items: int) -> None:
        ones = np.ones(len(sessions.items), np.float32)
        held = scipy.sparse.csr_matrix((ones, sessions.items, sessions.offsets), shape=(len(sessions), items))
        held.sum_duplicates()
        held.data[:] = 1.0
        both = (held.T @ held).tocsr()
        both.setdiag(0)
        both.eliminate_zeros()
        self._counts = both
        self._items = items

    def lists(self, seeds: Ragged, excluded: Ragged, length: int) -> I32:
        """i32[n, length]: items that stand most often beside the seed items (i32 lists), counts added up."""
        out = np.full((len(seeds), length), -1, np.int32)
        owner = np.repeat(np.arange(len(seeds)), seeds.lengths)
        ones = np.ones(len(owner), np.float32)
        asked = scipy.sparse.csr_matrix((ones, (owner, seeds.values)), shape=(len(seeds), self._items))
        total = (asked @ self._counts).tocsr()
        for row, own in enumerate(excluded):
            found = slice(total.indptr[row], total.indptr[row + 1])
            items, score = total.indices[found], total.data[found]
            free = ~np.isin(items, own)
            items, score = items[free], score[free]
            best = items[np.lexsort((items, -score))[:length]]
            out[row, : len(best)] = best
        return out


def last_items(batch: Batch, count: int) -> Ragged:
    """The newest `count` recents of each request."""
    recents: Ragged = batch.requests["recents"]
    begin = np.maximum(recents.offsets[1:] - count, recents.offsets[:-1])
    place = np.arange(len(recents.values))
    keep = place >= np.repeat(begin, recents.lengths)
    counts = np.r_[0, np.cumsum(recents.offsets[1:] - begin)]
    return Ragged(recents.values[keep], counts.astype(np.int64))
