"""The world's campaigns: advertising with the label Korean law demands, informational and transactional messages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.ids import hash_ids
from serve_app.vocabulary import Channel, MessageClass
from simulators.world.draws import Draws, cumulative_pick
from simulators.world.items import Items
from simulators.world.names import CATEGORIES
from simulators.world.settings import DAY_US, WorldSettings

__all__ = ["AD_LABEL", "CHANNEL_COST", "Campaigns", "build_campaigns"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

AD_LABEL = "(광고)"  # Network Act (정보통신망법) article 50(4): the text begins with exactly this
_SENDER = "하인드샵"
CHANNEL_COST = (0.5, 0.3, 1.0, 18.0, 8.0, 0.1)  # KRW a send, by Channel
_CHANNEL_SETS = (
    (Channel.push, Channel.email),
    (Channel.push, Channel.messenger),
    (Channel.push, Channel.sms),
    (Channel.push, Channel.web_push, Channel.in_app),
    (Channel.email, Channel.messenger),
)
_EVERGREEN_DAYS = 730
_TRANSACTIONAL = (("주문이 접수되었습니다", "order-received"), ("배송이 시작되었습니다", "shipped"))
_INFORMATIONAL = (("찜한 상품이 재입고되었습니다", "back-in-stock"), ("적립금이 곧 소멸됩니다", "points-expiring"))
_OFFERS = (
    "오늘만 20% 할인",
    "Weekend deal",
    "신상품 입고",
    "단독 특가",
    "New season picks",
    "한정 쿠폰",
    "다시 만난 베스트",
)


@dataclass(frozen=True, slots=True)
class Campaigns:
    """k campaigns as columns. `channels` lists Channel values, `channel_table` i8[k, 3] the same padded by repetition;
    `item` is an item row or -1; `category` the index whose vector decides who likes it; `appeal` is latent."""

    campaign_id: list[str]
    campaign: npt.NDArray[np.uint64]
    title: list[str]
    text: list[str]
    message_class: npt.NDArray[np.int8]
    channels: list[tuple[Channel, ...]]
    channel_table: npt.NDArray[np.int8]
    item: npt.NDArray[np.int32]
    category: npt.NDArray[np.int16]
    vector: F64
    starts_at: I64
    expires_at: I64
    cost: F64
    margin: F64
    priority: npt.NDArray[np.int16]
    appeal: F64

    def __len__(self) -> int:
        return len(self.campaign)

    def running(self, at: int) -> I64:
        """Rows of campaigns inside their dates at `at`."""
        return np.flatnonzero((self.starts_at <= at) & (at < self.expires_at))

    def of_class(self, message_class: MessageClass) -> I64:
        """Rows of one message class."""
        return np.flatnonzero(self.message_class == message_class)


def build_campaigns(settings: WorldSettings, items: Items, draws: Draws) -> Campaigns:
    """Two transactional, two informational campaigns, the rest advertising; half of those run on after the world's end."""
    rows = np.arange(settings.campaigns)
    classes = np.full(settings.campaigns, int(MessageClass.advertising), np.int8)
    classes[:2], classes[2:4] = int(MessageClass.transactional), int(MessageClass.informational)
    category = _categories(draws, rows)
    item = _items(draws, rows, classes, category, items)
    starts, ends = _dates(settings, draws, rows, classes)
    channels: list[tuple[Channel, ...]] = [
        _CHANNEL_SETS[i] for i in draws.below("campaign.channels", len(_CHANNEL_SETS), rows)
    ]
    title, text = _texts(draws, rows, item, items)
    ids = [_identifier(int(row)) for row in rows]
    cost = np.array([max(CHANNEL_COST[c] for c in used) for used in channels])
    typical = np.array([one.price for one in CATEGORIES], np.float64)[category]
    margin: F64 = np.where(item >= 0, items.margin[item], 0.2 * typical)
    return Campaigns(
        campaign_id=ids,
        campaign=hash_ids(ids),
        title=title,
        text=text,
        message_class=classes,
        channels=channels,
        channel_table=np.array([(used * 3)[:3] for used in channels], np.int8),
        item=item,
        category=category,
        vector=_vectors(items, item, category),
        starts_at=starts,
        expires_at=ends,
        cost=cost,
        margin=np.round(margin, 2),
        priority=np.array([100, 50, 10], np.int16)[classes],
        appeal=0.4 * draws.normal("campaign.appeal", rows),
    )


