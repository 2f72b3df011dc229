"""All that stays the same in a world, built from its settings alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.ids import hash_ids
from serve_app.log.rows import EntityHashes
from serve_app.policy.zones import zone_index
from serve_app.regions import region_index
from simulators.world.browsing import category_taste
from simulators.world.campaigns import Campaigns, build_campaigns
from simulators.world.draws import Draws
from simulators.world.items import Items, build_items
from simulators.world.names import CATEGORIES
from simulators.world.places import PLACES, LocalClock
from simulators.world.population import Population, build_population
from simulators.world.settings import WorldSettings
from simulators.world.widgets import Widgets, build_widgets

__all__ = ["Model", "build_model"]


@dataclass(frozen=True)
class Model:
    """Immutable parts. `zones` and `regions` i16 by place; `categories` u64 hashes; `taste` f64[n, C]."""

    settings: WorldSettings
    draws: Draws
    population: Population
    items: Items
    campaigns: Campaigns
    widgets: Widgets
    clock: LocalClock
    zones: npt.NDArray[np.int16]
    regions: npt.NDArray[np.int16]
    categories: npt.NDArray[np.uint64]
    taste: npt.NDArray[np.float64]

    @property
    def hashes(self) -> EntityHashes:
        """What the log calls the model's rows."""
        return EntityHashes(items=self.items.item, widgets=self.widgets.widget, categories=self.categories)


def build_model(settings: WorldSettings) -> Model:
    """Deterministic in `settings`."""
    draws = Draws(settings.seed)
    population = build_population(settings, draws)
    items = build_items(settings, draws)
    return Model(
        settings=settings,
        draws=draws,
        population=population,
        items=items,
        campaigns=build_campaigns(settings, items, draws),
        widgets=build_widgets(draws),
        clock=LocalClock(settings.start_us, settings.days),
        zones=np.array([zone_index(one.zone) for one in PLACES], np.int16),
        regions=np.array([region_index(one.region) for one in PLACES], np.int16),
        categories=hash_ids([one.name for one in CATEGORIES]),
        taste=category_taste(population, items),
    )
