"""The world's catalogue as the shop knows it: no latent value among its columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from serve_app.catalogue import Catalogue, table_of
from serve_app.vocabulary import Delivery, MessageClass
from simulators.world.model import Model
from simulators.world.names import CATEGORIES
from simulators.world.places import PLACES
from simulators.world.reviews import Reviews, build_reviews
from simulators.world.settings import DAY_US

__all__ = ["catalogue_of"]


def catalogue_of(model: Model) -> Catalogue:
    """Items as they stand at the end of the world's last day; everybody who ever joined; reviews, widgets, campaigns."""
    people, items, settings = model.population, model.items, model.settings
    launched = np.maximum(items.launch_day.astype(np.int64), -600)
    return Catalogue(
        items=table_of(
            "items",
            {
                "item_id": items.item_id,
                "title": items.title,
                "category": [CATEGORIES[kind].name for kind in items.category],
                "price": items.price,
                "currency": ["KRW"] * len(items),
                "created_at": settings.start_us + launched * DAY_US,
                "available": items.available(settings.days - 1),
            },
        ),
        users=table_of(
            "users",
            {
                "user_id": people.user_id,
                "zone": [PLACES[place].zone for place in people.place],
                "region": [PLACES[place].region for place in people.place],
                "created_at": people.joined_at,
            },
        ),
        reviews=_reviews(model, build_reviews(settings, people, items, model.draws)),
        widgets=table_of(
            "widgets",
            {
                "widget_id": model.widgets.widget_id,
                "title": model.widgets.title,
                "kind": model.widgets.kind,
                "argument": model.widgets.argument,
            },
        ),
        campaigns=_campaigns(model),
    )


def _reviews(model: Model, reviews: Reviews) -> Any:
    return table_of(
        "reviews",
        {
            "review_id": reviews.review_id,
            "item_id": [model.items.item_id[row] for row in reviews.item],
            "user_id": [model.population.user_id[row] for row in reviews.user],
            "at": reviews.at,
            "stars": reviews.stars,
            "text": reviews.text,
            "helpful_votes": reviews.helpful_votes,
            "verified": reviews.verified,
        },
    )


def _campaigns(model: Model) -> Any:
    campaigns = model.campaigns
    return table_of(
        "campaigns",
        {
            "campaign_id": campaigns.campaign_id,
            "title": campaigns.title,
            "text": campaigns.text,
            "item_id": [model.items.item_id[row] if row >= 0 else None for row in campaigns.item],
            "category": [CATEGORIES[kind].name for kind in campaigns.category],
            "message_class": [MessageClass(one).name for one in campaigns.message_class],
            "channels": [[one.name for one in used] for used in campaigns.channels],
            "starts_at": campaigns.starts_at,
            "expires_at": campaigns.expires_at,
            "cost": campaigns.cost,
            "margin": campaigns.margin,
            "priority": campaigns.priority,
            "delivery": [Delivery.caller.name] * len(campaigns),
            "segment": [None] * len(campaigns),
        },
    )
