"""What callers send and get for events, user state, items: the facts that decisions are made from."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from serve_app.errors import InvalidInput
from serve_app.ids import parse_decision_id
from serve_app.ingress.schemas import Channel, Id, Moment, Name, Strict

__all__ = [
    "CampaignState",
    "ConsentIn",
    "Event",
    "EventBatch",
    "EventData",
    "EventsAnswer",
    "ItemDocument",
    "ItemState",
    "UserDocument",
    "UserState",
]

EventName = Literal[
    "view", "click", "add_to_cart", "conversion", "review", "dismiss", "seen", "delivered", "delivery_failed",
    "opt_out", "opt_in", "consent", "zone", "bot",
]  # fmt: skip
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]


class EventData(Strict):
    """What an event says beyond who, what and when."""

    item: Id | None = None
    campaign: Id | None = None
    channel: Channel | None = None
    decision_id: str | None = Field(None, description="as the answer gave it; absent: the user came by themselves")
    session: Id | None = None
    position: int | None = Field(None, ge=0, le=10_000)
    quantity: int | None = Field(None, ge=-1_000_000, le=1_000_000)
    amount: float | None = Field(None, ge=-1e12, le=1e12, allow_inf_nan=False)
    currency: Currency | None = None
    stars: float | None = Field(None, ge=0, le=5)
    consent: Literal["advertising", "night"] | None = Field(None, description="of `consent` events: which one")
    given: bool | None = Field(None, description="of `consent` events: given or withdrawn")
    proof: str | None = Field(None, max_length=500, description="of `consent` events: how it was given")
    zone: Name | None = Field(None, description="of `zone` events: IANA name")

    @field_validator("decision_id")
    @classmethod
    def _is_decision_id(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_decision_id(value)
            except InvalidInput as error:
                raise ValueError(f"{error.message}; {error.hint}") from None
        return value


class Event(BaseModel):
    """A CloudEvent 1.0. `subject` is the user; extension attributes are allowed and passed over."""

    model_config = ConfigDict(extra="allow", frozen=True)

    specversion: Literal["1.0"]
    id: Id = Field(description="unique; an event with an id seen before is counted and otherwise passed over")
    source: str = Field(min_length=1, max_length=500)
    type: EventName
    subject: Id = Field(description="the user")
    time: Moment = Field(description="when it happened")
    datacontenttype: Literal["application/json"] | None = None
    data: EventData = EventData()


class EventBatch(BaseModel):
    """For the documentation: the body is a JSON array of events."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                [
                    {
                        "specversion": "1.0",
                        "id": "e-1",
                        "source": "/shop",
                        "type": "view",
                        "subject": "17850",
                        "time": "2026-11-22T10:00:00Z",
                        "data": {"item": "85123A"},
                    }
                ]
            ]
        }
    )


class EventProblem(BaseModel):
    """An event that was refused; the others are not affected."""

    index: int
    id: str | None
    field: str
    detail: str


class EventsAnswer(BaseModel):
    """What became of the events. Accepted ones are durable."""

    accepted: int
    duplicates: int
    refused: int
    errors: list[EventProblem]


class ConsentIn(Strict):
    """A consent: when it was given, and what proves it. null for `given_at`: withdrawn."""

    given_at: Moment | None
    proof: str = Field("", max_length=500)


class UserDocument(Strict):
    """What the caller knows of a user. Fields left out stay as they are."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "zone": "Asia/Seoul",
                    "region": "kr",
                    "reachable": ["push", "email"],
                    "consent_advertising": {"given_at": "2026-01-05T09:00:00+09:00", "proof": "sign-up form 7"},
                }
            ]
        }
    )

    consent_advertising: ConsentIn | None = None
    consent_night: ConsentIn | None = Field(None, description="consent to advertising at night (Korea: 21:00-08:00)")
    customer_until: Moment | None = Field(None, description="end of the existing-customer exception")
    reachable: list[Channel] | None = Field(None, max_length=10, description="channels that reach the user")
    opted_out: list[Channel] | None = Field(None, max_length=10, description="channels the user left")
    zone: Name | None = Field(None, description="IANA time zone")
    region: Name | None = None


class ConsentState(BaseModel):
    """A consent as stored."""

    given_at: datetime | None
    recorded_at: datetime | None
    proof: str


class UserState(BaseModel):
    """A user as stored."""

    user: str
    version: int = Field(description="rises with every change and every decision")
    consent_advertising: ConsentState
    consent_night: ConsentState
    customer_until: datetime | None
    reachable: list[Channel]
    opted_out: list[Channel]
    zone: str | None
    region: str | None


class ItemDocument(Strict):
    """A live change to an item: hide it, show it again, or offer a new one. Fields left out stay as they are."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"available": False}]})

    available: bool = True
    title: str | None = Field(None, max_length=500)
    category: Name | None = None
    price: float | None = Field(None, ge=0, le=1e12, allow_inf_nan=False)
    currency: Currency | None = None


class ItemState(BaseModel):
    """The change in force. No answer after this one contradicts it."""

    item: str
    sequence: int
    available: bool


class CampaignState(BaseModel):
    """A campaign as stored."""

    campaign: str
    version: int = Field(description="rises by one with each change")
    sequence: int
