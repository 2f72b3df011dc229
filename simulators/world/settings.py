"""What a world is made of: size, seed, calendar, and the parameters of its people. All of it is written to DATA/world/."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.errors import InvalidInput

__all__ = ["DAY_US", "HOUR_US", "MINUTE_US", "SECOND_US", "ResponseSettings", "WorldSettings", "world_settings"]

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US


class ResponseSettings(BaseModel):
    """The true response model. Logits unless said otherwise; `*_sd` are standard deviations of individual effects that
    no log shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    activity_mean: float = Field(-1.75, ge=-8, le=4, description="logit of the mean user's chance to open the app on a day")
    activity_sd: float = Field(1.0, ge=0, le=4)
    weekend_activity: float = Field(0.25, ge=-3, le=3, description="added on Saturday and Sunday, local")
    click_base: float = Field(-3.3, ge=-10, le=3, description="notification click of the mean user on push")
    click_affinity: float = Field(0.9, ge=0, le=5, description="per unit of taste match with the campaign")
    responsiveness_sd: float = Field(0.8, ge=0, le=4)
    convert_base: float = Field(-1.9, ge=-10, le=3, description="purchase after a notification click")
    buying_sd: float = Field(0.6, ge=0, le=4)
    optout_base: float = Field(-7.2, ge=-15, le=0, description="opt-out of a channel caused by one advertising send")
    irritability_sd: float = Field(0.7, ge=0, le=4)
    dismiss_base: float = Field(-1.2, ge=-10, le=3)
    fatigue_click: float = Field(0.28, ge=0, le=5, description="click logit lost per unit of fatigue")
    fatigue_optout: float = Field(0.35, ge=0, le=5, description="opt-out logit gained per unit of fatigue")
    fatigue_activity: float = Field(0.10, ge=0, le=5, description="activity logit lost per unit of fatigue")
    fatigue_half_life_days: float = Field(3.0, gt=0, le=60)
    fatigue_per_send: tuple[float, float, float] = Field(
        (0.1, 0.4, 1.0), description="transactional, informational, advertising"
    )
    engagement_per_click: float = Field(0.5, ge=0, le=5, description="activity logit gained by a click on a notification")
    engagement_half_life_days: float = Field(2.0, gt=0, le=60)
    satiation_per_order: float = Field(1.5, ge=0, le=10, description="purchase logit lost by an order")
    satiation_half_life_days: float = Field(4.0, gt=0, le=90)
    relevance_base: float = Field(-1.8, ge=-10, le=3, description="click on an examined item, mean user and item")
    relevance_affinity: float = Field(1.0, ge=0, le=5)
    examination_decay: float = Field(0.7, ge=0, le=5, description="slot k is examined with (1 + k) ** -decay")
    cart_base: float = Field(-2.3, ge=-10, le=3, description="viewed item into the cart")
    order_base: float = Field(-1.1, ge=-10, le=3, description="cart to order")
    delivery_failure: tuple[float, ...] = Field(
        (0.02, 0.03, 0.015, 0.01, 0.01, 0.0), description="per channel: push, web push, email, sms, messenger, in-app"
    )
    head_slope: float = Field(
        0.9, gt=0, le=3, description="the scoring model's logit = intercept + slope * (observable truth) + noise"
    )
    head_noise_sd: float = Field(0.35, ge=0, le=4, description="sd of that noise, fixed per (user, campaign or item)")
    head_bias: float = Field(0.1, ge=-3, le=3)


class WorldSettings(BaseModel):
    """Everything that decides a world's bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int = Field(3_000, ge=1, le=5_000_000)
    items: int = Field(2_000, ge=1, le=5_000_000)
    days: int = Field(21, ge=1, le=730)
    seed: int = Field(7, ge=0, lt=2**62)
    start: date = Field(date(2026, 10, 19), description="first day (UTC); the default spans both autumn clock changes")
    campaigns: int = Field(24, ge=4, le=500)
    reviews_per_item: float = Field(3.0, ge=0, le=100)
    bot_share: float = Field(0.004, ge=0, le=0.5)
    newcomer_share: float = Field(0.05, ge=0, le=0.9, description="users who join while the world runs")
    audience_rate: float = Field(1.0, gt=0, le=1, description="share of users asked about on a day by campaign audiences")
    late_share: float = Field(0.02, ge=0, le=1, description="events that arrive hours to days late")
    duplicate_share: float = Field(0.005, ge=0, le=1, description="events that arrive twice")
    slate_candidates: int = Field(24, ge=2, le=500)
    slate_slots: int = Field(8, ge=1, le=50)
    slate_log_rate: float = Field(0.1, gt=0, le=1, description="share of slates whose full candidate set is logged")
    blocks_per_day: int = Field(8, ge=1, le=24, description="decisions of a day are taken in this many steps of time")
    response: ResponseSettings = ResponseSettings()

    @property
    def start_us(self) -> int:
        """Midnight UTC of the first day, microseconds."""
        return int(datetime(self.start.year, self.start.month, self.start.day, tzinfo=UTC).timestamp()) * SECOND_US


def world_settings(*, users: int, items: int, days: int, seed: int, start: str = "") -> WorldSettings:
    """Settings from a command line; InvalidInput names the option that is out of its bounds."""
    given: dict[str, Any] = {"users": users, "items": items, "days": days, "seed": seed}
    if start:
        given["start"] = start
    try:
        return WorldSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(str(first["msg"]), field=".".join(str(part) for part in first["loc"])) from None
