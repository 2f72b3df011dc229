"""The `Ranking` stage: heads of the kept candidates, their value under each request's policy, and the list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.errors import InvalidInput
from serve_app.kernels import kernel
from serve_app.stages.extend import extended
from serve_app.stages.ranking.heads import HeadSet, Models
from serve_app.stages.ranking.selector import Selection, SelectorInput, dense, frozen, select
from serve_app.stages.ranking.settings import ListSettings
from serve_app.stages.stage import Context
from serve_app.vocabulary import DropReason, Surface

__all__ = ["Identities", "Ranking", "values_of"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

_KIND = {Surface.related: "item", Surface.gateway: "item", Surface.widgets: "widget", Surface.reviews: "review"}


def _no_hashes() -> U64:
    return np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Identities:
    """Stable hashes by row, which key the selector's noise: item u64[items], side rows of newly upserted items included,
    widget u64[widgets], review u64[reviews]. vectors f32[items, d], unit length, for redundancy by embedding. The shell may
    give a newer one as `context.parts["identities"]`."""

    item: U64 = field(default_factory=_no_hashes)
    widget: U64 = field(default_factory=_no_hashes)
    review: U64 = field(default_factory=_no_hashes)
    vectors: F32 | None = None


@kernel
def _weighted_sum(heads: F32, weights: F64, setting: I32, offsets: I64, kept: Bool, value: F64) -> None:
    """value[c] = sum over heads in order of weight * head, NaN where not kept. weights f64[k, H]."""
    for r in range(len(offsets) - 1):
        for c in range(offsets[r], offsets[r + 1]):
            total = 0.0
            for h in range(heads.shape[1]):
                weight = weights[setting[r], h]
                if weight != 0.0:
                    total += weight * float(heads[c, h])
            value[c] = total if kept[c] else np.nan


@kernel
def _look_up(hashes: U64, rows: I32, kept: Bool, identity: U64) -> bool:
    """identity[c] = hashes[rows[c]]; False if a kept candidate's row is outside (a dropped one's identity is 0 then)."""
    for c in range(len(rows)):
        inside = 0 <= rows[c] < len(hashes)
        if kept[c] and not inside:
            return False
        identity[c] = hashes[rows[c]] if inside else np.uint64(0)
    return True


class Ranking:
    """Scores candidates and, except for notifications, makes the list.

    `run` needs the request columns surface, policy, request_id, slots (and variant, where policies have variants) and, per
    candidate, features, drop_reason and category. Policies of the context offer `list_settings(surface, variant)`.
    """

    name = "ranking"

    def __init__(self, models: Models, identities: Identities) -> None:
        self.models = models
        self._identities = identities

    def run(self, batch: Batch, context: Context, page: I32 | None = None) -> Batch:
        """Set heads f32[m, H] (NaN where dropped), value, slot, p_slot; meta['heads'] names the columns. Notifications get
        heads alone: Decision weighs them by message class. All requests must be served by one head set.

        page: i32[n] number of the page each list stands on, -1: none. Lists of a page are made in row order and hold nothing
        twice: what stands in an earlier one is dropped as excluded before a list's noise is drawn, so that its propensities
        are conditional on the page so far, as a slot's are on its prefix."""
        heads = self._head_set(batch)
        kept = batch.candidates["drop_reason"] == DropReason.kept if "drop_reason" in batch.candidates else None
        if kept is None:
            kept = np.ones(batch.candidates.rows, np.bool_)
        scores = _score(heads, batch, kept)
        meta = {"heads": heads.names}
        if len(batch) and int(batch.requests["surface"][0]) == Surface.notification:
            return extended(batch, meta, heads=scores)
        settings, setting = _settings_of(batch, context)
        value = values_of(scores, heads.names, settings, setting, batch.offsets, kept)
        chosen = self.choose(batch, context, settings, setting, value, kept, page=page)
        made = extended(batch, meta, heads=scores, value=value, slot=chosen.slot, p_slot=chosen.p_slot)
        if not chosen.repeated.any():
            return made
        scores[chosen.repeated], value[chosen.repeated] = np.nan, np.nan
        reasons = batch.candidates["drop_reason"].copy()
        reasons[chosen.repeated] = DropReason.excluded
        return extended(made, {}, drop_reason=reasons)

    def fall_back(self, batch: Batch) -> Batch:
        """The declared failure mode: retrieval's order of the kept candidates, certain (p = 1); nothing is scored."""
        m = batch.candidates.rows
        kept = batch.candidates["drop_reason"] == DropReason.kept
        owner = batch.owner
        order = np.lexsort((np.arange(m), -batch.candidates["retrieval_score"], owner, ~kept))[: int(kept.sum())]
        counts = np.bincount(owner[order], minlength=len(batch))
        place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        order, place = (
            order[place < batch.requests["slots"][owner[order]]],
            place[place < batch.requests["slots"][owner[order]]],
        )
        slot, p_slot = np.full(m, -1, np.int32), np.full(m, np.nan)
        slot[order], p_slot[order] = place, 1.0
        names = self._head_set(batch).names
        nothing = np.full((m, len(names)), np.nan, np.float32)
        return extended(batch, {"heads": names}, heads=nothing, value=np.full(m, np.nan), slot=slot, p_slot=p_slot)

    def explain(self, ranked: Batch, context: Context, *, distributions: bool = True) -> Selection:
        """The slots of a ranked batch again, with every slot's whole distribution where that is wanted."""
        settings, setting = _settings_of(ranked, context)
        kept = ~np.isnan(ranked.candidates["value"])
        return self.choose(ranked, context, settings, setting, ranked.candidates["value"], kept, distributions)

    def choose(
        self,
        batch: Batch,
        context: Context,
        settings: Sequence[ListSettings],
        setting: I32,
        value: F64,
        kept: Bool,
        distributions: bool = False,
        page: I32 | None = None,
    ) -> Selection:
        """Lists from values; settings[setting[r]] are those of request r. page: see `run`."""
        identities: Identities = context.parts.get("identities", self._identities)
        kind = _KIND[Surface(int(batch.requests["surface"][0]))] if len(batch) else "item"
        rows = batch.candidates[kind]
        own: U64 = getattr(identities, kind)
        identity = np.empty(len(rows), np.uint64)
        if not _look_up(frozen(own), dense(rows), kept, identity):
            raise InvalidInput(f"rows outside the {len(own)} known", field=kind, hint="give newer identities in the context")
        given = SelectorInput(
            offsets=batch.offsets,
            request_id=batch.requests["request_id"],
            slots=batch.requests["slots"],
            setting=setting,
            identity=identity,
            category=batch.candidates["category"] if "category" in batch.candidates else np.zeros(len(rows), np.uint64),
            value=value,
            allowed=kept & ~np.isnan(value),
            vectors=identities.vectors if kind == "item" else None,
            vector_row=rows if kind == "item" and identities.vectors is not None else None,
            page=page,
            thing=rows,
        )
        return select(given, settings, distributions=distributions)

    def _head_set(self, batch: Batch) -> HeadSet:
        surfaces = dict.fromkeys(batch.requests["surface"].tolist())
        if not surfaces:
            return next(iter(self.models.by_surface.values()))
        sets = [self.models[Surface(surface)] for surface in surfaces]
        if any(one is not sets[0] for one in sets):
            raise InvalidInput("requests of different head sets in one batch", field="surface", hint="split it")
        return sets[0]


