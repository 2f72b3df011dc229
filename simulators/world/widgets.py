"""The rows of the world's gateway page, and how much each kind of user likes each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.ids import hash_ids
from simulators.world.draws import Draws
from simulators.world.population import TASTE_DIMS

__all__ = ["Widgets", "build_widgets"]

_ROWS = (
    ("w-for-you", "당신을 위한 추천", "taste", "", 0.5),
    ("w-best", "지금 인기 있는 상품", "popular", "", 0.4),
    ("w-recent", "최근 본 상품", "recent", "", 0.3),
    ("w-together", "함께 많이 본 상품", "covisited", "", 0.2),
    ("w-new", "신상품", "fresh", "", 0.0),
    ("w-skincare", "Skincare picks", "category", "skincare", -0.2),
    ("w-food", "오늘의 먹거리", "category", "food", -0.2),
    ("w-electronics", "Tech corner", "category", "electronics", -0.3),
)


@dataclass(frozen=True, slots=True)
class Widgets:
    """w widgets as columns; `base` and `vector` (f64[w, TASTE_DIMS]) are latent."""

    widget_id: list[str]
    widget: npt.NDArray[np.uint64]
    title: list[str]
    kind: list[str]
    argument: list[str]
    base: npt.NDArray[np.float64]
    vector: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.widget_id)


def build_widgets(draws: Draws) -> Widgets:
    """Always the same rows; who likes them depends on the seed."""
    ids, titles, kinds, arguments, base = (list(column) for column in zip(*_ROWS, strict=True))
    dims = np.arange(TASTE_DIMS)[None, :]
    vector = draws.normal("widget.vector", np.arange(len(_ROWS))[:, None], dims) / np.sqrt(TASTE_DIMS)
    return Widgets(ids, hash_ids(ids), titles, kinds, arguments, np.array(base), vector)
