"""From what callers asked to request columns: ids become rows, histories are joined, arms and cells are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Ragged
from serve_app.ids import hash_id, hash_ids
from serve_app.ledger.columns import Recents, UserState
from serve_app.policy.assign import assign
from serve_app.policy.zones import local_second_of_day
from serve_app.regions import region_index
from serve_app.segments.shelf import lookup
from serve_app.serving.asking import release_places
from serve_app.serving.library import Edition
from serve_app.serving.list_requests import category_rows, list_sizes
from serve_app.vocabulary import Origin, Surface

__all__ = ["DEVICES", "Ask", "Known", "request_batch", "users_of"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]

DEVICES = ("unknown", "app", "mobile_web", "desktop")
_HOUR_S = 3600


@dataclass(slots=True)
class Ask:
    """One list to make. slots: None takes the policy's. anchor: an item's id."""

    surface: Surface
    request_id: int
    decided_at: int
    deadline_at: int
    user: str | None = None
    anchor: str | None = None
    region: str | None = None
    device: str = "unknown"
    recent_items: Sequence[str] = ()
    exclude: Sequence[str] = ()
    categories: Sequence[str] = ()
    slots: int | None = None
    user_hash: int = field(init=False)

    def __post_init__(self) -> None:
        self.user_hash = hash_id(self.user) if self.user is not None else 0


@dataclass(frozen=True, slots=True)
class Known:
    """Live facts of the asks' users, in the order of the asks: recent items from events, and state (zone, region)."""

    recents: Recents
    state: UserState


def users_of(asks: Sequence[Ask]) -> U64:
    """u64[n], 0 for anonymous."""
    return np.array([ask.user_hash for ask in asks], np.uint64)


def request_batch(
    asks: Sequence[Ask], edition: Edition, known: Known, *, recents_kept: int, log_rate: float, quality: float = 1.0
) -> Batch:
    """Requests without candidates. Recent, excluded and category names that nothing known carries are passed over. quality:
    share of the policy's width to look at; never less than its `min_width`, or than the slots to fill."""
    rows, policy = edition.release.catalogue, edition.policy
    users, at = users_of(asks), np.array([ask.decided_at for ask in asks], np.int64)
    user_row = np.where(users == 0, -1, rows.user_rows(users)).astype(np.int32)
    zone, region = _places(asks, user_row, known.state, edition)
    recents, ages, bought = _histories(asks, user_row, at, edition, known.recents, recents_kept)
    drawn = assign(policy.trials, np.where(users == 0, _ids(asks), users), at)
    segments, segments_at = lookup(edition, users)
    surfaces = [ask.surface.name for ask in asks]
    slots, width = list_sizes(surfaces, [ask.slots for ask in asks], drawn.variant, policy, quality)
    n, ids = len(asks), _ids(asks)
    return Batch.of_requests(
        request_id=ids,
        root_id=ids,
        parent_request_id=np.zeros(n, np.uint64),
        attempt=np.zeros(n, np.int16),
        surface=np.array([ask.surface for ask in asks], np.int8),
        origin=np.full(n, Origin.client, np.int8),
        decided_at=at,
        deadline_at=np.array([ask.deadline_at for ask in asks], np.int64),
        env_seq=np.full(n, -1, np.int64),
        policy=np.zeros(n, np.int16),
        **drawn.columns(),
        user=users,
        user_row=user_row,
        zone=zone,
        region=region,
        anchor=_anchors(asks, edition),
        recents=recents,
        recents_age_s=ages,
        bought=bought,
        excluded=_rows_of_each([ask.exclude for ask in asks], edition),
        categories=category_rows([ask.categories for ask in asks], rows),
        width=width,
        slots=slots,
        context_hour=(local_second_of_day(at, zone) // _HOUR_S).astype(np.int8),
        context_device=np.array([DEVICES.index(ask.device) for ask in asks], np.int8),
        degraded=np.zeros(n, np.uint8),
        segments=segments,
        segments_at=segments_at,
        cold=(user_row < 0) & (recents.lengths == 0),
        log_rate=np.full(n, log_rate, np.float64),
        availability_seq=np.full(n, edition.view.seq, np.int64),
        read_version=np.full(n, -1, np.int64),
    )


def _ids(asks: Sequence[Ask]) -> U64:
    return np.array([ask.request_id for ask in asks], np.uint64)


def _anchors(asks: Sequence[Ask], edition: Edition) -> I32:
    out = np.full(len(asks), -1, np.int32)
    given = [(at, hash_id(ask.anchor)) for at, ask in enumerate(asks) if ask.anchor is not None]
    if given:
        out[[at for at, _ in given]] = edition.view.rows_of(np.array([item for _, item in given], np.uint64))
    return out


def _rows_of_each(lists: Sequence[Sequence[str]], edition: Edition) -> Ragged:
    """Item rows of lists of ids, unknown ones left out."""
    if not any(lists):
        return Ragged.empty(len(lists), np.int32)
    out = []
    for ids in lists:
        found = edition.view.rows_of(hash_ids(ids)) if ids else np.empty(0, np.int32)
        out.append(found[found >= 0])
    return Ragged.of(out, np.int32)


def _places(
    asks: Sequence[Ask], user_row: I32, state: UserState, edition: Edition
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Zone and region of each: what the request says, else what the user's state says, else what the release says."""
    zone, region = release_places(user_row, edition)
    zone = np.where(state.zone >= 0, state.zone, zone)
    region = np.where(state.region >= 0, state.region, region)
    for at, ask in enumerate(asks):
        if ask.region is not None:
            region[at] = region_index(ask.region)
    return zone, region


def _histories(
    asks: Sequence[Ask], user_row: I32, at: I64, edition: Edition, live: Recents, kept: int
) -> tuple[Ragged, Ragged, Ragged]:
    """recents, their ages and bought: the release's, then newer ones from events, then those the request names."""
    built = edition.release.histories.requests(user_row, at)
    named = any(ask.recent_items for ask in asks)
    if not (len(live.items) or named) and built["recents"].lengths.max(initial=0) <= kept:
        return built["recents"], built["recents_age_s"], built["bought"]
    seen = edition.view.rows_of(live.items)
    seen_age = ((np.repeat(at, np.diff(live.offsets)) - live.at) / 1e6).clip(0).astype(np.float32)
    recents, ages = [], []
    for r, ask in enumerate(asks):
        old, old_age = built["recents"][r], built["recents_age_s"][r]
        span = slice(live.offsets[r], live.offsets[r + 1])
        new, age = seen[span], seen_age[span]
        # Events that the release was built from stand in both: only those after the release's newest are new.
        fresh = (new >= 0) & (age < (old_age[-1] if len(old_age) else np.inf))
        said = edition.view.rows_of(hash_ids(ask.recent_items)) if ask.recent_items else np.empty(0, np.int32)
        said = said[said >= 0]
        joined = np.concatenate([old, new[fresh], said])[-kept:]
        recents.append(joined)
        ages.append(np.concatenate([old_age, age[fresh], np.zeros(len(said), np.float32)])[-kept:])
    return Ragged.of(recents, np.int32), Ragged.of(ages, np.float32), built["bought"]
