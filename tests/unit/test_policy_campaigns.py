"""Campaigns: refused when stored, not when sent; candidates by channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serve_app.batch import Batch, Ragged
from serve_app.campaigns import CampaignTable, notification_candidates, parse_campaign, validate_campaign
from serve_app.catalogue import table_of
from serve_app.errors import InvalidInput
from serve_app.ids import hash_id
from serve_app.policy.compile import compile_policy
from serve_app.policy.document import DEFAULT_POLICY, load_policy, parse_policy
from serve_app.vocabulary import Channel
from tests.unit.decision_support import DAY, HEADS, at, compiled

NOW = at("2026-03-10T12:00:00")
KOREA = load_policy(DEFAULT_POLICY)


def campaign(**fields: Any) -> dict[str, Any]:
    base = {
        "campaign_id": "spring", "text": "(광고) 하인드샵 봄 할인", "message_class": "advertising",
        "channels": ["push", "email"],
    }  # fmt: skip
    return base | fields


@pytest.mark.parametrize("text", ["봄 할인", "[광고] 봄", "(광 고) 봄", " (광고) 봄", "봄 (광고)", "（광고） 봄"])
def test_an_advertisement_without_the_exact_label_is_refused_when_stored(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"text: an advertisement for kr must begin with exactly \(광고\)"):
        validate_campaign(parse_campaign(campaign(text=text)), KOREA)


def test_labelled_ads_other_classes_and_regions_without_a_label_are_accepted() -> None:
    validate_campaign(parse_campaign(campaign()), KOREA)
    validate_campaign(parse_campaign(campaign(text="주문 접수", message_class="transactional")), KOREA)
    validate_campaign(parse_campaign(campaign(text="Spring sale")), KOREA, regions=["us"])
    with pytest.raises(InvalidInput, match="for jp must begin"):
        validate_campaign(parse_campaign(campaign(text="Spring sale")), KOREA, regions=["us", "jp"])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"channels": ["fax"]}, "channels: unknown channel 'fax'; one of push"),
        ({"channels": []}, "channels"),
        ({"channels": ["push", "push"]}, "channels: one stands twice"),
        ({"starts_at": 5, "expires_at": 5}, "expires_at: must lie after starts_at"),
        ({"message_class": "spam"}, "message_class"),
        ({"text": ""}, "text"),
        (
            {"colour": "red"},
            r"colour: unknown field \(remove it or correct its spelling; there are campaign_id",
        ),
        ({"expires_at": "2026-12-01"}, "expires_at: write date, time and offset as"),
        ({"expires_at": "2026-12-01T00:00:00"}, "expires_at: write date, time and offset as"),
        ({"expires_at": 2**63}, "expires_at: .*less than"),
        ({"cost": float("nan")}, "cost"),
        ({"priority": 10**6}, "priority"),
    ],
)
def test_a_malformed_campaign_names_its_field(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(InvalidInput, match=error):
        parse_campaign(campaign(**fields))


@pytest.mark.parametrize("sent", [1_790_000_000, 1_790_000_000_000])
def test_seconds_or_milliseconds_are_not_taken_for_microseconds(sent: int) -> None:
    with pytest.raises(InvalidInput, match=r"expires_at: \d+ microseconds since 1970 are a time before 1973 \(send micros"):
        validate_campaign(parse_campaign(campaign(expires_at=sent)), KOREA)


def test_times_may_be_text_with_an_offset() -> None:
    stored = parse_campaign(campaign(starts_at="2026-12-01T09:00:00+09:00", expires_at="2026-12-02T00:00:00Z"))
    assert (stored.starts_at, stored.expires_at) == (at("2026-12-01T09:00:00"), at("2026-12-02T09:00:00"))
    assert parse_campaign(stored.model_dump(mode="json")) == stored


def test_a_segment_the_policy_does_not_define_is_refused_and_later_never_sent() -> None:
    limited = parse_campaign(campaign(segment="vip"))
    with pytest.raises(
        InvalidInput, match=r"segment: no segment 'vip' in the policy \(known: window-shoppers, korea-trial\)"
    ):
        validate_campaign(limited, KOREA)
    table = CampaignTable.of([limited], compiled())
    assert notification_candidates(requests(1), table, Ragged.of([[0]], np.int32)).candidates["campaign_killed"].all()
    assert len(table.live(np.array([NOW])).values) == 0
    known = parse_policy({"name": "a", "segments": [{"id": "vip", "where": {"kind": "bucket", "salt": "v", "percent": 5}}]})
    validate_campaign(parse_campaign(campaign(segment="vip")), known.model_copy(update={"regions": KOREA.regions}))
    assert CampaignTable.of([limited], compile_policy(known, heads={"notification": HEADS})).segment.tolist() == [0]


def requests(n: int) -> Batch:
    return Batch.of_requests(
        request_id=np.arange(1, n + 1).astype(np.uint64),
        user=np.arange(1, n + 1).astype(np.uint64),
        decided_at=np.full(n, NOW),
    )


def table() -> CampaignTable:
    rows = [
        campaign(),
        campaign(campaign_id="later", starts_at=NOW + 1, channels=["sms"], text="no label"),
        campaign(campaign_id="over", expires_at=NOW, category="shoes"),
        campaign(campaign_id="item", item_id="i7", channels=["push"], priority=3, delivery="outbox"),
    ]
    return CampaignTable.of([parse_campaign(row) for row in rows], compiled(), {"i7": 7})


def test_every_live_campaign_gives_a_candidate_for_each_of_its_channels() -> None:
    out = notification_candidates(requests(2), table())
    assert out.offsets.tolist() == [0, 3, 6]
    rows = out.candidates
    assert rows["campaign"][:3].tolist() == [hash_id("spring"), hash_id("spring"), hash_id("item")]
    assert rows["channel"][:3].tolist() == [Channel.push, Channel.email, Channel.push]
    assert rows["item"][:3].tolist() == [-1, -1, 7]
    assert rows["priority"][:3].tolist() == [0, 0, 3]
    assert not rows["campaign_killed"].any()


def test_a_choice_limits_campaigns_channels_and_items() -> None:
    choice = Ragged.of([[0, 1], [], [3, 2]], np.int32)
    channels, items = np.array([Channel.email, -1, -1, -1], np.int8), np.array([4, -1, -1, 9], np.int32)
    out = notification_candidates(requests(3), table(), choice, channels=channels, items=items)
    assert out.offsets.tolist() == [0, 2, 2, 5]
    assert out.candidates["channel"].tolist() == [Channel.email, Channel.sms, Channel.push, Channel.push, Channel.email]
    assert out.candidates["item"].tolist() == [4, -1, 7, 9, 9]
    assert out.candidates["campaign_killed"].tolist() == [False, True, False, False, False]
    assert out.candidates["labelled"].tolist() == [True, False, True, True, True]


def test_unknown_rows_and_channels_not_allowed_are_refused() -> None:
    with pytest.raises(InvalidInput, match="no such campaign"):
        notification_candidates(requests(1), table(), Ragged.of([[9]], np.int32))
    with pytest.raises(InvalidInput, match="campaign 'item' does not allow channel sms"):
        notification_candidates(requests(1), table(), Ragged.of([[3]], np.int32), channels=np.array([Channel.sms], np.int8))


def test_the_catalogues_table_is_read_and_hashes_are_found() -> None:
    names = ("campaign_id", "text", "message_class", "channels")
    columns = {name: [campaign()[name]] for name in names} | {
        "title": [""], "item_id": [None], "category": [""], "starts_at": [0], "expires_at": [NOW + DAY], "cost": [1.0],
        "margin": [2.0], "priority": [1], "delivery": ["caller"], "segment": [None],
    }  # fmt: skip
    own = CampaignTable.of_catalogue(table_of("campaigns", columns), compiled())
    assert own.ids == ("spring",)
    hashes = np.array([hash_id("spring"), hash_id("autumn")], np.uint64)
    assert own.rows_of(hashes).tolist() == [0, -1]
    assert CampaignTable.of([], compiled()).rows_of(hashes).tolist() == [-1, -1]
