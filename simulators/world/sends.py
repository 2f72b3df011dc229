"""Send decisions of the world: candidates scored, decided by the serving core over its ledger, answered by the people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.decide import DecideStatus, decide
from serve_app.ledger.columns import UserState
from serve_app.ledger.protocol import Ledger
from serve_app.policy.compile import CompiledPolicy
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import Action, Delivery, EventType, MessageClass, Surface
from simulators.world.campaigns import AD_LABEL
from simulators.world.happenings import happenings
from simulators.world.model import Model
from simulators.world.opportunities import WIDTH
from simulators.world.responses import SendOutcome, SendTruth, send_outcome, send_truth
from simulators.world.scores import SEND_HEADS, send_scores
from simulators.world.settings import MINUTE_US, SECOND_US
from simulators.world.slates import Asked, request_columns
from simulators.world.state import WorldState

__all__ = ["Core", "Decided", "Reaction", "Sent", "decide_sends", "decision_batch", "ledger_state", "react"]

I64 = npt.NDArray[np.int64]
Rows = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Sent:
    """Possible sends with the truth beside them. Per candidate: user, campaign (rows), channel, truth, what would happen."""

    user: I64
    campaign: I64
    channel: npt.NDArray[np.int8]
    truth: SendTruth
    outcome: SendOutcome


def ledger_state(model: Model, state: WorldState, rows: I64) -> UserState:
    """What the shop's ledger is told of the users `rows`."""
    place = state.place[rows]
    return UserState(
        zone=model.zones[place],
        region=model.regions[place],
        consent_ad_at=state.consent_ad_at[rows],
        consent_night_at=state.consent_night_at[rows],
        customer_until=model.population.customer_until[rows],
        reachable=model.population.reachable[rows],
        opted_out=state.opted_out[rows],
    )


def decision_batch(model: Model, state: WorldState, asked: Rows, day: int, env_seq: int) -> tuple[Batch, Sent]:
    """The batch to decide, and what each candidate would truly do. `asked` in order of time."""
    present = asked["campaign"] >= 0
    offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int64)
    user = asked["user"].astype(np.int64)
    owner = np.repeat(np.arange(len(asked)), np.diff(offsets))
    campaign, channel = asked["campaign"][present].astype(np.int64), asked["channel"][present]
    rows = user[owner]
    hour = model.clock.local_hour(state.place[rows], asked["at"][owner])
    response, people = model.settings.response, model.population
    truth = send_truth(people, model.campaigns, state, response, rows, campaign, channel, hour)
    hashes = people.user[rows], model.campaigns.campaign[campaign]
    step = np.full(len(rows), day, np.int64)
    outcome = send_outcome(model.draws, truth, hashes[0], step, hashes[1], channel)
    heads = send_scores(response, model.draws, truth, *hashes)
    batch = Batch.of_requests(**_request_columns(model, state, asked, day, env_seq))
    batch = batch.with_candidates(offsets, **_candidate_columns(model, asked["at"][owner], campaign, channel), heads=heads)
    batch.meta["heads"] = SEND_HEADS
    return batch, Sent(rows, campaign, channel, truth, outcome)


def _request_columns(model: Model, state: WorldState, asked: Rows, day: int, env_seq: int) -> dict[str, Any]:
    n = len(asked)
    user, at = asked["user"].astype(np.int64), asked["at"].copy()
    ids = asked["request_id"].copy(), asked["root_id"].copy()
    common = request_columns(model, state, Asked(Surface.notification, day, user, at, *ids), env_seq)
    return common | {
        "parent_request_id": asked["parent_id"].copy(),
        "attempt": asked["attempt"].copy(),
        "origin": asked["origin"].copy(),
        "trigger_event_id": asked["trigger"].copy(),
        "width": np.full(n, WIDTH, np.int32),
        "slots": np.ones(n, np.int32),
        "log_rate": np.ones(n),
        "segments": np.zeros(n, np.uint64),
        "segments_at": np.zeros(n, np.int64),
        "expires_at": np.zeros(n, np.int64),
    }


