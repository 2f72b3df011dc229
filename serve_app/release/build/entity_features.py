"""Features of items and users as of any time: one function each, for training examples and for the release's tables alike.

All are computed from timelines of what had been *received* before the asked time, so training on them leaks nothing. Counts
are 0 where nothing happened; ratios, ages and means are NaN (missing) where they say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.release.build.interactions import Interactions
from serve_app.release.build.timeline import DAY_US, NEVER, Timeline
from serve_app.stages.features.tables import Entity, FeatureSpec, FeatureTable
from serve_app.vocabulary import EventType

__all__ = ["ITEM_SPECS", "USER_SPECS", "EntityTimelines"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]

_WINDOWS: dict[str, int | None] = {"1d": DAY_US, "7d": 7 * DAY_US, "30d": 30 * DAY_US, "all": None}
_MAX_AGE_S = 14 * 86_400.0
_KINDS = {
    "views": EventType.view,
    "clicks": EventType.click,
    "carts": EventType.add_to_cart,
    "buys": EventType.conversion,
    "seen": EventType.seen,
}


def _specs(entity: Entity, counts: tuple[str, ...], others: tuple[str, ...]) -> tuple[FeatureSpec, ...]:
    writer = "hindcast build: entity_features"
    return tuple(
        FeatureSpec(f"{entity}_{name}", entity, "f4", 0.0 if name in counts else None, _MAX_AGE_S, writer)
        for name in (*counts, *others)
    )


_ITEM_COUNTS = (
    "views_1d", "views_7d", "views_30d", "clicks_7d", "clicks_30d", "carts_7d", "carts_30d",
    "buys_1d", "buys_7d", "buys_30d", "buys_all", "pieces_30d", "seen_7d",
)  # fmt: skip
_ITEM_OTHERS = (
    "click_rate",
    "buy_rate",
    "trend",
    "paid_mean",
    "pieces_mean",
    "days_since_buy",
    "days_since_event",
    "age_days",
)
_USER_COUNTS = (
    "views_1d", "views_7d", "views_30d", "clicks_7d", "clicks_30d", "carts_7d", "carts_30d",
    "buys_1d", "buys_7d", "buys_30d", "buys_all", "spend_30d", "delivered_7d", "delivered_30d",
)  # fmt: skip
_USER_OTHERS = ("message_click_rate", "paid_mean", "pieces_mean", "days_since_buy", "days_since_event", "age_days")

ITEM_SPECS = _specs(Entity.item, _ITEM_COUNTS, _ITEM_OTHERS)
USER_SPECS = _specs(Entity.user, _USER_COUNTS, _USER_OTHERS)


def _ratio(top: npt.NDArray[np.number], bottom: npt.NDArray[np.number]) -> F64:
    """NaN where there is nothing to divide by."""
    safe = np.where(bottom > 0, bottom, 1)
    return np.where(bottom > 0, top / safe, np.nan)


def _days_since(then: I64, now: I64) -> F64:
    known = then != NEVER
    return np.where(known, (now - np.where(known, then, now)) / DAY_US, np.nan)


@dataclass(frozen=True, slots=True)
class EntityTimelines:
    """Everything items and users did, ready to be asked as of any time."""

    item: Timeline
    item_buys: Timeline
    user: Timeline
    user_buys: Timeline
    user_messages: Timeline

    @classmethod
    def build(cls, log: Interactions, items: int, users: int) -> EntityTimelines:
        """From interactions over `items` item rows and `users` user rows."""
        bought = log.kind == EventType.conversion
        message = (log.campaign != 0) & np.isin(log.kind, (EventType.delivered, EventType.click))

        def timeline(rows: npt.NDArray[np.bool_], entity: I32, count: int) -> Timeline:
            keep = np.flatnonzero(rows & (entity >= 0))
            kind, buys = log.kind[keep], bought[keep]
            measures = {name: kind == one for name, one in _KINDS.items()}
            measures["delivered"] = kind == EventType.delivered
            sums = {"pieces": np.where(buys, log.pieces[keep], 0), "minor": np.where(buys, log.minor[keep], 0)}
            return Timeline.build(entity[keep], log.known_at[keep], {**measures, **sums}, count)

        everything = np.ones(len(log), np.bool_)
        return cls(
            item=timeline(everything, log.item, items),
            item_buys=timeline(bought, log.item, items),
            user=timeline(everything & ~message, log.user, users),
            user_buys=timeline(bought, log.user, users),
            user_messages=timeline(message, log.user, users),
        )

    def items(self, rows: I32, when: I64) -> F32:
        """f32[q, len(ITEM_SPECS)]: item `rows` i32[q] as of `when` i64[q]."""
        sums = self.item.sums(rows, when, _WINDOWS)
        out = _counts(ITEM_SPECS, Entity.item, sums)
        active = {label: one["views"] + one["clicks"] + one["buys"] for label, one in sums.items()}
        month, ever = sums["30d"], sums["all"]
        others = {
            "click_rate": _ratio(month["clicks"], month["seen"]),
            "buy_rate": _ratio(month["buys"], month["views"] + month["clicks"]),
            "trend": _ratio(active["7d"] * (30 / 7), active["30d"]),
            **_purchases(ever),
            "days_since_buy": _days_since(self.item_buys.last(rows, when), when),
            "days_since_event": _days_since(self.item.last(rows, when), when),
            "age_days": _days_since(self.item.first(rows, when), when),
        }
        return _fill(out, ITEM_SPECS, Entity.item, others)

    def users(self, rows: I32, when: I64) -> F32:
        """f32[q, len(USER_SPECS)]: user `rows` i32[q] as of `when` i64[q]; all NaN for row -1."""
        known = rows >= 0
        if not known.all():
            out = np.full((len(rows), len(USER_SPECS)), np.nan, np.float32)
            if known.any():
                out[known] = self.users(rows[known], when[known])
            return out
        sums = self.user.sums(rows, when, _WINDOWS)
        messages = self.user_messages.sums(rows, when, _WINDOWS)
        for label in sums:
            sums[label]["delivered"] = messages[label]["delivered"]
            sums[label]["spend"] = sums[label]["minor"]
        out = _counts(USER_SPECS, Entity.user, sums)
        others = {
            "message_click_rate": _ratio(messages["30d"]["clicks"], messages["30d"]["delivered"]),
            **_purchases(sums["all"]),
            "days_since_buy": _days_since(self.user_buys.last(rows, when), when),
            "days_since_event": _days_since(self.user.last(rows, when), when),
            "age_days": _days_since(self.user.first(rows, when), when),
        }
        return _fill(out, USER_SPECS, Entity.user, others)

    def tables(self, item_hashes: U64, user_hashes: U64, when: int) -> list[FeatureTable]:
        """The feature tables of a release: every item and user as of `when`."""
        items, users = len(item_hashes), len(user_hashes)
        item_values = self.items(np.arange(items, dtype=np.int32), np.full(items, when, np.int64))
        user_values = self.users(np.arange(users, dtype=np.int32), np.full(users, when, np.int64))
        return [
            FeatureTable(Entity.item, ITEM_SPECS, item_hashes, item_values, np.full(items, when, np.int64)),
            FeatureTable(Entity.user, USER_SPECS, user_hashes, user_values, np.full(users, when, np.int64)),
        ]


def _purchases(ever: dict[str, I64]) -> dict[str, F64]:
    return {"paid_mean": _ratio(ever["minor"] / 100, ever["pieces"]), "pieces_mean": _ratio(ever["pieces"], ever["buys"])}


def _counts(specs: tuple[FeatureSpec, ...], entity: Entity, sums: dict[str, dict[str, I64]]) -> F32:
    rows = len(sums["all"]["views"])
    out = np.full((rows, len(specs)), np.nan, np.float32)
    for column, spec in enumerate(specs):
        measure, _, window = spec.name.removeprefix(f"{entity}_").rpartition("_")
        if window in _WINDOWS and measure in sums[window]:
            scale = 0.01 if measure == "spend" else 1.0
            out[:, column] = sums[window][measure] * scale
    return out


def _fill(out: F32, specs: tuple[FeatureSpec, ...], entity: Entity, values: dict[str, F64]) -> F32:
    names = [spec.name for spec in specs]
    for name, column in values.items():
        out[:, names.index(f"{entity}_{name}")] = column
    return out