def _identifier(row: int) -> str:
    if row < 2:
        return f"c-{_TRANSACTIONAL[row][1]}"
    if row < 4:
        return f"c-{_INFORMATIONAL[row - 2][1]}"
    return f"c-ad-{row:03d}"


def _categories(draws: Draws, rows: I64) -> npt.NDArray[np.int16]:
    shares = [one.share for one in CATEGORIES]
    return cumulative_pick(shares, draws.uniform("campaign.category", rows)).astype(np.int16)


def _items(
    draws: Draws, rows: I64, classes: npt.NDArray[np.int8], category: npt.NDArray[np.int16], items: Items
) -> npt.NDArray[np.int32]:
    """Two in five advertising campaigns are about one item that sells from the first day to the last."""
    chosen = np.full(len(rows), -1, np.int32)
    always = (items.launch_day < 0) & (items.sold_out_day > 1 << 20)
    about_one = (draws.uniform("campaign.about_item", rows) < 0.4) & (classes == MessageClass.advertising)
    for row in np.flatnonzero(about_one):
        pool = np.flatnonzero(always & (items.category == category[row]))
        if len(pool):
            best = pool[np.argsort(-items.popularity[pool], kind="stable")[:20]]
            chosen[row] = best[draws.below("campaign.item", len(best), row)[0]]
    return chosen


def _vectors(items: Items, item: npt.NDArray[np.int32], category: npt.NDArray[np.int16]) -> F64:
    """Of the item, or the mean of the category's items (zeros for an empty category)."""
    vectors = np.zeros((len(item), items.vector.shape[1]))
    for row, (one, kind) in enumerate(zip(item, category, strict=True)):
        members = items.vector[items.category == kind]
        if one >= 0:
            vectors[row] = items.vector[one]
        elif len(members):
            vectors[row] = members.mean(axis=0)
    return vectors


def _dates(settings: WorldSettings, draws: Draws, rows: I64, classes: npt.NDArray[np.int8]) -> tuple[I64, I64]:
    """Whole days UTC. Advertising campaigns of odd rows last a third to all of the world; the others are evergreen."""
    begin = np.floor(draws.uniform("campaign.begin", rows) * settings.days * 0.6).astype(np.int64)
    lasts = np.ceil((0.33 + 0.67 * draws.uniform("campaign.lasts", rows)) * settings.days).astype(np.int64)
    bounded = (classes == MessageClass.advertising) & (rows % 2 == 1)
    start = settings.start_us + np.where(bounded, begin, -30) * DAY_US
    end = settings.start_us + np.where(bounded, begin + lasts, settings.days + _EVERGREEN_DAYS) * DAY_US
    return start, end


def _texts(draws: Draws, rows: I64, item: npt.NDArray[np.int32], items: Items) -> tuple[list[str], list[str]]:
    """(titles, texts). Every advertising text carries the label, the sender and a free way to opt out."""
    offers = draws.below("campaign.offer", len(_OFFERS), rows)
    titles, texts = [], []
    for row, offer, about in zip(rows, offers, item, strict=True):
        if row < 4:
            title = (*_TRANSACTIONAL, *_INFORMATIONAL)[row][0]
            titles.append(title)
            texts.append(f"[{_SENDER}] {title}")
            continue
        subject = items.title[about] if about >= 0 else "추천 상품 모음"
        titles.append(f"{AD_LABEL} {_OFFERS[offer]}: {subject}")
        texts.append(f"{AD_LABEL} {_SENDER} {_OFFERS[offer]}! {subject} 무료수신거부 080-000-0000")
    return titles, texts
