"""The world's sends obey its behaviour policy, checked by counts that share no code with the gates."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from functools import cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from serve_app.ids import hash_id
from serve_app.vocabulary import Action, Channel, EventType, MessageClass, Surface
from tests.unit.world_log import behaviour, column, log_table

HOUR = 3_600_000_000
GLOBAL_LIMITS = {"base": 2, "tight": 1, "loose": 3, "picky": 2}


@cache
def sends() -> list[dict[str, Any]]:
    """Granted sends with the user state they were decided on, in order of time, failed deliveries marked."""
    requests, decisions, events = log_table("requests"), log_table("decisions"), log_table("events")
    names = (
        "cell",
        "epoch",
        "zone",
        "region",
        "consent_ad_at",
        "consent_night_at",
        "customer_until",
        "opted_out",
        "reachable",
    )
    state = {
        key: dict(zip(names, values, strict=True))
        for key, values in zip(
            zip(column(requests, "user").tolist(), column(requests, "request_id").tolist(), strict=True),
            zip(*(column(requests, name).tolist() for name in names), strict=True),
            strict=True,
        )
    }
    lost = events.filter(column(events, "type") == EventType.delivery_failed)
    failed = set(zip(column(lost, "user").tolist(), column(lost, "decision_request_id").tolist(), strict=True))
    picked = decisions.filter((column(decisions, "action") == Action.send) & column(decisions, "granted"))
    found = picked.select(["user", "request_id", "ts", "campaign", "category", "channel", "message_class"]).to_pylist()
    for one in found:
        key = one["user"], one["request_id"]
        one.update(state[key], failed=key in failed)
    return sorted(found, key=lambda one: one["ts"])


def counted() -> dict[int, list[dict[str, Any]]]:
    by_user = defaultdict(list)
    for one in sends():
        if one["message_class"] != MessageClass.transactional and not one["failed"]:
            by_user[one["user"]].append(one)
    return by_user


def most_within(times: list[int], window: int) -> list[int]:
    """For each time, how many of the times so far lie within the window that ends there."""
    return [sum(1 for earlier in times[: i + 1] if earlier > at - window) for i, at in enumerate(times)]


def local(one: dict[str, Any]) -> dt.datetime:
    return dt.datetime.fromtimestamp(one["ts"] / 1e6, ZoneInfo(one["zone"]))


def test_no_user_gets_more_than_the_global_cap_of_their_cell() -> None:
    cells = [cell.id for cell in behaviour().cells.variants]
    reached = 0
    for own in counted().values():
        for one, used in zip(own, most_within([o["ts"] for o in own], 72 * HOUR), strict=True):
            limit = GLOBAL_LIMITS[cells[one["cell"]]]
            reached += used == limit
            assert used <= limit
    assert reached > 100


@pytest.mark.parametrize(("scope", "limit"), [("campaign", 1), ("category", 2)])
def test_caps_of_campaigns_and_categories_hold(scope: str, limit: int) -> None:
    for own in counted().values():
        groups = defaultdict(list)
        for one in own:
            if scope == "campaign" or one["message_class"] == MessageClass.advertising:
                groups[one[scope]].append(one["ts"])
        for times in groups.values():
            assert max(most_within(times, 72 * HOUR)) <= limit


def test_at_most_one_push_on_a_local_day_and_two_hours_between_messages() -> None:
    for own in counted().values():
        days = [(one["channel"], local(one).date()) for one in own if one["channel"] in (Channel.push, Channel.web_push)]
        assert len(days) == len(set(days))
        times = [one["ts"] for one in own]
        assert all(later - earlier >= 2 * HOUR for earlier, later in pairwise(times))


def test_advertising_needs_consent_and_at_night_in_korea_a_second_one() -> None:
    korea, at_night = "KR", 0
    for one in sends():
        assert one["reachable"] >> one["channel"] & 1
        assert not one["opted_out"] >> one["channel"] & 1
        if one["message_class"] != MessageClass.advertising:
            continue
        fresh = one["consent_ad_at"] > 0 and one["ts"] - one["consent_ad_at"] <= 730 * 24 * HOUR
        excepted = one["region"] in (korea, "US") and one["customer_until"] > one["ts"]
        lasting = one["region"] == "US" and one["consent_ad_at"] > 0
        assert fresh or excepted or lasting
        hour = local(one).hour
        if one["region"] == korea and (hour >= 21 or hour < 8) and one["channel"] != Channel.email:
            at_night += 1
            assert one["consent_night_at"] > 0
    assert at_night > 0


def test_nobody_is_sent_anything_in_quiet_hours() -> None:
    loud = {Channel.push, Channel.web_push, Channel.sms, Channel.messenger}
    for one in sends():
        if one["message_class"] != MessageClass.transactional and one["channel"] in loud:
            assert 8 <= local(one).hour < 22


def test_users_held_out_get_no_such_sends_and_leave_ghosts() -> None:
    requests, candidates = log_table("requests"), log_table("candidates")
    campaign = hash_id("c-ad-004")
    everything, one_campaign = hash_id("global-5"), hash_id("campaign-ad-004")
    held: dict[int, set[int]] = {everything: set(), one_campaign: set()}
    users: set[int] = set()
    for user, holdouts in zip(column(requests, "user").tolist(), requests["holdouts"].to_pylist(), strict=True):
        for one in holdouts:
            users.add(user)
            if one["arm"]:
                held[one["id"]].add(user)
    for one in sends():
        assert one["message_class"] == MessageClass.transactional or one["user"] not in held[everything]
        assert one["campaign"] != campaign or one["user"] not in held[one_campaign]
    ghosts = candidates.filter(column(candidates, "ghost"))
    assert len(ghosts) > 20
    for user, sent in zip(column(ghosts, "user").tolist(), column(ghosts, "campaign").tolist(), strict=True):
        assert user in held[everything] or (user in held[one_campaign] and sent == campaign)
    for key, share in ((everything, 0.05), (one_campaign, 0.2)):
        assert abs(len(held[key]) / len(users) - share) < 5 * np.sqrt(share * (1 - share) / len(users))


def test_first_would_sends_are_marked_in_both_arms_once_a_user() -> None:
    candidates = log_table("candidates")
    marked = candidates.filter(column(candidates, "ghost_first"))
    ghost = column(marked, "ghost")
    assert ghost.any()
    assert (~ghost).any()
    # Two holdouts, so at most two first would-sends a user.
    assert np.unique(column(marked, "user"), return_counts=True)[1].max() <= 2


def test_cells_are_drawn_as_often_as_declared() -> None:
    requests = log_table("requests")
    mine = requests.filter(column(requests, "surface") == Surface.notification)
    drawn = {}
    for user, epoch, cell, p in zip(*(column(mine, n).tolist() for n in ("user", "epoch", "cell", "p_cell")), strict=True):
        assert drawn.setdefault((user, epoch), (cell, p)) == (cell, p)
    cells = np.array([cell for cell, _ in drawn.values()])
    for index, variant in enumerate(behaviour().cells.variants):
        p = variant.probability
        assert {round(q, 9) for cell, q in drawn.values() if cell == index} == {p}
        assert abs((cells == index).mean() - p) < 5 * np.sqrt(p * (1 - p) / len(cells))


def test_choices_are_made_as_often_as_their_logged_probabilities_say() -> None:
    requests, candidates, decisions = (log_table(name) for name in ("requests", "candidates", "decisions"))
    sent = candidates.filter(column(candidates, "campaign") > 0)
    p, chosen = column(sent, "p_choice"), column(sent, "action") == Action.send
    assert ((p > 0) & (p < 1)).sum() > 500
    for low, high in ((0.0, 0.04), (0.04, 0.08), (0.08, 0.5), (0.5, 1.0)):
        own = (p > low) & (p < high)
        if own.sum() > 50:
            sd = np.sqrt((p[own] * (1 - p[own])).sum())
            assert abs(chosen[own].sum() - p[own].sum()) < 4.5 * sd, (low, high)
    assert not chosen[p == 0].any()
    notification = requests.filter(column(requests, "surface") == Surface.notification)
    none = dict(zip(column(decisions, "request_id").tolist(), column(decisions, "p_none").tolist(), strict=True))
    total = defaultdict(float)
    for request, one in zip(column(sent, "request_id").tolist(), p.tolist(), strict=True):
        total[request] += one
    for request in column(notification, "request_id").tolist():
        assert total[request] + none[request] == pytest.approx(1, abs=1e-12)


def test_slots_are_drawn_with_their_logged_probabilities() -> None:
    """Without a diversity rule the first slot is the plain softmax, and its likeliest candidate wins as often as it says."""
    requests, candidates = log_table("requests"), log_table("candidates")
    whole = set(column(requests.filter(column(requests, "full")), "request_id").tolist())
    slates = candidates.filter(column(candidates, "campaign") == 0)
    mine = np.array([one in whole for one in column(slates, "request_id").tolist()])
    slates = slates.filter(mine)
    value, slot, p_slot = (column(slates, name) for name in ("value", "slot", "p_slot"))
    request = column(slates, "request_id")
    surface = dict(zip(column(requests, "request_id").tolist(), column(requests, "surface").tolist(), strict=True))
    order = np.argsort(request, kind="stable")
    expected, variance, hits = 0.0, 0.0, 0
    for rows in np.split(order, np.flatnonzero(np.diff(request[order])) + 1):
        temperature = behaviour().surfaces.by_name(Surface(surface[int(request[rows[0]])]).name).temperature
        weight = np.exp((value[rows] - value[rows].max()) / temperature)
        share = weight / weight.sum()
        first = np.flatnonzero(slot[rows] == 0)[0]
        if surface[int(request[rows[0]])] != Surface.gateway:  # no diversity there: the softmax itself
            assert p_slot[rows][first] == pytest.approx(share[first], rel=1e-9)
            best = share.max()
            expected, variance, hits = expected + best, variance + best * (1 - best), hits + (share[first] == best)
    assert abs(hits - expected) < 4.5 * np.sqrt(variance)
