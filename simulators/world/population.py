"""The people of a world: what the shop can know of them, and the individual effects it cannot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.ids import hash_ids
from serve_app.vocabulary import Channel
from simulators.world.draws import Draws, cumulative_pick
from simulators.world.places import PLACES
from simulators.world.settings import DAY_US, WorldSettings

__all__ = ["TASTE_DIMS", "Population", "build_population"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

TASTE_DIMS = 8
_REGION_TASTE_SD = 0.35
_REACH = {  # share of users who can be reached, by channel
    Channel.push: 0.80,
    Channel.web_push: 0.25,
    Channel.email: 0.70,
    Channel.sms: 0.60,
    Channel.messenger: 0.50,
    Channel.in_app: 0.95,
}
# Hours at which people open the app: before work, lunch, evening, deep night.
_HOURS = np.array([8.2, 12.5, 20.3, 23.6])
_HOUR_SD = np.array([1.0, 1.2, 1.6, 1.3])
_HOUR_SHARE = np.array([0.18, 0.22, 0.48, 0.12])


@dataclass(frozen=True, slots=True)
class Population:
    """n users as columns, in order of their hashes, as the log lies. Observable: user .. bot; `bot` shows itself only
    through later events.
    Latent (no log shows them): taste .. irritability."""

    user_id: list[str]
    user: npt.NDArray[np.uint64]
    place: npt.NDArray[np.int16]
    joined_at: I64
    joined_day: npt.NDArray[np.int32]
    device: npt.NDArray[np.int8]
    reachable: npt.NDArray[np.uint16]
    opted_out: npt.NDArray[np.uint16]
    consent_ad_at: I64
    consent_night_at: I64
    customer_until: I64
    bot: npt.NDArray[np.bool_]
    taste: F64
    price_level: F64
    activity: F64
    hour: F64
    responsiveness: F64
    buying: F64
    irritability: F64

    def __len__(self) -> int:
        return len(self.user)


def build_population(settings: WorldSettings, draws: Draws) -> Population:
    """The same user id has the same person in every world of one seed, whatever its size."""
    width = max(7, len(str(settings.users)))
    ids = [f"u{number:0{width}d}" for number in range(settings.users)]
    order = np.argsort(hash_ids(ids))
    ids = [ids[row] for row in order]
    user = hash_ids(ids)
    response = settings.response
    place = cumulative_pick([one.share for one in PLACES], draws.uniform("user.place", user)).astype(np.int16)
    joined_day, joined_at = _joining(settings, draws, user)
    device = (cumulative_pick([0.6, 0.25, 0.15], draws.uniform("user.device", user)) + 1).astype(np.int8)
    ad, night = _consents(settings, draws, user, joined_at)
    return Population(
        user_id=ids,
        user=user,
        place=place,
        joined_at=joined_at,
        joined_day=joined_day,
        device=device,
        reachable=_channel_bits(draws, user, "user.reach", list(_REACH.values())),
        opted_out=_channel_bits(draws, user, "user.opted_out", [0.015] * len(Channel)),
        consent_ad_at=ad,
        consent_night_at=night,
        customer_until=_customer_until(settings, draws, user),
        bot=draws.uniform("user.bot", user) < settings.bot_share,
        taste=_tastes(draws, user, place),
        price_level=0.6 * draws.normal("user.price", user),
        activity=response.activity_mean + response.activity_sd * draws.normal("user.activity", user),
        hour=_preferred_hour(draws, user),
        responsiveness=response.responsiveness_sd * draws.normal("user.responsiveness", user),
        buying=response.buying_sd * draws.normal("user.buying", user),
        irritability=response.irritability_sd * draws.normal("user.irritability", user),
    )


def _joining(settings: WorldSettings, draws: Draws, user: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int32], I64]:
    """(day of the world on which each user joins, negative: before it began; instant)."""
    newcomer = draws.uniform("user.newcomer", user) < settings.newcomer_share
    age = draws.uniform("user.age", user)
    day = np.where(newcomer, np.floor(age * settings.days), -1 - np.floor(age * 900)).astype(np.int32)
    second = (draws.uniform("user.joined", user) * 86_400).astype(np.int64) * 1_000_000
    return day, settings.start_us + day.astype(np.int64) * DAY_US + second


def _consents(settings: WorldSettings, draws: Draws, user: npt.NDArray[np.uint64], joined_at: I64) -> tuple[I64, I64]:
    """Advertising consent (78 %), given between joining and the world's first day; night consent (30 % of those)."""
    latest = np.maximum(settings.start_us, joined_at)
    given = joined_at + ((latest - joined_at) * draws.uniform("user.consent.when", user) ** 2).astype(np.int64)
    ad = np.where(draws.uniform("user.consent.ad", user) < 0.78, given, 0)
    night = np.where((draws.uniform("user.consent.night", user) < 0.30) & (ad > 0), given, 0)
    return ad, night


def _customer_until(settings: WorldSettings, draws: Draws, user: npt.NDArray[np.uint64]) -> I64:
    """A fifth of all users bought of late: their existing-customer exception ends up to 180 days from the start."""
    left = (draws.uniform("user.customer.until", user) * 180 * DAY_US).astype(np.int64)
    return np.where(draws.uniform("user.customer", user) < 0.2, settings.start_us + left, 0)


def _channel_bits(draws: Draws, user: npt.NDArray[np.uint64], purpose: str, shares: list[float]) -> npt.NDArray[np.uint16]:
    bits = np.zeros(len(user), np.uint16)
    for channel, share in zip(Channel, shares, strict=True):
        has = draws.uniform(purpose, user, int(channel)) < share
        bits |= (has.astype(np.uint16) << np.uint16(channel)).astype(np.uint16)
    return bits


def _tastes(draws: Draws, user: npt.NDArray[np.uint64], place: npt.NDArray[np.int16]) -> F64:
    """f64[n, TASTE_DIMS]: a shared shift per place plus the user's own."""
    dims = np.arange(TASTE_DIMS)
    shared = _REGION_TASTE_SD * draws.normal("place.taste", np.arange(len(PLACES))[:, None], dims[None, :])
    own = draws.normal("user.taste", user[:, None], dims[None, :])
    result: F64 = shared[place] + own
    return result


def _preferred_hour(draws: Draws, user: npt.NDArray[np.uint64]) -> F64:
    mode = cumulative_pick(_HOUR_SHARE, draws.uniform("user.hour.mode", user))
    return np.mod(_HOURS[mode] + 0.6 * _HOUR_SD[mode] * draws.normal("user.hour", user), 24.0)
