"""Features of campaigns and widgets as of any time, like those of items and users (see entity_features).

Campaigns are told by their events, as received. Widgets are told by pages whose clicks have settled: a page counts once the
attribution window has passed, shown and clicked together, so that a rate never compares new pages with old clicks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.release.build.interactions import Interactions
from serve_app.release.build.outcomes import ATTRIBUTION_US, Outcomes
from serve_app.release.build.timeline import DAY_US, Timeline
from serve_app.release.rows import CatalogueRows, find_rows
from serve_app.stages.features.tables import Entity, FeatureSpec, FeatureTable
from serve_app.vocabulary import EventType, MessageClass, Surface

__all__ = ["CAMPAIGN_SPECS", "WIDGET_PRIOR", "WIDGET_SPECS", "CampaignTimelines", "WidgetTimelines"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_WINDOWS: dict[str, int | None] = {"7d": 7 * DAY_US, "all": None}
_WRITER = "hindcast build: thing_features"
WIDGET_PRIOR = 0.05
_PRIOR_WEIGHT = 50.0
_CLICK_PRIOR, _OPTOUT_PRIOR = 0.05, 0.002


def _specs(entity: Entity, defaults: dict[str, float | None]) -> tuple[FeatureSpec, ...]:
    return tuple(FeatureSpec(f"{entity}_{name}", entity, "f4", value, None, _WRITER) for name, value in defaults.items())


CAMPAIGN_SPECS = _specs(
    Entity.campaign,
    {
        "delivered_7d": 0.0,
        "delivered_all": 0.0,
        "click_rate": _CLICK_PRIOR,
        "optout_rate": _OPTOUT_PRIOR,
        "message_class": None,
        "cost": None,
        "margin": None,
        "age_days": None,
    },
)
WIDGET_SPECS = _specs(Entity.widget, {"shown_7d": 0.0, "shown_all": 0.0, "click_rate": WIDGET_PRIOR, "kind": None})


def _smoothed(hits: I64, tries: I64, prior: float) -> npt.NDArray[np.float64]:
    """(hits + prior weight) / (tries + weight): a rate that starts at the prior and is never 0."""
    return (hits + prior * _PRIOR_WEIGHT) / (tries + _PRIOR_WEIGHT)


@dataclass(frozen=True, slots=True)
class CampaignTimelines:
    """Events of campaigns, and what the catalogue says of them."""

    hashes: npt.NDArray[np.uint64]
    events: Timeline
    fixed: F32
    starts_at: I64

    @classmethod
    def build(cls, log: Interactions, rows: CatalogueRows) -> CampaignTimelines:
        """Over the catalogue's campaigns."""
        hashes = rows.campaign_hashes
        row = find_rows(hashes, log.campaign)
        keep = np.flatnonzero((row >= 0) & (log.campaign != 0))
        kinds = (EventType.delivered, EventType.click, EventType.opt_out)
        measures = {kind.name: log.kind[keep] == kind for kind in kinds}
        events = Timeline.build(row[keep], log.known_at[keep], measures, len(hashes))
        table: pa.Table = rows.campaigns
        classes = [float(MessageClass[name]) for name in table["message_class"].to_pylist()]
        fixed = np.stack([np.array(classes), table["cost"].to_numpy(), table["margin"].to_numpy()], axis=1)
        return cls(hashes, events, fixed.astype(np.float32), table["starts_at"].to_numpy())

    def features(self, rows: I32, when: I64) -> F32:
        """f32[q, len(CAMPAIGN_SPECS)]: campaign `rows` i32[q] as of `when` i64[q]; all NaN for row -1."""
        out = np.full((len(rows), len(CAMPAIGN_SPECS)), np.nan, np.float32)
        known = np.flatnonzero(rows >= 0)
        rows, when = rows[known], when[known]
        sums = self.events.sums(rows, when, _WINDOWS)
        ever = sums["all"]
        out[known, 0], out[known, 1] = sums["7d"]["delivered"], ever["delivered"]
        out[known, 2] = _smoothed(ever["click"], ever["delivered"], _CLICK_PRIOR)
        out[known, 3] = _smoothed(ever["opt_out"], ever["delivered"], _OPTOUT_PRIOR)
        out[known, 4:7] = self.fixed[rows]
        started = self.starts_at[rows]
        out[known, 7] = np.where(started > 0, (when - started) / DAY_US, np.nan)
        return out

    def table(self, when: int) -> FeatureTable:
        """The release's table."""
        count = len(self.hashes)
        at = np.full(count, when, np.int64)
        return FeatureTable(
            Entity.campaign, CAMPAIGN_SPECS, self.hashes, self.features(np.arange(count, dtype=np.int32), at), at
        )


@dataclass(frozen=True, slots=True)
class WidgetTimelines:
    """Settled pages by widget."""

    hashes: npt.NDArray[np.uint64]
    pages: Timeline
    kind: F32

    @classmethod
    def build(cls, outcomes: Outcomes, rows: CatalogueRows) -> WidgetTimelines:
        """Over the catalogue's widgets."""
        pages = outcomes.take(outcomes.surface == Surface.widgets)
        row = widget_rows(rows, pages.widget)
        keep = np.flatnonzero(row >= 0)
        settled = pages.at[keep] + ATTRIBUTION_US
        measures = {"shown": np.ones(len(keep), np.int64), "clicked": pages.clicked[keep]}
        kinds = rows.widgets["kind"]
        names = pa.array(sorted(pc.unique(kinds).to_pylist()), pa.string())
        kind = pc.index_in(kinds, value_set=names).to_numpy().astype(np.float32)
        return cls(rows.widget_hashes, Timeline.build(row[keep], settled, measures, len(kinds)), kind)

    def features(self, rows: I32, when: I64) -> F32:
        """f32[q, len(WIDGET_SPECS)]: widget `rows` i32[q], all known, as of `when` i64[q]."""
        sums = self.pages.sums(rows, when, _WINDOWS)
        ever = sums["all"]
        rate = _smoothed(ever["clicked"], ever["shown"], WIDGET_PRIOR)
        return np.stack([sums["7d"]["shown"], ever["shown"], rate, self.kind[rows]], axis=1).astype(np.float32)

    def table(self, when: int) -> FeatureTable:
        """The release's table."""
        count = len(self.hashes)
        at = np.full(count, when, np.int64)
        return FeatureTable(
            Entity.widget, WIDGET_SPECS, self.hashes, self.features(np.arange(count, dtype=np.int32), at), at
        )


def widget_rows(rows: CatalogueRows, hashes: npt.NDArray[np.uint64]) -> I32:
    """Widget row of each hash; -1: not in the catalogue."""
    order = np.argsort(rows.widget_hashes, kind="stable").astype(np.int32)
    at = find_rows(rows.widget_hashes[order], hashes)
    return np.where(at >= 0, order[at] if len(order) else -1, -1).astype(np.int32)
