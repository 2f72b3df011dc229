"""How people respond: the true probabilities, and the potential outcomes drawn from them. Pure functions.

Every probability is a function of who the user is, the state they are in, and what is done to them, so a closed loop under
any policy calls the very same functions. Every outcome compares a probability with a uniform keyed by (user, day, what was
shown), so that the same action under two policies meets the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.vocabulary import MessageClass
from simulators.world.campaigns import Campaigns
from simulators.world.draws import Draws, logistic
from simulators.world.items import Items, affinity, price_fit
from simulators.world.population import Population
from simulators.world.settings import ResponseSettings
from simulators.world.state import WorldState
from simulators.world.widgets import Widgets

__all__ = [
    "ItemTruth",
    "SendOutcome",
    "SendTruth",
    "activity_probability",
    "cart_probability",
    "examination",
    "item_truth",
    "order_probability",
    "send_outcome",
    "send_truth",
    "widget_relevance",
]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# How a channel changes the click logit and the opt-out logit, by Channel; how likely a delivered message is noticed.
_CHANNEL_CLICK = np.array([0.0, -0.4, -0.5, -0.2, 0.1, 0.3])
_CHANNEL_OPTOUT = np.array([0.0, 0.2, -0.4, 0.6, 0.2, -1.0])
_CHANNEL_SEEN = np.array([0.75, 0.6, 0.45, 0.9, 0.85, 0.7])
_CLASS_CLICK = np.array([1.2, 0.5, 0.0])
_CLASS_OPTOUT = np.array([-3.0, -1.0, 0.0])


def activity_probability(population: Population, state: WorldState, response: ResponseSettings, weekend: Bools) -> F64:
    """f64[n]: chance that each user opens the app on a day (before knowing who has joined)."""
    logit = population.activity + response.weekend_activity * weekend
    return logistic(logit + state.engagement - response.fatigue_activity * state.fatigue)


@dataclass(frozen=True, slots=True)
class SendTruth:
    """Per possible send, f64[m]. click, convert, optout, dismiss are unconditional given that it is sent: click includes
    delivery and being seen; convert implies click. observable_click, observable_convert, observable_optout are logits
    without the individual effects and the state, the most a model without them could know."""

    fail: F64
    seen: F64
    click: F64
    convert: F64
    optout: F64
    dismiss: F64
    observable_click: F64
    observable_convert: F64
    observable_optout: F64


def send_truth(
    population: Population,
    campaigns: Campaigns,
    state: WorldState,
    response: ResponseSettings,
    user: I64,
    campaign: I64,
    channel: npt.NDArray[np.int8],
    local_hour: npt.NDArray[np.int8],
) -> SendTruth:
    """True response to each possible send; arrays of m rows (user and campaign are row numbers)."""
    match = affinity(population.taste[user], campaigns.vector[campaign])
    kind = campaigns.message_class[campaign]
    hour = np.cos((local_hour + 0.5 - population.hour[user]) * (2 * np.pi / 24))
    click_known = (
        response.click_base
        + _CHANNEL_CLICK[channel]
        + _CLASS_CLICK[kind]
        + response.click_affinity * match
        + campaigns.appeal[campaign]
        + 0.3 * hour
    )
    convert_known = response.convert_base + 0.4 * match + 0.5 * campaigns.appeal[campaign]
    optout_known = response.optout_base + _CHANNEL_OPTOUT[channel] + _CLASS_OPTOUT[kind] - 0.3 * match
    fatigue = state.fatigue[user]
    fail = np.asarray(response.delivery_failure)[channel]
    seen = _CHANNEL_SEEN[channel]
    # click_known speaks of a send, so the chance given that it is seen is scaled up and bounded.
    hidden = population.responsiveness[user] - response.fatigue_click * fatigue + 0.3 * state.engagement[user]
    given_seen = logistic(click_known + hidden - np.log(seen))
    click = (1 - fail) * seen * given_seen
    bought = logistic(convert_known + population.buying[user] - state.satiation[user])
    convert = np.where(kind == MessageClass.transactional, 0.0, click * bought)
    leaves = logistic(optout_known + population.irritability[user] + response.fatigue_optout * fatigue)
    dismiss = (1 - fail) * seen * (1 - given_seen) * logistic(response.dismiss_base + population.irritability[user])
    return SendTruth(
        fail,
        seen,
        click,
        convert,
        (1 - fail) * seen * leaves,
        dismiss,
        click_known,
        np.where(kind == MessageClass.transactional, -12.0, convert_known),
        optout_known,
    )


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """What would happen if it were sent, bool[m]: potential outcomes of every candidate, sent or not."""

    fail: Bools
    seen: Bools
    click: Bools
    convert: Bools
    optout: Bools
    dismiss: Bools

    def bits(self) -> npt.NDArray[np.uint8]:
        """u8[m]: fail, seen, click, convert, optout, dismiss from bit 0 on."""
        out = np.zeros(len(self.fail), np.uint8)
        for bit, one in enumerate((self.fail, self.seen, self.click, self.convert, self.optout, self.dismiss)):
            out |= one.astype(np.uint8) << np.uint8(bit)
        return out


def send_outcome(
    draws: Draws,
    truth: SendTruth,
    user: npt.NDArray[np.uint64],
    step: I64,
    campaign: npt.NDArray[np.uint64],
    channel: npt.NDArray[np.int8],
) -> SendOutcome:
    """Draw them. `user` and `campaign` are hashes and `step` numbers the time, so the key means the same in every run.

    fail, seen and the reaction are nested: one uniform each, and P(click) is what `truth.click` says."""
    key = (user, step, campaign, channel)
    delivered = draws.uniform("send.fail", *key) >= truth.fail
    seen = delivered & (draws.uniform("send.seen", *key) < truth.seen)
    reach = (1 - truth.fail) * truth.seen
    reaction = draws.uniform("send.reaction", *key) * reach
    click = seen & (reaction < truth.click)
    dismiss = seen & ~click & (reaction < truth.click + truth.dismiss)
    convert = click & (draws.uniform("send.convert", *key) * truth.click < truth.convert)
    optout = seen & (draws.uniform("send.optout", *key) * reach < truth.optout)
    return SendOutcome(~delivered, seen, click, convert, optout, dismiss)


@dataclass(frozen=True, slots=True)
class ItemTruth:
    """Per (user, item), f64[m]: relevance = chance of a click once examined; `logit` of it; `match` of taste and item."""

    relevance: F64
    logit: F64
    match: F64
    price: F64


def item_truth(population: Population, items: Items, response: ResponseSettings, user: I64, item: I64) -> ItemTruth:
    """True interest of users in items; arrays of m row numbers."""
    match = affinity(population.taste[user], items.vector[item])
    price = price_fit(population.price_level[user], items.price[item], items.category[item])
    logit = response.relevance_base + response.relevance_affinity * match + 0.5 * items.appeal[item] + price
    return ItemTruth(logistic(logit), logit, match, price)


def widget_relevance(population: Population, widgets: Widgets, response: ResponseSettings, user: I64, widget: I64) -> F64:
    """Logit of a click on a widget's heading once it is examined."""
    match = affinity(population.taste[user], widgets.vector[widget])
    result: F64 = response.relevance_base - 0.3 + widgets.base[widget] + 0.8 * match
    return result


def examination(slot: npt.NDArray[np.int32], response: ResponseSettings) -> F64:
    """Chance that a slot is looked at: (1 + slot) ** -decay (position-based model; Craswell et al. 2008)."""
    result: F64 = (1.0 + slot.astype(np.float64)) ** -response.examination_decay
    return result


def cart_probability(response: ResponseSettings, truth: ItemTruth) -> F64:
    """Viewed item into the cart."""
    return logistic(response.cart_base + 0.5 * truth.match + 0.6 * truth.price)


def order_probability(population: Population, state: WorldState, response: ResponseSettings, user: I64) -> F64:
    """Item in the cart ordered in the same session."""
    return logistic(response.order_base + population.buying[user] - state.satiation[user])
