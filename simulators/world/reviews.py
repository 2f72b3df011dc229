"""Reviews: a latent quality decides how much a review says and how many readers find it helpful; stars follow the item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import poisson

from simulators.world.draws import Draws
from simulators.world.items import Items
from simulators.world.names import CATEGORIES
from simulators.world.population import Population
from simulators.world.settings import DAY_US, WorldSettings

__all__ = ["Reviews", "build_reviews"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_SHORT = (
    "좋아요",
    "Good!",
    "그냥 그래요",
    "굿굿",
    "빠른 배송 감사합니다",
    "Not bad",
    "재구매 의사 있음",
    "생각보다 별로",
    "만족합니다",
    "ok",
)
_ASPECT_GOOD = (
    "{a}이(가) 정말 만족스럽습니다.",
    "{a} 때문에 샀는데 기대 이상이에요.",
    "The {a} is better than I expected.",
    "전에 쓰던 것보다 {a}이(가) 확실히 낫네요.",
)
_ASPECT_BAD = (
    "다만 {a}은(는) 아쉬워요.",
    "{a}이(가) 설명과 달라서 실망했습니다.",
    "The {a} could be improved.",
    "{a} 부분은 가격에 비해 부족합니다.",
)
_DETAIL = (
    "{n}주 동안 매일 써 보고 남깁니다.",
    "I have used it for {n} weeks.",
    "비교하려고 {n}개를 따로 사 봤어요.",
    "배송은 {n}일 걸렸고 포장은 꼼꼼했습니다.",
    "키 {h}cm 기준으로 참고하세요.",
    "세 번째 재구매인데 {n}월 제품부터 조금 바뀌었네요.",
)


@dataclass(frozen=True, slots=True)
class Reviews:
    """r reviews as columns; `quality` is latent."""

    review_id: list[str]
    item: npt.NDArray[np.int32]
    user: npt.NDArray[np.int32]
    at: I64
    stars: npt.NDArray[np.float32]
    text: list[str]
    helpful_votes: npt.NDArray[np.int32]
    verified: npt.NDArray[np.bool_]
    quality: F64

    def __len__(self) -> int:
        return len(self.review_id)


def build_reviews(settings: WorldSettings, population: Population, items: Items, draws: Draws) -> Reviews:
    """Reviews written before the world begins, by item popularity."""
    count = int(settings.reviews_per_item * len(items))
    rows = np.arange(count)
    edges = np.cumsum(np.where(items.launch_day < 0, np.sqrt(items.popularity), 0.0))
    if count and edges[-1] > 0:
        item = np.searchsorted(edges, draws.uniform("review.item", rows) * edges[-1]).astype(np.int32)
    else:
        rows, item = rows[:0], np.zeros(0, np.int32)
    quality = draws.normal("review.quality", rows)
    age = np.ceil(-items.launch_day[item] * draws.uniform("review.age", rows)).clip(1)
    stars = _stars(draws, rows, items.appeal[item])
    votes = _votes(draws, rows, quality, age)
    return Reviews(
        review_id=[f"r{row:07d}" for row in rows],
        item=item,
        user=draws.below("review.user", len(population), rows).astype(np.int32),
        at=settings.start_us - (age * DAY_US).astype(np.int64),
        stars=stars,
        text=_texts(draws, rows, items.category[item], quality, stars),
        helpful_votes=votes,
        verified=draws.uniform("review.verified", rows) < 0.8 + 0.05 * np.clip(quality, -2, 2),
        quality=quality,
    )


def _stars(draws: Draws, rows: I64, appeal: F64) -> npt.NDArray[np.float32]:
    level = 4.2 + 0.8 * appeal + 1.1 * draws.normal("review.stars", rows)
    return np.clip(np.round(level), 1, 5).astype(np.float32)


def _votes(draws: Draws, rows: I64, quality: F64, age_days: F64) -> npt.NDArray[np.int32]:
    """Poisson by inversion; the rate grows with quality and, slower and slower, with age."""
    rate = np.exp(-1.6 + 1.0 * quality + 0.35 * np.log1p(age_days / 30))
    return poisson.ppf(draws.uniform("review.votes", rows), rate).astype(np.int32)


def _texts(
    draws: Draws, rows: I64, category: npt.NDArray[np.int16], quality: F64, stars: npt.NDArray[np.float32]
) -> list[str]:
    """The better the review, the more aspects and details; poor ones are a word or two."""
    wanted = np.clip(np.round(1.4 + 1.5 * quality + 0.7 * draws.normal("review.length", rows)), 0, 7).astype(int)
    picks = draws.bits("review.words", rows[:, None], np.arange(8)[None, :])
    return [
        _SHORT[int(bits[0]) % len(_SHORT)] if n == 0 else _long_text(n, CATEGORIES[c].aspects, float(s), bits)
        for n, c, s, bits in zip(wanted, category, stars, picks, strict=True)
    ]


def _long_text(sentences: int, aspects: tuple[str, ...], stars: float, bits: npt.NDArray[np.uint64]) -> str:
    parts = []
    for position in range(sentences):
        word = int(bits[position])
        if position % 2 == 0:
            praise = (word >> 8) % 5 < stars - 0.5
            pattern = _ASPECT_GOOD if praise else _ASPECT_BAD
            parts.append(pattern[(word >> 16) % len(pattern)].format(a=aspects[(position // 2) % len(aspects)]))
        else:
            parts.append(_DETAIL[(word >> 16) % len(_DETAIL)].format(n=2 + word % 9, h=152 + (word >> 4) % 34))
    return " ".join(parts)
