"""What callers send and get for recommendations: pydantic models, strict and bounded, with examples for OpenAPI."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

__all__ = [
    "Answer",
    "Asked",
    "Channel",
    "Device",
    "Explained",
    "GatewayAnswer",
    "GatewayRequest",
    "Id",
    "Moment",
    "RankedItem",
    "RelatedAnswer",
    "RelatedRequest",
    "ReviewsAnswer",
    "ReviewsRequest",
    "StageName",
    "Strict",
    "WidgetsAnswer",
    "WidgetsRequest",
]

Id = Annotated[str, StringConstraints(min_length=1, max_length=200)]
"""An id as the caller knows it: any text of up to 200 characters."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]
StageName = Literal["retrieval", "features", "ranking", "decision", "log", "availability", "ledger"]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # 0 microseconds, which stand for "no time" in every column


def _of_this_calendar(at: datetime) -> datetime:
    try:
        at.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies before year 1 or after year 9999 in UTC") from None
    return at + timedelta(microseconds=1) if at == _EPOCH else at


Moment = Annotated[AwareDatetime, AfterValidator(_of_this_calendar)]
"""A time with its offset that can be told in UTC, and is not mistaken for none."""
RequestId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class Strict(BaseModel):
    """A body: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Device(StrEnum):
    """Where the answer is shown."""

    unknown = "unknown"
    app = "app"
    mobile_web = "mobile_web"
    desktop = "desktop"


class Channel(StrEnum):
    """How a notification reaches a user."""

    push = "push"
    web_push = "web_push"
    email = "email"
    sms = "sms"
    messenger = "messenger"
    in_app = "in_app"


class Rehearsal(Strict):
    """Fields of a dry run: the request is answered, but neither logged nor counted."""

    dry_run: bool = Field(False, description="answer without logging, committing or counting anything")
    now: Moment | None = Field(None, description="the time to decide at; only with dry_run")
    request_id: RequestId | None = Field(None, description="the id that keys the noise, 16 hex digits; only with dry_run")

    @model_validator(mode="after")
    def _only_when_dry(self) -> Rehearsal:
        for name in ("now", "request_id"):
            if getattr(self, name) is not None and not self.dry_run:
                raise ValueError(f"{name} may be set in a dry run only; set dry_run to true or leave {name} out")
        return self


class Asked(Rehearsal):
    """What every recommendation request may say."""

    user: Id | None = Field(None, description="who asks; absent or unknown: cold start by region and context")
    region: Name | None = Field(None, description="the user's region, where the server does not know it", examples=["kr"])
    device: Device = Field(Device.unknown, description="where the answer is shown")
    recent_items: list[Id] = Field(
        default_factory=list, max_length=10_000, description="items seen lately, oldest first, beyond what events told"
    )
    exclude: list[Id] = Field(default_factory=list, max_length=1_000, description="items that must not be in the answer")
    categories: list[Name] = Field(default_factory=list, max_length=50, description="limit the answer to these categories")
    explain: bool = Field(False, description="say, per candidate, where it came from, what was read and why it left")


class RelatedRequest(Asked):
    """Products related to one product."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"item": "85123A", "user": "17850", "slots": 10}]})

    item: Id = Field(description="the product looked at")
    slots: int = Field(10, ge=1, le=100, description="how many products to answer")


class GatewayRequest(Asked):
    """A personal page: widgets in order, products in order in each."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user": "17850", "widgets": 4, "slots": 6}]})

    widgets: int | None = Field(None, ge=1, le=20, description="how many widgets; absent: the server's default")
    slots: int | None = Field(None, ge=1, le=50, description="products per widget; absent: the server's default")


class WidgetsRequest(Asked):
    """Widgets by their value to the user."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user": "17850", "slots": 5}]})

    widgets: list[Id] | None = Field(None, max_length=200, description="widgets to order; absent: all of the catalogue")
    slots: int = Field(10, ge=1, le=100, description="how many widgets to answer")


class ReviewsRequest(Asked):
    """A product's reviews by how helpful they are."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"item": "85123A", "slots": 5}]})

    item: Id = Field(description="the product reviewed")
    reviews: list[Id] | None = Field(None, max_length=1_000, description="reviews to order; absent: all of the product")
    slots: int = Field(10, ge=1, le=100, description="how many reviews to answer")


class FeatureValue(BaseModel):
    """One feature as read."""

    value: float | None = Field(description="null: unknown, the model reads a missing value")
    status: Literal["present", "stale", "missing", "defaulted"]


class Explained(BaseModel):
    """Why a candidate stands where it stands, or why it left."""

    id: str
    slot: int | None = Field(description="place in the answer; null: not chosen")
    sources: dict[str, float | None] = Field(description="score in each source that named it")
    retrieval_score: float | None = None
    drop_reason: str | None = Field(None, description="why a filter removed it; null: it was ranked")
    heads: dict[str, float | None] | None = Field(None, description="calibrated scores")
    features: dict[str, FeatureValue] | None = Field(None, description="what was read for it")
    value: float | None = Field(None, description="weighted sum of heads")
    propensity: float | None = Field(None, description="probability of its slot, given the slots before it")


class RankedItem(BaseModel):
    """One place of an answer."""

    id: str
    slot: int
    decision_id: str = Field(description="give it back in events about this place")


class Answer(BaseModel):
    """What every recommendation answer says."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    request_id: str
    release: str
    policy: str
    decided_at: datetime
    cold_start: bool = Field(description="the user is unknown: answered by region and context")
    degraded: list[StageName] = Field(description="stages that fell back")


class RelatedAnswer(Answer):
    """Related products, best first."""

    items: list[RankedItem]
    explain: list[Explained] | None = None


class ShownWidget(RankedItem):
    """One widget of a page with its products."""

    title: str
    request_id: str = Field(description="the child request that filled it")
    items: list[RankedItem]
    explain: list[Explained] | None = None


class GatewayAnswer(Answer):
    """A page: no product stands on it twice."""

    widgets: list[ShownWidget]
    explain: list[Explained] | None = None


class RankedWidget(RankedItem):
    """One widget in order."""

    title: str


class WidgetsAnswer(Answer):
    """Widgets, best first."""

    widgets: list[RankedWidget]
    explain: list[Explained] | None = None


class ReviewsAnswer(Answer):
    """Reviews, most helpful first."""

    reviews: list[RankedItem]
    explain: list[Explained] | None = None