def _candidate_columns(model: Model, at: I64, campaign: I64, channel: npt.NDArray[np.int8]) -> dict[str, Any]:
    all_of = model.campaigns
    starts, ends = all_of.starts_at[campaign], all_of.expires_at[campaign]
    kind = all_of.message_class[campaign]
    labelled = np.array([text.startswith(AD_LABEL) for text in all_of.text])[campaign]
    n = len(campaign)
    return {
        "item": all_of.item[campaign],
        "campaign": all_of.campaign[campaign],
        "channel": channel,
        "message_class": kind,
        "category": model.categories[all_of.category[campaign]],
        "priority": all_of.priority[campaign],
        "cost": all_of.cost[campaign],
        "margin": all_of.margin[campaign],
        "expires_at": ends,
        "labelled": labelled | (kind != MessageClass.advertising),
        "campaign_killed": at < starts,
        "segment": np.full(n, -1, np.int16),
        "delivery": np.full(n, Delivery.caller, np.int8),
    }


@dataclass(frozen=True, slots=True)
class Core:
    """The serving core as the world meets it."""

    policy: CompiledPolicy
    ledger: Ledger
    stage: Decision = field(default_factory=Decision)


@dataclass(frozen=True, slots=True)
class Decided:
    """A decided batch. granted i64[k]: candidate positions that were sent; slot i32[k] theirs; until i64[n]: end of each
    request's deferral, 0 where there is none; versions i64[n] (-1: nothing written) and granted_rows bool[n]: the ledger's
    answer."""

    batch: Batch
    sent: Sent
    granted: I64
    slot: npt.NDArray[np.int32]
    until: I64
    versions: I64
    granted_rows: npt.NDArray[np.bool_]


def decide_sends(model: Model, state: WorldState, core: Core, asked: Rows, day: int, env_seq: int) -> Decided:
    """Score, decide, commit."""
    batch, sent = decision_batch(model, state, asked, day, env_seq)
    answer = decide(core.ledger, core.stage, batch, Context(policies=(core.policy,)), item_hashes=model.items.item)
    done = answer.batch
    granted = np.flatnonzero((done.candidates["slot"] >= 0) & answer.granted[done.owner])
    return Decided(
        batch=done,
        sent=sent,
        granted=granted,
        slot=done.candidates["slot"][granted],
        until=np.where(done.requests["action"] == Action.defer, done.requests["until"], 0),
        versions=np.where(answer.status == DecideStatus.committed, answer.versions, -1),
        granted_rows=answer.granted,
    )


@dataclass(frozen=True, slots=True)
class Reaction:
    """What came of k sends: events, the click events in the sends' order, and bool[k] each: clicked, bought."""

    events: Rows
    clicks: Rows
    click: npt.NDArray[np.bool_]
    convert: npt.NDArray[np.bool_]


def react(model: Model, decided: Decided) -> Reaction:
    """Events of the sends granted: delivered or failed, seen, click or dismiss, opt-out, minutes to hours after the send.
    What follows a click is the caller's to make."""
    at, batch, sent = decided.granted, decided.batch, decided.sent
    owner = batch.owner[at]
    sent_at, ids = batch.requests["decided_at"][owner], batch.requests["request_id"][owner]
    out = {name: getattr(sent.outcome, name)[at] for name in ("fail", "seen", "click", "convert", "optout", "dismiss")}
    wait = model.draws.exponential("send.wait", model.population.user[sent.user[at]], ids) * 40 * MINUTE_US
    seen_at = sent_at + 10 * SECOND_US + np.minimum(wait.astype(np.int64), 12 * 60 * MINUTE_US)
    times = {
        EventType.delivery_failed: (out["fail"], sent_at + 2 * SECOND_US),
        EventType.delivered: (~out["fail"], sent_at + 2 * SECOND_US),
        EventType.seen: (out["seen"], seen_at),
        EventType.click: (out["click"], seen_at + 4 * SECOND_US),
        EventType.dismiss: (out["dismiss"], seen_at + 3 * SECOND_US),
        EventType.opt_out: (out["optout"], seen_at + 30 * SECOND_US),
    }
    every = happenings(
        len(at),
        user=sent.user[at],
        request_id=ids,
        slot=decided.slot,
        campaign=sent.campaign[at],
        channel=sent.channel[at],
        item=model.campaigns.item[sent.campaign[at]],
    )
    parts = {}
    for kind, (happens, when) in times.items():
        parts[kind] = every[happens]
        parts[kind]["type"], parts[kind]["ts"] = kind, when[happens]
    return Reaction(np.concatenate(list(parts.values())), parts[EventType.click], out["click"], out["convert"])
