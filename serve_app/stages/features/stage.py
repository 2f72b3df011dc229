"""The `Features` stage: one gather per entity kind fills the feature matrix of a whole batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Ragged
from serve_app.errors import InvalidInput
from serve_app.stages.extend import extended
from serve_app.stages.features.computed import (
    REQUEST_FEATURES,
    USER_ITEM_FEATURES,
    request_features,
    source_features,
    user_item,
)
from serve_app.stages.features.gather import gather, settle
from serve_app.stages.features.plan import FeaturePlan
from serve_app.stages.features.tables import TABLE_ENTITIES, Entity, FeatureSpec, FeatureTable
from serve_app.stages.stage import Context
from serve_app.vocabulary import FeatureStatus, Surface

__all__ = ["Features", "ItemFacts", "status_counts"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_RETRIEVAL = {"retrieval_score": -1, "source_count": -2}
_READ_OF_REQUESTS = (
    "surface", "decided_at", "user_row", "region", "anchor", "recents", "recents_age_s", "bought", "context_hour",
    "context_device", "cold",
)  # fmt: skip
_READ_OF_CANDIDATES = ("item", "widget", "review", "campaign", "source_scores", "retrieval_score", "sources")


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """What is known of each item row, side rows of newly upserted items included: category i32[items] (index, -1: none),
    price f32[items] (0 or NaN: unknown). The shell may give a newer one as `context.parts["item_facts"]`."""

    category: I32
    price: F32

    def __post_init__(self) -> None:
        if self.category.dtype != np.int32 or self.price.dtype != np.float32 or len(self.category) != len(self.price):
            raise InvalidInput("category must be i32 and price f32, of one length", field="item_facts")


class _SourceColumns:
    """Where retrieval's columns come from and go to. The names retrieval gives are those of the release, hence looked up
    once for each tuple of names met."""

    def __init__(self, names: tuple[str, ...], columns: I32) -> None:
        self.names, self.columns = names, columns
        self._known: dict[tuple[str, ...], I32] = {}

    def places(self, held: tuple[str, ...]) -> I32:
        """Column of `source_scores` for each name; `_RETRIEVAL` for retrieval's own."""
        at = self._known.get(held)
        if at is None:
            at = self._known[held] = np.array([self._place(name, held) for name in self.names], np.int32)
        return at

    @staticmethod
    def _place(name: str, held: tuple[str, ...]) -> int:
        if name in _RETRIEVAL:
            return _RETRIEVAL[name]
        source = name.removeprefix("source_")
        if source not in held:
            raise InvalidInput("retrieval gave no such source", field=name, hint=f"it gave {', '.join(held) or 'none'}")
        return held.index(source)


@dataclass(frozen=True, slots=True)
class _Bound:
    """A plan with its columns resolved against the tables."""

    plan: FeaturePlan
    names: tuple[str, ...]
    defaults: F32
    max_age_us: I64
    tables: tuple[tuple[FeatureTable, I32, I32], ...]  # table, its columns, matrix columns
    user_item: I32 | None  # None: none wanted
    request: I32 | None
    sources: _SourceColumns | None
    computed: I32
    position: I32


class Features:
    """Reads what each surface's models want.

    plans: one plan per surface (surfaces may share one). tables: at most one per entity kind; user and item rows of the
    batch index the tables of those kinds, review and widget rows theirs, campaigns are found by key. facts: categories and
    prices for the computed features. InvalidInput names a planned feature that its table does not hold.
    """

    name = "features"

    def __init__(self, plans: Mapping[Surface, FeaturePlan], tables: Sequence[FeatureTable], facts: ItemFacts) -> None:
        by_entity = {table.entity: table for table in tables}
        if len(by_entity) != len(tables):
            raise InvalidInput("two tables of one entity kind", field="tables")
        self._facts = facts
        self._bound: dict[int, _Bound] = {surface: _bind(plan, by_entity) for surface, plan in plans.items()}
        campaigns = by_entity.get(Entity.campaign)
        self._campaign_order = np.argsort(campaigns.keys, kind="stable") if campaigns is not None else np.empty(0, np.int64)

    def plan(self, surface: Surface) -> FeaturePlan:
        """The plan of one surface."""
        return self._bound_of(surface).plan

    @staticmethod
    def read_of(batch: Batch, *others: str) -> Batch:
        """The batch with only what features are read from, and `others` of its requests' columns: what has to travel."""
        requests = [name for name in (*_READ_OF_REQUESTS, *others) if name in batch.requests]
        candidates = [name for name in _READ_OF_CANDIDATES if name in batch.candidates]
        return Batch(batch.requests.only(requests), batch.candidates.only(candidates), batch.offsets, batch.meta)

    def run(self, batch: Batch, context: Context, rows: Mapping[Entity, I32] | None = None) -> Batch:
        """Set `features` f32[m, F] and `feature_status` u8[m, F]; meta['features'] names the columns.

        All requests must share one plan. rows: table rows per candidate (i32[m]) by entity, in place of the batch's own:
        training reads values as of each example from tables that hold one row per example.
        """
        bound = self._bound_for(batch)
        count = batch.candidates.rows
        out = np.empty((count, len(bound.names)), np.float32)
        status = np.empty((count, len(bound.names)), np.uint8)
        now = np.repeat(batch.requests["decided_at"], np.diff(batch.offsets))
        for table, from_columns, columns in bound.tables:
            at = rows[table.entity] if rows and table.entity in rows else self._rows_of(table, batch)
            gather(table.values, table.as_of, at, from_columns, columns, now, bound.max_age_us, bound.defaults, out, status)
        facts = context.parts.get("item_facts", self._facts)
        _compute(bound, batch, facts, out)
        if len(bound.position):
            out[:, bound.position] = np.nan  # settles as the declared constant
        settle(bound.computed, bound.defaults, out, status)
        return extended(batch, {"features": bound.names}, features=out, feature_status=status)

    def _bound_of(self, surface: int) -> _Bound:
        if surface not in self._bound:
            raise InvalidInput("no model serves this surface", field=f"surface {Surface(surface).name}")
        return self._bound[surface]

    def _bound_for(self, batch: Batch) -> _Bound:
        bounds = [self._bound_of(surface) for surface in dict.fromkeys(batch.requests["surface"].tolist())]
        if any(one.plan != bounds[0].plan for one in bounds[1:]):
            raise InvalidInput("requests with different feature plans in one batch", field="surface", hint="split it")
        return bounds[0] if bounds else next(iter(self._bound.values()))

    def _rows_of(self, table: FeatureTable, batch: Batch) -> I32:
        if table.entity == Entity.user:
            users: I32 = np.repeat(batch.requests["user_row"], np.diff(batch.offsets))
            return users
        if table.entity == Entity.campaign:
            wanted = batch.candidates["campaign"]
            at = np.searchsorted(table.keys, wanted, sorter=self._campaign_order).clip(0, max(len(table) - 1, 0))
            if len(table) == 0:
                return np.full(len(wanted), -1, np.int32)
            found = self._campaign_order[at]
            return np.where(table.keys[found] == wanted, found, -1).astype(np.int32)
        items: I32 = _dense(batch.candidates[table.entity.value])
        return items


