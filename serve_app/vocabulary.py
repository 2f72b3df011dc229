"""The closed vocabularies, with the stable integers that stand for them in columns and in the log.

Numbers are part of the log's format: add at the end, never renumber.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

__all__ = [
    "Action",
    "Channel",
    "Delivery",
    "DropReason",
    "EventType",
    "FeatureStatus",
    "GateOutcome",
    "MessageClass",
    "Origin",
    "Reason",
    "Source",
    "StageBit",
    "Surface",
]


class Surface(IntEnum):
    """What is asked for."""

    related = 0
    gateway = 1
    widgets = 2
    reviews = 3
    notification = 4


class Origin(IntEnum):
    """Where a request came from."""

    client = 0
    audience = 1
    deferral = 2


class Channel(IntEnum):
    """How a notification reaches a user."""

    push = 0
    web_push = 1
    email = 2
    sms = 3
    messenger = 4
    in_app = 5


class MessageClass(IntEnum):
    """Legal nature of a message."""

    transactional = 0
    informational = 1
    advertising = 2


class Delivery(IntEnum):
    """Who sends a granted message: the caller, or a worker that reads the outbox."""

    caller = 0
    outbox = 1


class Source(IntFlag):
    """Where a candidate came from (bits; a candidate may have several)."""

    similar = 1  # embedding neighbours of the anchor
    taste = 2  # embedding neighbours of the user's recent items
    covisited = 4  # windowed co-visitation with recent items
    session = 8  # items of neighbouring sessions
    popular = 16
    recent = 32  # recently viewed by the user
    given = 64  # named by the caller (widgets, reviews, campaigns)
    fresh = 128  # upserted since the release was built


class DropReason(IntEnum):
    """Why a candidate left before ranking; 0 means it was kept."""

    kept = 0
    unavailable = 1
    excluded = 2
    seen = 3
    bought = 4
    category = 5
    anchor = 6
    over_width = 7
    unknown = 8


class FeatureStatus(IntEnum):
    """What was found when a feature value was read."""

    present = 0
    stale = 1  # older than the feature's maximum age; the value is used
    missing = 2  # nothing known and no default declared; the model reads NaN
    defaulted = 3  # nothing known; the declared default is used


class GateOutcome(IntEnum):
    """A gate's word on a candidate."""

    keep = 0
    suppress = 1
    defer = 2


class Action(IntEnum):
    """Outcome of a decision or of one candidate in it."""

    none = 0
    send = 1
    suppress = 2
    defer = 3
    show = 4


class Reason(IntEnum):
    """Primary reason of a notification outcome. The first block is in gate order: cheapest and most legal first."""

    none = 0
    kill_switch = 1
    expired = 2
    duplicate = 3
    no_consent = 4
    no_night_consent = 5
    consent_stale = 6
    unlabelled_ad = 7
    channel_opted_out = 8
    unreachable = 9
    not_in_segment = 10
    segment_stale = 11
    quiet_hours = 12
    frequency_capped = 13
    min_gap = 14
    not_scored = 15
    below_threshold = 16
    explored_off = 17
    preempted = 18  # passed every gate; another candidate was chosen
    global_holdout = 19
    campaign_holdout = 20
    budget_exhausted = 21  # reserved: no gate counts a budget across users yet
    ledger_unavailable = 22
    outcome_unknown = 23
    chosen = 24


class StageBit(IntFlag):
    """Stages that fell back (the `degraded` column)."""

    retrieval = 1
    features = 2
    ranking = 4
    decision = 8
    log = 16
    availability = 32
    ledger = 64  # sent without it: see serve_app.serving.unledgered


class EventType(IntEnum):
    """Behaviour and delivery events."""

    view = 0
    click = 1
    add_to_cart = 2
    conversion = 3
    review = 4
    dismiss = 5
    seen = 6
    delivered = 7
    delivery_failed = 8
    opt_out = 9
    opt_in = 10
    consent = 11
    zone = 12
    bot = 13
