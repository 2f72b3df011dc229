"""The rules that forbid a send: message classes, caps, minimum gap, quiet hours, regions, kill switches, deferral."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, StrictFloat, StrictInt, model_validator

from serve_app.policy.base import Action, ChannelName, ClassName, Identifier, LocalTime, Salt, Strict

__all__ = [
    "KOREA_LABEL",
    "Cap",
    "Deferral",
    "KillSwitches",
    "MessageClassRule",
    "MessageClasses",
    "MinGap",
    "QuietHours",
    "RegionRule",
    "Window",
]

KOREA_LABEL = "(광고)"


class MessageClassRule(Strict):
    """What a class of messages is spared, and where its settings differ."""

    bypass_caps: StrictBool = False
    """Never refused by a cap. Whether it consumes one is each cap's `counts`."""
    bypass_min_gap: StrictBool = False
    bypass_quiet_hours: StrictBool = False
    bypass_opt_out: StrictBool = False
    """Reaches a channel the user opted out of (never one that cannot be reached)."""
    bypass_threshold: StrictBool = False
    """Needs neither scores nor value: sent whenever the other gates let it pass."""
    unledgered: StrictBool = False
    """Sent at least once even while the ledger is down, though opt-outs of that time cannot be read: transactional only."""
    priority: Annotated[StrictInt, Field(ge=-100, le=100)] = 0
    """Added to the campaign's own priority; higher goes first."""
    threshold: Annotated[StrictFloat, Field(ge=-1e6, le=1e6)] | None = None
    """Replaces the policy's threshold for this class."""
    head_weights: dict[Identifier, Annotated[StrictFloat, Field(ge=-1e6, le=1e6)]] | None = None
    """Replaces the notification surface's head weights for this class."""


class MessageClasses(Strict):
    """The three legal natures of a message. Transactional ones bypass caps and quiet hours unless stated otherwise."""

    transactional: MessageClassRule = MessageClassRule(
        bypass_caps=True, bypass_min_gap=True, bypass_quiet_hours=True, bypass_threshold=True, unledgered=True,
        priority=100,
    )  # fmt: skip
    informational: MessageClassRule = MessageClassRule()
    advertising: MessageClassRule = MessageClassRule()

    @model_validator(mode="after")
    def _unledgered_is_lawful(self) -> Self:
        for name in ("informational", "advertising"):
            if getattr(self, name).unledgered:
                raise ValueError(
                    f"{name}: unledgered is for transactional messages; consents cannot be read without a ledger"
                )
        own = self.transactional
        if own.unledgered and not (own.bypass_caps and own.bypass_min_gap):
            raise ValueError("transactional: unledgered needs bypass_caps and bypass_min_gap; without a ledger none is kept")
        return self


class Window(Strict):
    """Either a rolling duration or a calendar period in the user's own zone (weeks start on Monday)."""

    rolling_hours: Annotated[StrictFloat, Field(ge=1 / 3600, le=24 * 366)] | None = None
    calendar: Literal["day", "week", "month"] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.rolling_hours is None) == (self.calendar is None):
            raise ValueError("give exactly one of rolling_hours and calendar")
        return self

    @property
    def longest_hours(self) -> float:
        """Upper bound of the window's length in hours (a zone change can stretch a calendar period by a day)."""
        if self.rolling_hours is not None:
            return self.rolling_hours
        return {"day": 24.0, "week": 168.0, "month": 744.0}[self.calendar or "month"] + 26.0

    def __str__(self) -> str:
        return f"rolling {self.rolling_hours:g} h" if self.rolling_hours is not None else f"calendar {self.calendar}"


