"""Campaigns: their document, the checks made when one is stored, and the candidates they give.

A candidate is (campaign, item, channel): a campaign that may use three channels gives three, and the value decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from serve_app.batch import Batch, Ragged, lengths_to_offsets
from serve_app.errors import InvalidInput, plain_words
from serve_app.ids import hash_id, hash_ids
from serve_app.kernels import kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.document import PolicyDocument
from serve_app.policy.instants import instant_us
from serve_app.vocabulary import Channel, Delivery, MessageClass, Source

__all__ = ["CampaignDocument", "CampaignTable", "notification_candidates", "parse_campaign", "validate_campaign"]

I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

Text = Annotated[str, Field(min_length=1, max_length=4000)]
_GIVEN = int(Source.given)
_NEVER_BEFORE = 10**14  # March 1973: what is less was meant as seconds or milliseconds


def _micros(value: Any) -> Any:
    """Text with an offset as microseconds; numbers as they are."""
    if not isinstance(value, str):
        return value
    try:
        if datetime.fromisoformat(value).tzinfo is not None:
            return instant_us(value)
    except (ValueError, OverflowError):
        pass
    raise ValueError("write date, time and offset as 2026-01-31T09:00:00+09:00, or microseconds since 1970 UTC")


At = Annotated[int, BeforeValidator(_micros), Field(ge=0, lt=2**63)]


class CampaignDocument(BaseModel):
    """A campaign as its team states it. Times are RFC 3339 text with an offset, or microseconds since 1970 UTC;
    0: no limit. null item: about no one item."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    campaign_id: Annotated[str, Field(min_length=1, max_length=256)]
    title: Annotated[str, Field(max_length=400)] = ""
    text: Text
    item_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    category: Annotated[str, Field(max_length=256)] = ""
    """Scope of category caps and kill switches. Campaigns that name none share one nameless category: a cap on each
    category counts them together, one `only` on named categories passes them by."""
    message_class: Annotated[str, Field(pattern="^(transactional|informational|advertising)$")]
    channels: Annotated[tuple[str, ...], Field(min_length=1, max_length=len(Channel))]
    starts_at: At = 0
    expires_at: At = 0
    """Never sent from then on."""
    cost: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    margin: Annotated[float, Field(ge=-1e12, le=1e12)] = 0.0
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    delivery: Annotated[str, Field(pattern="^(caller|outbox)$")] = "caller"
    """`caller`: the answer is the grant, the caller sends. `outbox`: only a worker sends. What a deferral grants later is
    always sent from the outbox: nobody waits for that answer."""
    segment: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def _sound(self) -> CampaignDocument:
        for name in self.channels:
            if name not in Channel.__members__:
                raise ValueError(f"channels: unknown channel {name!r}; one of {', '.join(Channel.__members__)}")
        if len(set(self.channels)) != len(self.channels):
            raise ValueError("channels: one stands twice")
        if self.expires_at and self.expires_at <= self.starts_at:
            raise ValueError("expires_at: must lie after starts_at")
        return self


def parse_campaign(data: Mapping[str, Any]) -> CampaignDocument:
    """From plain data. Raises InvalidInput naming the field."""
    try:
        return CampaignDocument.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = _WORDS.get(first["type"], plain_words(str(first["msg"])).replace("Tuple", "List"))
        if not where and ": " in message:
            where, message = message.split(": ", 1)
        raise InvalidInput(message, field=where or "campaign", hint=_FIXES.get(first["type"])) from None


_WORDS = {"extra_forbidden": "unknown field", "missing": "missing"}
_FIXES = {
    "extra_forbidden": f"remove it or correct its spelling; there are {', '.join(CampaignDocument.model_fields)}",
    "missing": "state it",
}


