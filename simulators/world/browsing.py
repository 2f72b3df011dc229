"""A day of browsing: who opens the app and when, what they look at by themselves, which items a slate may show them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.vocabulary import Source
from simulators.world.draws import Draws, row_pick
from simulators.world.items import ItemPopularity, Items, affinity
from simulators.world.names import CATEGORIES
from simulators.world.places import LocalClock
from simulators.world.population import Population
from simulators.world.settings import DAY_US, MINUTE_US, WorldSettings
from simulators.world.state import WorldState

__all__ = [
    "Sessions",
    "Views",
    "category_taste",
    "gateway_candidates",
    "open_sessions",
    "organic_views",
    "related_candidates",
]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]

_FOCUS_SHARE = 0.55  # views that stay within the session's line of alternatives
_BOT_VIEWS = 40


@dataclass(frozen=True, slots=True)
class Sessions:
    """One session per active user: row number, start, id; `views` is how many items they look at by themselves."""

    user: I64
    at: I64
    session: U64
    views: I64

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True, slots=True)
class Views:
    """Items looked at: `owner` indexes the sessions, `position` counts within one."""

    owner: I64
    position: I32
    item: I32
    at: I64


def category_taste(population: Population, items: Items) -> F64:
    """f64[n, C]: unnormalised interest of each user in each category, from taste and the category's size."""
    out = np.empty((len(population), len(CATEGORIES)))
    for kind, words in enumerate(CATEGORIES):
        members = items.vector[items.category_start[kind] : items.category_start[kind + 1]]
        centre = members.mean(axis=0) if len(members) else np.zeros(items.vector.shape[1])
        out[:, kind] = words.share * np.exp(1.2 * affinity(population.taste, centre[None, :])) if len(members) else 0.0
    return out


def open_sessions(
    settings: WorldSettings,
    draws: Draws,
    population: Population,
    clock: LocalClock,
    state: WorldState,
    day: int,
    p_active: F64,
) -> Sessions:
    """Active users of a day (bots always), at about their own hour. Who joins today opens the app then and there."""
    start = settings.start_us + day * DAY_US
    active = (draws.uniform("day.active", population.user, day) < p_active) | population.bot
    today = population.joined_day == day
    rows = np.flatnonzero((active & (population.joined_day < day)) | today)
    who = population.user[rows]
    hour = np.mod(population.hour[rows] + 1.5 * draws.normal("session.hour", who, day), 24.0)
    at = clock.at_local_hour(state.place[rows], start, hour)
    at = np.where(today[rows], population.joined_at[rows] + MINUTE_US, at)
    views = 1 + np.floor(draws.exponential("session.views", who, day) * 1.2).astype(np.int64).clip(0, 7)
    views = np.where(population.bot[rows], _BOT_VIEWS, views)
    return Sessions(rows, at, draws.bits("session.id", who, day), views)


def organic_views(
    draws: Draws, population: Population, items: Items, popular: ItemPopularity, taste: F64, sessions: Sessions, day: int
) -> Views:
    """Views found by search and category pages. A session has a focus, a line of alternatives it keeps coming back to; the
    rest follow the user's categories. Of two finds the better liked one is opened."""
    owner = np.repeat(np.arange(len(sessions)), sessions.views)
    position = (np.arange(len(owner)) - np.repeat(np.cumsum(sessions.views) - sessions.views, sessions.views)).astype(
        np.int32
    )
    who = population.user[sessions.user]
    kind = row_pick(taste[sessions.user], draws.uniform("focus.category", who, day))
    focus = popular.within(kind, draws.uniform("focus.item", who, day))
    first = _find(draws, population, items, popular, taste, sessions, focus, owner, position, day, 0)
    second = _find(draws, population, items, popular, taste, sessions, focus, owner, position, day, 1)
    liking = population.taste[sessions.user[owner]]
    better = affinity(liking, items.vector[second]) > affinity(liking, items.vector[first])
    item = np.where(better & (position > 0), second, first).astype(np.int32)
    open_now = items.available(day)[item]
    at = sessions.at[owner] + MINUTE_US + position.astype(np.int64) * (40 * 1_000_000)
    return Views(owner[open_now], position[open_now], item[open_now], at[open_now])


