"""The scoring model the world hands to the core: a declared, noisy reading of the truth.

It knows what a good model could learn (tastes, campaigns, hours, prices) and none of the individual effects, nor fatigue:
``logit(score) = bias + slope * observable logit + noise``, the noise fixed per (user, thing). A policy can therefore be good
and never perfect, and an estimator that trusts the scores is wrong in a known way. Parameters: `ResponseSettings.head_*`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulators.world.draws import Draws, logistic
from simulators.world.responses import ItemTruth, SendTruth
from simulators.world.settings import ResponseSettings

__all__ = ["HEADS", "ITEM_HEADS", "SEND_HEADS", "WIDGET_HEADS", "item_scores", "send_scores", "widget_scores"]

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]

SEND_HEADS = ("p_click", "p_convert", "p_optout", "uplift")
ITEM_HEADS = ("p_click", "p_convert")
WIDGET_HEADS = ("p_widget",)
HEADS = {"notification": SEND_HEADS, "gateway": ITEM_HEADS, "related": ITEM_HEADS, "widgets": WIDGET_HEADS}


def send_scores(
    response: ResponseSettings,
    draws: Draws,
    truth: SendTruth,
    user: npt.NDArray[np.uint64],
    campaign: npt.NDArray[np.uint64],
) -> F32:
    """f32[m, 4]: SEND_HEADS of each candidate. p_convert and uplift are per send, not per click."""
    click = _read(response, draws, "score.click", truth.observable_click, user, campaign)
    bought = _read(response, draws, "score.convert", truth.observable_convert, user, campaign)
    optout = _read(response, draws, "score.optout", truth.observable_optout, user, campaign)
    # Part of what a send sells would have been bought anyway; the model's guess of the rest is its own, noisier reading.
    gained = _read(response, draws, "score.uplift", truth.observable_convert - 0.4, user, campaign)
    return np.stack([click, click * bought, optout, click * gained], axis=1).astype(np.float32)


def item_scores(
    response: ResponseSettings,
    draws: Draws,
    truth: ItemTruth,
    cart: F64,
    user: npt.NDArray[np.uint64],
    item: npt.NDArray[np.uint64],
) -> F32:
    """f32[m, 2]: ITEM_HEADS. p_convert: an order after a click, by the mean buyer."""
    click = _read(response, draws, "score.item", truth.logit, user, item)
    return np.stack([click, click * cart * logistic(np.array(response.order_base))], axis=1).astype(np.float32)


def widget_scores(
    response: ResponseSettings, draws: Draws, logit: F64, user: npt.NDArray[np.uint64], widget: npt.NDArray[np.uint64]
) -> F32:
    """f32[m, 1]: WIDGET_HEADS."""
    return _read(response, draws, "score.widget", logit, user, widget)[:, None].astype(np.float32)


def _read(
    response: ResponseSettings,
    draws: Draws,
    purpose: str,
    logit: F64,
    user: npt.NDArray[np.uint64],
    thing: npt.NDArray[np.uint64],
) -> F64:
    noise = response.head_noise_sd * draws.normal(purpose, user, thing)
    return logistic(response.head_bias + response.head_slope * logit + noise)