class Cap(Strict):
    """At most `limit` grants per window within the scope. Scope `channel` counts each channel by itself, and so on."""

    id: Identifier
    scope: Literal["global", "channel", "category", "campaign"]
    only: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(default=(), max_length=64)
    """Channels, categories or campaign ids the cap is limited to; empty: each one of them."""
    limit: Annotated[StrictInt, Field(ge=0, le=10_000)]
    window: Window
    counts: tuple[ClassName, ...] = ("informational", "advertising")
    """Classes whose grants use the cap up."""
    binds: tuple[ClassName, ...] = ("informational", "advertising")
    """Classes the cap may refuse."""
    refund_failed_delivery: StrictBool = True
    """A ledgered `delivery_failed` gives the use back."""

    @model_validator(mode="after")
    def _only_fits_scope(self) -> Self:
        if self.scope == "global" and self.only:
            raise ValueError("a global cap has no `only`; use scope channel, category or campaign")
        known = ChannelName.__args__  # type: ignore[attr-defined]
        unknown = [name for name in self.only if self.scope == "channel" and name not in known]
        if unknown:
            raise ValueError(f"unknown channel {unknown[0]!r} in `only`; one of {', '.join(known)}")
        return self


class MinGap(Strict):
    """The least time between two messages to one user."""

    minutes: Annotated[StrictFloat, Field(ge=0, le=60 * 24 * 31)] = 0
    """0: no minimum."""
    counts: tuple[ClassName, ...] = ("informational", "advertising")
    binds: tuple[ClassName, ...] = ("informational", "advertising")
    refund_failed_delivery: StrictBool = True


class QuietHours(Strict):
    """No message from `start` (included) to `end` (excluded), local wall clock; `end` before `start` runs over midnight."""

    id: Identifier
    start: LocalTime
    end: LocalTime
    channels: tuple[ChannelName, ...] = ()
    """Empty: all channels."""
    classes: tuple[ClassName, ...] = ("informational", "advertising")
    action: Action = "defer"

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.start == self.end:
            raise ValueError("start equals end; for a whole day write 00:00 to 24:00")
        return self


class RegionRule(Strict):
    """What a region's law asks of advertising. The defaults are the strictest.

    `kr` in the default policy follows the Network Act (정보통신망 이용촉진 및 정보보호 등에 관한 법률) article 50: prior
    consent (paragraph 1; existing customers are excepted for six months, item 1), separate consent for 21:00 to 08:00
    (paragraph 3; Enforcement Decree article 61 exempts e-mail), the exact label `(광고)` (paragraph 4), and confirmation
    of the consent every two years (paragraph 8). Have counsel confirm before relying on it.
    """

    ad_consent_required: StrictBool = True
    consent_valid_days: Annotated[StrictInt, Field(ge=0, le=36_500)] = 730
    """Consent older than this is stale; 0: it never goes stale."""
    existing_customer_exception: StrictBool = False
    """`customer_until` in the future stands in for advertising consent (never for night consent)."""
    night_consent_required: StrictBool = True
    night_start: LocalTime = "21:00"
    night_end: LocalTime = "08:00"
    night_exempt_channels: tuple[ChannelName, ...] = ()
    night_action: Action = "drop"
    """What becomes of an advertisement at night without night consent: dropped, or deferred to the night's end."""
    ad_label: Annotated[str, Field(min_length=1, max_length=32)] | None = KOREA_LABEL
    """Exact text an advertisement begins with; null: none asked for."""

    @model_validator(mode="after")
    def _night_has_an_end(self) -> Self:
        if self.night_start == self.night_end:
            raise ValueError("night_start equals night_end; for the whole day write 00:00 to 24:00")
        return self


class KillSwitches(Strict):
    """What is switched off now, whatever else the policy says."""

    all: StrictBool = False
    channels: tuple[ChannelName, ...] = ()
    categories: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = ()
    campaigns: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = ()


class Deferral(Strict):
    """How deferred messages come back: spread by hash over a window after the quiet hours, a limited number of times."""

    spread_minutes: Annotated[StrictFloat, Field(ge=0, le=720)] = 30
    max_attempts: Annotated[StrictInt, Field(ge=0, le=30)] = 3
    """Deferrals of one request; after that, what would be deferred is suppressed."""
    salt: Salt = "deferral"
