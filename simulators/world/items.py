"""The world's items: category, line (a tight group of alternatives), price, appeal, life cycle, availability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.ids import hash_ids
from simulators.world.draws import Draws, logistic
from simulators.world.names import BRANDS, CATEGORIES, MODIFIERS
from simulators.world.population import TASTE_DIMS
from simulators.world.settings import WorldSettings

__all__ = ["ItemPopularity", "Items", "affinity", "build_items", "price_fit"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
LINE_SIZE = 16
_NEVER = np.int32(1 << 30)


@dataclass(frozen=True, slots=True)
class Items:
    """m items as columns, sorted by category, then line, so that both are ranges of rows.

    `vector` f64[m, TASTE_DIMS] is what tastes are matched with; `appeal` is a latent quality; the item sells on days
    [launch_day, sold_out_day) and again from restock_day.
    """

    item_id: list[str]
    item: npt.NDArray[np.uint64]
    title: list[str]
    category: npt.NDArray[np.int16]
    category_start: I64
    line: npt.NDArray[np.int32]
    line_start: I64
    price: F64
    margin: F64
    vector: F64
    appeal: F64
    popularity: F64
    launch_day: npt.NDArray[np.int32]
    half_life_days: F64
    sold_out_day: npt.NDArray[np.int32]
    restock_day: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.item)

    def available(self, day: int) -> npt.NDArray[np.bool_]:
        """bool[m] on a day of the world."""
        sold_out = (self.sold_out_day <= day) & (day < self.restock_day)
        return (self.launch_day <= day) & ~sold_out

    def demand(self, day: int) -> F64:
        """f64[m] interest in each item on a day: popularity, decaying from launch to a floor; 0 where not available."""
        age = np.maximum(day - self.launch_day, 0)
        freshness = 0.3 + 1.2 * np.exp2(-age / self.half_life_days)
        return np.where(self.available(day), self.popularity * freshness, 0.0)


class ItemPopularity:
    """Draws items in proportion to a day's demand, from everything or within a category, by inverse distribution."""

    def __init__(self, items: Items, demand: F64) -> None:
        self._edges = np.concatenate([[0.0], np.cumsum(demand)])
        self._starts = items.category_start

    def anywhere(self, u: F64) -> I64:
        """Item row per uniform."""
        return self._locate(u * self._edges[-1])

    def within(self, category: npt.NDArray[np.int16] | I64, u: F64) -> I64:
        """Item row per (category, uniform); a category with nothing for sale falls back to everything."""
        low, high = self._edges[self._starts[category]], self._edges[self._starts[np.asarray(category) + 1]]
        point = np.where(high > low, low + u * (high - low), u * self._edges[-1])
        return self._locate(point)

    def _locate(self, point: F64) -> I64:
        return np.clip(np.searchsorted(self._edges, point, side="right") - 1, 0, len(self._edges) - 2)


def build_items(settings: WorldSettings, draws: Draws) -> Items:
    """Deterministic in (seed, number of items)."""
    rows = np.arange(settings.items)
    category, category_start = _categories(settings.items)
    line, line_start = _lines(category)
    numbers = np.argsort(draws.uniform("item.number", rows), kind="stable")
    width = max(5, len(str(settings.items)))
    ids = [f"i{number:0{width}d}" for number in numbers]
    appeal = 0.5 * draws.normal("item.appeal", rows)
    price = _prices(draws, rows, category)
    sold_out, restock = _stock(settings, draws, rows)
    # A long tail: Pareto of index 1.2, with better items more popular.
    popularity = draws.uniform("item.popularity", rows) ** (-1 / 1.6) * np.exp(0.6 * appeal)
    return Items(
        item_id=ids,
        item=hash_ids(ids),
        title=_titles(draws, rows, category),
        category=category,
        category_start=category_start,
        line=line,
        line_start=line_start,
        price=price,
        margin=price * (0.12 + 0.2 * draws.uniform("item.margin", rows)),
        vector=_vectors(draws, rows, category, line),
        appeal=appeal,
        popularity=np.minimum(popularity, 200.0),
        launch_day=_launches(settings, draws, rows),
        half_life_days=20.0 + 160.0 * draws.uniform("item.half_life", rows),
        sold_out_day=sold_out,
        restock_day=restock,
    )