def validate_campaign(campaign: CampaignDocument, policy: PolicyDocument, *, regions: Sequence[str] | None = None) -> None:
    """Refuse what could never be sent, or not lawfully, when it is stored and not when it is sent.

    An advertisement begins with the exact label its regions demand (Korea: Network Act article 50(4), `(광고)`).
    `regions`: lower-case codes the campaign is meant for; None: everywhere the policy speaks of. Raises InvalidInput.
    """
    for name in ("starts_at", "expires_at"):
        if 0 < getattr(campaign, name) < _NEVER_BEFORE:
            message = f"{getattr(campaign, name)} microseconds since 1970 are a time before 1973"
            raise InvalidInput(message, field=name, hint="send microseconds, or text as 2026-01-31T09:00:00+09:00")
    if campaign.segment is not None and campaign.segment not in {one.id for one in policy.segments}:
        known = ", ".join(one.id for one in policy.segments) or "none"
        raise InvalidInput(f"no segment {campaign.segment!r} in the policy", field="segment", hint=f"known: {known}")
    if campaign.message_class != MessageClass.advertising.name:
        return
    everywhere = {**policy.regions, "other regions": policy.other_regions}
    chosen = everywhere if regions is None else {c: policy.regions.get(c, policy.other_regions) for c in regions}
    for code, rule in chosen.items():
        if rule.ad_label is not None and not campaign.text.startswith(rule.ad_label):
            raise InvalidInput(
                f"an advertisement for {code} must begin with exactly {rule.ad_label}, this one begins with "
                f"{campaign.text[: len(rule.ad_label) + 2]!r}",
                field="text",
                hint=f"begin the text with {rule.ad_label}, without other brackets or spaces in it",
            )


@dataclass(frozen=True)
class CampaignTable:
    """k campaigns as columns; row = position in `ids`. channels: ragged i8 per campaign. segment i2 as the policy numbers
    them. closed bool: limited to a segment the policy does not know, hence never sent."""

    ids: tuple[str, ...]
    campaign: npt.NDArray[np.uint64]
    item: I32
    category: npt.NDArray[np.uint64]
    message_class: I8
    channels: Ragged
    starts_at: I64
    expires_at: I64
    cost: F64
    margin: F64
    priority: I16
    delivery: I8
    segment: I16
    labelled: Bool
    closed: Bool

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(
        cls, campaigns: Sequence[CampaignDocument], policy: CompiledPolicy, item_rows: Mapping[str, int] | None = None
    ) -> CampaignTable:
        """Columns of `campaigns`; `item_rows` maps item ids to the release's rows (absent or unknown: -1)."""
        rows, k = item_rows or {}, len(campaigns)
        label = policy.document.ad_label
        segments = [policy.segment_ids.index(c.segment) if c.segment in policy.segment_ids else -1 for c in campaigns]
        ids = tuple(c.campaign_id for c in campaigns)
        if len(set(ids)) != k:
            raise InvalidInput("a campaign stands twice", field="campaign_id")
        return cls(
            ids=ids,
            campaign=hash_ids(ids),
            item=np.array([rows.get(c.item_id, -1) if c.item_id else -1 for c in campaigns], np.int32),
            category=np.array([hash_id(c.category) if c.category else 0 for c in campaigns], np.uint64),
            message_class=np.array([MessageClass[c.message_class] for c in campaigns], np.int8),
            channels=Ragged.of([[Channel[name] for name in c.channels] for c in campaigns], np.int8),
            starts_at=np.array([c.starts_at for c in campaigns], np.int64),
            expires_at=np.array([c.expires_at for c in campaigns], np.int64),
            cost=np.array([c.cost for c in campaigns], np.float64),
            margin=np.array([c.margin for c in campaigns], np.float64),
            priority=np.array([c.priority for c in campaigns], np.int16),
            delivery=np.array([Delivery[c.delivery] for c in campaigns], np.int8),
            segment=np.array(segments, np.int16),
            labelled=np.array(
                [label is None or c.message_class != "advertising" or c.text.startswith(label) for c in campaigns], np.bool_
            ),
            closed=np.array([c.segment is not None and s < 0 for c, s in zip(campaigns, segments, strict=True)], np.bool_),
        )

    @classmethod
    def of_catalogue(
        cls, table: pa.Table, policy: CompiledPolicy, item_rows: Mapping[str, int] | None = None
    ) -> CampaignTable:
        """From the catalogue's campaigns table. Raises InvalidInput naming the field of the first unsound row."""
        return cls.of([parse_campaign(row) for row in table.to_pylist()], policy, item_rows)

    def rows_of(self, campaigns: npt.NDArray[np.uint64]) -> I32:
        """i32[n] rows of campaign hashes; -1 where unknown."""
        order = self._order
        if not len(order):
            return np.full(len(campaigns), -1, np.int32)
        place = np.minimum(np.searchsorted(self.campaign, campaigns, sorter=order), len(order) - 1)
        found = order[place]
        return np.where(self.campaign[found] == campaigns, found, -1).astype(np.int32)

    @cached_property
    def widest(self) -> int:
        """Channels of the campaign that allows most."""
        return int(self.channels.lengths.max(initial=0))

    @cached_property
    def _order(self) -> I64:
        return np.argsort(self.campaign, kind="stable")

    @cached_property
    def texts(self) -> pa.StringArray:
        """`ids` as Arrow has them."""
        return pa.array(self.ids, pa.string())

    @cached_property
    def channel_bits(self) -> I64:
        """i64[k]: bits by Channel that a campaign allows."""
        bits = np.zeros(len(self), np.int64)
        owner = np.repeat(np.arange(len(self)), self.channels.lengths)
        np.bitwise_or.at(bits, owner, np.int64(1) << self.channels.values.astype(np.int64))
        return bits

    def live(self, at: I64) -> Ragged:
        """Rows of the campaigns inside their dates at each of n times (i64[n])."""
        open_ = (self.starts_at[None, :] <= at[:, None]) & (
            (self.expires_at == 0)[None, :] | (at[:, None] < self.expires_at)
        )
        open_ &= ~self.closed[None, :]
        return Ragged(np.nonzero(open_)[1].astype(np.int32), lengths_to_offsets(np.count_nonzero(open_, axis=1)))


