"""Popularity lists by region and category, with back-off: (region, category) -> (all regions, category) -> all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Popular", "build_popular"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Popular:
    """Lists stand at offsets[k]:offsets[k + 1] with ``k = (region + 1) * (categories + 1) + category + 1``; index -1 (any
    region, any category) is list row or column 0. `items` i32, `scores` f32, best first; score 1 is the list's best."""

    offsets: I64
    items: I32
    scores: F32
    regions: int
    categories: int

    def list_of(self, region: int, category: int) -> int:
        """Index of the most specific list that is not empty."""
        for r, c in ((region, category), (-1, category), (region, -1)):
            k = (r + 1) * (self.categories + 1) + c + 1
            if self.offsets[k + 1] > self.offsets[k] and (category < 0 or c >= 0):
                return k
        return 0


def build_popular(
    items: I32, weight: F32, region: I32, item_category: I32, *, regions: int, categories: int, length: int
) -> Popular:
    """One row per interaction: item, its (recency-decayed) weight, region index of its user (-1: unknown). Every list holds
    at most `length` items with weight; the overall list is filled up with never-seen items in row order, so that it is
    never shorter than the catalogue allows."""
    count = len(item_category)
    lists: list[tuple[int, I32, F32]] = []
    for r in range(-1, regions):
        rows = np.ones(len(items), np.bool_) if r < 0 else region == r
        total = np.bincount(items[rows], weights=weight[rows], minlength=count)
        order = np.lexsort((np.arange(count), -total))
        for c in range(-1, categories):
            chosen = order if c < 0 else order[item_category[order] == c]
            everything = r < 0 and c < 0
            best = chosen[:length] if everything else chosen[total[chosen] > 0][:length]
            peak = total[best[0]] if len(best) and total[best[0]] > 0 else 1.0
            lists.append(
                ((r + 1) * (categories + 1) + c + 1, best.astype(np.int32), (total[best] / peak).astype(np.float32))
            )
    lists.sort(key=lambda entry: entry[0])
    offsets = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(entry[1]) for entry in lists], out=offsets[1:])
    return Popular(
        offsets, np.concatenate([e[1] for e in lists]), np.concatenate([e[2] for e in lists]), regions, categories
    )
