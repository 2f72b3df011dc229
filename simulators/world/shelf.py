"""The world's catalogue as the shop knows it: no latent value among its columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from serve_app.catalogue import Catalogue, table_of
from serve_app.vocabulary import Channel, Delivery, MessageClass
from simulators.world.campaigns import AD_LABEL, CHANNEL_COST
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
    lived = table_of(
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
    return pa.concat_tables([lived, _planned(model)])


def _planned(model: Model) -> Any:
    """A campaign that begins when the world ends, for the segment `window-shoppers` of the policy that then serves."""
    settings = model.settings
    ends = settings.start_us + settings.days * DAY_US
    return table_of(
        "campaigns",
        {
            "campaign_id": ["welcome-first-order"],
            "title": ["첫 구매 15% 할인"],
            "text": [f"{AD_LABEL} 하인드샵 첫 구매 15% 할인, 무료수신거부 080-000-0000"],
            "item_id": [None],
            "category": [CATEGORIES[0].name],
            "message_class": [MessageClass.advertising.name],
            "channels": [[Channel.push.name, Channel.email.name]],
            "starts_at": [ends],
            "expires_at": [ends + 730 * DAY_US],
            "cost": [max(CHANNEL_COST[Channel.push], CHANNEL_COST[Channel.email])],
            "margin": [9_000.0],
            "priority": [0],
            "delivery": [Delivery.caller.name],
            "segment": ["window-shoppers"],
        },
    )