def _find(
    draws: Draws,
    population: Population,
    items: Items,
    popular: ItemPopularity,
    taste: F64,
    sessions: Sessions,
    focus: I64,
    owner: I64,
    position: I32,
    day: int,
    attempt: int,
) -> I64:
    who = population.user[sessions.user[owner]]
    key = (who, day, position, attempt)
    focused = (draws.uniform("view.focused", *key) < _FOCUS_SHARE) | (position == 0)
    line = items.line[focus[owner]]
    begin, end = items.line_start[line], items.line_start[line + 1]
    alternative = begin + draws.below("view.line", end - begin, *key)
    alternative = np.where(position == 0, focus[owner], alternative)
    kind = row_pick(taste[sessions.user[owner]], draws.uniform("view.category", *key))
    other = popular.within(kind, draws.uniform("view.item", *key))
    return np.where(focused, alternative, other)


def gateway_candidates(
    draws: Draws,
    population: Population,
    items: Items,
    popular: ItemPopularity,
    taste: F64,
    state: WorldState,
    user: I64,
    day: int,
    width: int,
) -> tuple[I32, npt.NDArray[np.uint32], I64]:
    """(items, sources, offsets): popular everywhere, popular in the user's categories, alternatives to recent items."""
    who = population.user[user][:, None]
    columns = np.arange(width)[None, :]
    u = draws.uniform("gateway.pick", who, day, columns)
    share = width // 3
    everywhere = popular.anywhere(u[:, :share])
    kinds = np.stack([row_pick(taste[user], draws.uniform("gateway.kind", who[:, 0], day, c)) for c in range(share)], axis=1)
    liked = popular.within(kinds, u[:, share : 2 * share])
    rest = width - 2 * share
    seed = state.recents[user][:, ::-1][:, np.arange(rest) % state.recents.shape[1]].astype(np.int64)
    fallback = popular.anywhere(u[:, 2 * share :])
    near = _alternatives(items, np.where(seed >= 0, seed, fallback), u[:, 2 * share :])
    sources = [Source.popular] * share + [Source.taste] * share + [Source.covisited] * rest
    return _distinct(np.concatenate([everywhere, liked, near], axis=1), sources, items.available(day))


def related_candidates(
    draws: Draws, population: Population, items: Items, popular: ItemPopularity, user: I64, anchor: I32, day: int, width: int
) -> tuple[I32, npt.NDArray[np.uint32], I64]:
    """(items, sources, offsets) for `anchor`: its line, its category, what is popular; never the anchor itself."""
    who = population.user[user][:, None]
    u = draws.uniform("related.pick", who, day, np.arange(width)[None, :])
    half, rest = width // 2, width - width // 2 - width // 4
    line = items.line[anchor]
    begin, end = items.line_start[line][:, None], items.line_start[line + 1][:, None]
    near = begin + np.arange(half)[None, :] % (end - begin)
    kind = items.category[anchor][:, None]
    same = popular.within(np.broadcast_to(kind, (len(user), width // 4)), u[:, half : half + width // 4])
    everywhere = popular.anywhere(u[:, width - rest :])
    sources = [Source.similar] * half + [Source.covisited] * (width // 4) + [Source.popular] * rest
    matrix = np.concatenate([near, same, everywhere], axis=1)
    return _distinct(np.where(matrix == anchor[:, None], -1, matrix), sources, items.available(day))


def _alternatives(items: Items, seed: I64, u: F64) -> I64:
    line = items.line[seed]
    begin, end = items.line_start[line], items.line_start[line + 1]
    return begin + np.minimum((u * (end - begin)).astype(np.int64), end - begin - 1)


def _distinct(
    matrix: I64, sources: list[Source], available: npt.NDArray[np.bool_]
) -> tuple[I32, npt.NDArray[np.uint32], I64]:
    """Ragged candidates from f64[n, width] item rows: sorted by item, each once (with its first source), for sale only."""
    names = sorted({int(one) for one in sources})
    code = np.array([names.index(int(one)) for one in sources])
    keyed = np.sort(matrix * 8 + code[None, :], axis=1)
    item = keyed >> 3
    keep = (item >= 0) & available[np.maximum(item, 0)]
    keep[:, 1:] &= item[:, 1:] != item[:, :-1]
    offsets = np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int64)
    return item[keep].astype(np.int32), np.array(names, np.uint32)[keyed[keep] & 7], offsets