def _score(heads: HeadSet, batch: Batch, kept: Bool) -> F32:
    """f32[m, H], NaN where not kept."""
    features, names = batch.candidates["features"], tuple(batch.meta["features"])
    if names != heads.features:
        lacking = [name for name in heads.features if name not in names]
        if lacking:
            raise InvalidInput("the batch lacks this feature", field=lacking[0], hint="compile the plan from these models")
        features = features[:, [names.index(name) for name in heads.features]]
    if kept.all():
        return heads.predict(dense(features))
    out = np.full((len(kept), len(heads.heads)), np.nan, np.float32)
    out[kept] = heads.predict(features[kept])
    return out


def _settings_of(batch: Batch, context: Context) -> tuple[list[ListSettings], I32]:
    """Distinct settings of the batch, and which one each request has. Few settings serve many requests."""
    requests = batch.requests
    policy, surface = requests["policy"].tolist(), requests["surface"].tolist()
    variant = requests["variant"].tolist() if "variant" in requests else [0] * len(policy)
    places: dict[tuple[int, int, int], int] = {}
    setting = [places.setdefault(key, len(places)) for key in zip(policy, surface, variant, strict=True)]
    for index, _, _ in places:
        if not 0 <= index < len(context.policies):
            raise InvalidInput(f"request pinned to policy {index}, the context has {len(context.policies)}", field="policy")
    settings = [context.policies[index].list_settings(Surface(asked), arm) for index, asked, arm in places]
    return settings, np.array(setting, np.int32)


def values_of(
    scores: F32, heads: Sequence[str], settings: Sequence[ListSettings], setting: I32, offsets: I64, kept: Bool
) -> F64:
    """f64[m]: the weighted sum of each candidate's heads (f32[m, H], named `heads`) under settings[setting[r]] of its
    request r; NaN where not kept. InvalidInput names a weighed head that is not among them."""
    value = np.empty(len(kept))
    _weighted_sum(dense(scores), _weights(settings, heads), dense(setting), dense(offsets), dense(kept), value)
    return value


def _weights(settings: Sequence[ListSettings], heads: Sequence[str]) -> F64:
    """f64[k, H]; InvalidInput names a weighed head that no model gives."""
    out = np.zeros((len(settings), len(heads)))
    for row, one in enumerate(settings):
        given: Mapping[str, float] = dict(one.weights)
        for name, weight in given.items():
            if name not in heads:
                raise InvalidInput("is weighed by the policy and given by no model", field=f"head {name}")
            out[row, heads.index(name)] = weight
    return out