def status_counts(batch: Batch) -> dict[str, dict[str, int]]:
    """How many values of each feature were present, stale, missing, defaulted (for metrics)."""
    status: U8 = batch.candidates["feature_status"]
    names: Sequence[str] = batch.meta["features"]
    return {
        name: dict(zip((s.name for s in FeatureStatus), np.bincount(status[:, i], minlength=4).tolist(), strict=True))
        for i, name in enumerate(names)
    }


def _bind(plan: FeaturePlan, tables: Mapping[Entity, FeatureTable]) -> _Bound:
    gathers: list[tuple[FeatureTable, I32, I32]] = []
    for entity in plan.entities():
        if entity not in TABLE_ENTITIES:
            continue
        columns = plan.columns(entity)
        table = tables.get(entity)
        held = table.names if table is not None else ()
        for column in columns:
            if plan.names[column] not in held:
                raise InvalidInput(f"no {entity} table holds this feature", field=plan.names[column])
        if table is not None:
            at = np.array([held.index(plan.names[column]) for column in columns], np.int32)
            gathers.append((table, at, columns))
    sources = plan.columns(Entity.source)
    return _Bound(
        plan,
        plan.names,
        plan.defaults(),
        plan.max_age_us(),
        tuple(gathers),
        _places(plan, USER_ITEM_FEATURES),
        _places(plan, REQUEST_FEATURES),
        _SourceColumns(tuple(plan.names[column] for column in sources), sources) if len(sources) else None,
        np.concatenate([plan.columns(e) for e in Entity if e not in TABLE_ENTITIES]),
        plan.columns(Entity.position),
    )


def _places(plan: FeaturePlan, features: Sequence[FeatureSpec]) -> I32 | None:
    """Column of each computed feature, -1 where it is not wanted; None where none is."""
    at = np.array([plan.names.index(one.name) if one.name in plan.names else -1 for one in features], np.int32)
    return at if (at >= 0).any() else None


def _dense(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Contiguous and writable, as the kernels were compiled for; columns that came over the wire may be neither."""
    return array if array.flags.carray else np.require(array, requirements=["C", "W"])


def _column(batch: Batch, name: str, dtype: str, fill: int) -> npt.NDArray[Any]:
    if name in batch.requests:
        return _dense(batch.requests[name])
    return np.full(len(batch), fill, dtype)


def _list(batch: Batch, name: str, dtype: str) -> tuple[npt.NDArray[Any], I64]:
    found: Ragged = batch.requests[name] if name in batch.requests else Ragged.empty(len(batch), dtype)
    return _dense(found.values), _dense(found.offsets)


def _compute(bound: _Bound, batch: Batch, facts: ItemFacts, out: F32) -> None:
    """Fill the computed columns of `out`."""
    offsets = _dense(batch.offsets)
    recents, recents_at = _list(batch, "recents", "i4")
    bought, bought_at = _list(batch, "bought", "i4")
    if bound.user_item is not None:
        ages, _ = _list(batch, "recents_age_s", "f4")
        item = _dense(batch.candidates["item"])
        anchor = _column(batch, "anchor", "i4", -1)
        user_item(
            offsets,
            item,
            recents,
            recents_at,
            ages,
            bought,
            bought_at,
            anchor,
            facts.category,
            facts.price,
            bound.user_item,
            out,
        )
    if bound.request is not None:
        request_features(
            offsets,
            _column(batch, "context_hour", "i1", -1),
            _column(batch, "context_device", "i1", 0),
            _column(batch, "surface", "i1", 0),
            _column(batch, "region", "i2", -1),
            recents_at,
            bought_at,
            _column(batch, "cold", "?", 0),
            bound.request,
            out,
        )
    if bound.sources is not None:
        _fill_sources(bound.sources, batch, out)


def _fill_sources(wanted: _SourceColumns, batch: Batch, out: F32) -> None:
    held = tuple(batch.meta.get("sources", ()))
    scores = batch.candidates["source_scores"] if held else np.empty((batch.candidates.rows, 0), np.float32)
    source_features(
        _dense(scores),
        _dense(batch.candidates["retrieval_score"]),
        _dense(batch.candidates["sources"]),
        wanted.places(held),
        wanted.columns,
        out,
    )