def _categories(count: int) -> tuple[npt.NDArray[np.int16], I64]:
    """(category of each row, i64[C + 1] first rows), shares as declared, rounded down, the rest to the first ones."""
    edges = np.cumsum([0.0] + [one.share for one in CATEGORIES])
    starts = np.floor(edges / edges[-1] * count + 1e-9).astype(np.int64)
    starts[-1] = count
    return np.repeat(np.arange(len(CATEGORIES), dtype=np.int16), np.diff(starts)), starts


def _lines(category: npt.NDArray[np.int16]) -> tuple[npt.NDArray[np.int32], I64]:
    """Lines of LINE_SIZE neighbouring items that never cross a category."""
    rows = np.arange(len(category))
    first = np.searchsorted(category, category)
    starts_line = (rows - first) % LINE_SIZE == 0
    line = (np.cumsum(starts_line) - 1).astype(np.int32)
    return line, np.append(np.flatnonzero(starts_line), len(category)).astype(np.int64)


def _vectors(draws: Draws, rows: I64, category: npt.NDArray[np.int16], line: npt.NDArray[np.int32]) -> F64:
    dims = np.arange(TASTE_DIMS)[None, :]
    centre = draws.normal("category.vector", np.arange(len(CATEGORIES))[:, None], dims)
    group = draws.normal("line.vector", np.arange(int(line[-1]) + 1)[:, None], dims)
    own = draws.normal("item.vector", rows[:, None], dims)
    mixed = 0.75 * centre[category] + 0.55 * group[line] + 0.35 * own
    result: F64 = mixed / np.sqrt(TASTE_DIMS)
    return result


def _prices(draws: Draws, rows: I64, category: npt.NDArray[np.int16]) -> F64:
    median = np.array([one.price for one in CATEGORIES])[category]
    return np.round(median * np.exp(0.5 * draws.normal("item.price", rows)), -2) + 900.0


def _launches(settings: WorldSettings, draws: Draws, rows: I64) -> npt.NDArray[np.int32]:
    """A tenth of the items (never the first of all) is launched while the world runs."""
    u = draws.uniform("item.launch", rows)
    late = (draws.uniform("item.late", rows) < 0.1) & (rows > 0)
    day: npt.NDArray[np.int32] = np.where(late, np.floor(u * settings.days), -1 - np.floor(u * 600)).astype(np.int32)
    return day


def _stock(settings: WorldSettings, draws: Draws, rows: I64) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Six in a hundred items sell out at some time of the world (never the first of all), two thirds of them come back."""
    sells_out = (draws.uniform("item.sells_out", rows) < 0.06) & (rows > 0)
    day = np.floor(draws.uniform("item.sold_out", rows) * settings.days).astype(np.int32)
    away = 2 + np.floor(draws.uniform("item.away", rows) * 10).astype(np.int32)
    returns = draws.uniform("item.returns", rows) < 2 / 3
    sold_out = np.where(sells_out, day, _NEVER)
    return sold_out, np.where(sells_out & returns, day + away, _NEVER).astype(np.int32)


def _titles(draws: Draws, rows: I64, category: npt.NDArray[np.int16]) -> list[str]:
    brand = draws.below("item.brand", len(BRANDS), rows)
    modifier = draws.below("item.modifier", len(MODIFIERS), rows)
    nouns = np.array([len(one.nouns) for one in CATEGORIES])[category]
    noun = draws.below("item.noun", nouns, rows)
    return [
        f"{BRANDS[b]} {MODIFIERS[m]} {CATEGORIES[c].nouns[n]}"
        for b, m, c, n in zip(brand, modifier, category, noun, strict=True)
    ]


def affinity(taste: F64, vector: F64) -> F64:
    """Elementwise rows: sum over dimensions of taste * vector, in fixed order. f64[n]."""
    total = taste[..., 0] * vector[..., 0]
    for dim in range(1, taste.shape[-1]):
        total = total + taste[..., dim] * vector[..., dim]
    result: F64 = total
    return result


def price_fit(price_level: F64, price: F64, category: npt.NDArray[np.int16]) -> F64:
    """0 where the item's price (relative to its category) is what the user likes, falling to -1 as they part."""
    median = np.array([one.price for one in CATEGORIES])[category]
    gap = np.log(price / median) - price_level
    return logistic(-np.abs(gap)) * 2.0 - 1.0