def notification_candidates(
    batch: Batch,
    table: CampaignTable,
    choice: Ragged | None = None,
    *,
    channels: I8 | None = None,
    items: I32 | None = None,
) -> Batch:
    """The batch with one candidate for each (campaign, item, channel).

    choice: campaign rows (i32) each request may draw on; None: all that are live at its `decided_at`. Flat beside
    choice.values may stand channels (i8, -1: every channel the campaign allows) and items (i32 rows, -1: the campaign's
    own). Raises InvalidInput for an unknown row or a channel the campaign does not allow.
    """
    if choice is None:
        choice = table.live(batch.requests["decided_at"])
    rows = choice.values.astype(np.int64)
    if len(choice) != len(batch):
        raise InvalidInput(f"choices for {len(choice)} requests, the batch has {len(batch)}", field="choice")
    if len(rows) and (rows.min() < 0 or rows.max() >= len(table)):
        raise InvalidInput("no such campaign", field="campaign", hint="PUT it before asking for it")
    allowed = table.channels
    room = len(rows) * table.widest
    pair, channel, kept = np.empty(room, np.int64), np.empty(room, np.int8), np.empty(len(rows), np.int64)
    wanted = np.full(len(rows), -1, np.int8)
    if channels is not None:
        wanted[:] = channels  # which may be memory that kernels were not compiled for
    total = _pairs(rows, wanted, allowed.offsets, allowed.values, pair, channel, kept)
    if len(kept) and kept.min() == 0:
        bad = int(np.flatnonzero(kept == 0)[0])
        name = Channel(int(channels[bad])).name if channels is not None else "none"
        raise InvalidInput(f"campaign {table.ids[rows[bad]]!r} does not allow channel {name}", field="channel")
    per_request = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(kept, out=per_request[1:])
    return _with_columns(batch, table, per_request[choice.offsets], rows[pair[:total]], channel[:total], pair[:total], items)


@kernel
def _pairs(rows: I64, wanted: I8, offsets: I64, allowed: I8, pair: I64, channel: I8, kept: I64) -> int:
    """One (choice, channel) for each channel its campaign allows and the choice wants (-1: every one). How many
    there are, in all and of each choice."""
    total = 0
    for i in range(len(rows)):
        before = total
        for at in range(offsets[rows[i]], offsets[rows[i] + 1]):
            if wanted[i] < 0 or wanted[i] == allowed[at]:
                pair[total], channel[total] = i, allowed[at]
                total += 1
        kept[i] = total - before
    return total


def _with_columns(
    batch: Batch, table: CampaignTable, offsets: I64, row: I64, channel: I8, pair: I64, items: I32 | None
) -> Batch:
    own = table.item[row]
    item = own if items is None else np.where(items[pair] >= 0, items[pair], own)
    at = np.repeat(batch.requests["decided_at"], np.diff(offsets))
    return batch.with_candidates(
        offsets,
        item=item,
        campaign=table.campaign[row],
        channel=channel,
        message_class=table.message_class[row],
        category=table.category[row],
        priority=table.priority[row],
        sources=np.full(len(row), _GIVEN, np.uint32),
        cost=table.cost[row],
        margin=table.margin[row],
        expires_at=table.expires_at[row],
        labelled=table.labelled[row],
        campaign_killed=(at < table.starts_at[row]) | table.closed[row],
        segment=table.segment[row],
        delivery=table.delivery[row],
    )
