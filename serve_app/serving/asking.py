"""Notification requests as columns: the same for a call, a row of a batch and a deferral whose time has come."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.policy.assign import assign
from serve_app.policy.zones import UNKNOWN_ZONE, local_second_of_day
from serve_app.segments.shelf import lookup
from serve_app.serving.library import Edition
from serve_app.vocabulary import Origin, Surface

__all__ = ["notification_requests", "release_places"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I16 = npt.NDArray[np.int16]
U64 = npt.NDArray[np.uint64]

_HOUR_S = 3600
_NOTIFICATION = int(Surface.notification)


def notification_requests(
    edition: Edition,
    *,
    request_ids: U64,
    users: U64,
    decided_at: I64,
    deadline_at: I64,
    slots: I32,
    expires_at: I64,
    log_rate: float = 1.0,
    origin: Origin = Origin.client,
    root_ids: U64 | None = None,
    parents: U64 | None = None,
    attempts: I16 | None = None,
) -> Batch:
    """n requests without candidates, pinned to `edition`, arms and cell drawn. root_ids None: each is its own root."""
    n, policy, catalogue = len(users), edition.policy, edition.release.catalogue

    def each(value: float, dtype: type[np.generic]) -> npt.NDArray[Any]:
        out = np.empty(n, dtype)
        out.fill(value)
        return out

    user_row = catalogue.user_rows(users)
    zone, region = release_places(user_row, edition)
    drawn = assign(policy.trials, users, decided_at)
    segments, segments_at = lookup(edition, users)
    history = edition.release.histories.requests(user_row, decided_at)
    return Batch.of_requests(
        request_id=request_ids,
        root_id=request_ids if root_ids is None else root_ids,
        parent_request_id=np.zeros(n, np.uint64) if parents is None else parents,
        attempt=np.zeros(n, np.int16) if attempts is None else attempts,
        surface=each(_NOTIFICATION, np.int8),
        origin=each(int(origin), np.int8),
        decided_at=decided_at,
        deadline_at=deadline_at,
        env_seq=each(-1, np.int64),
        policy=np.zeros(n, np.int16),
        **drawn.columns(),
        user=users,
        user_row=user_row,
        zone=zone,
        region=region,
        anchor=each(-1, np.int32),
        recents=history["recents"],
        recents_age_s=history["recents_age_s"],
        bought=history["bought"],
        context_hour=(local_second_of_day(decided_at, zone) // _HOUR_S).astype(np.int8),
        context_device=np.zeros(n, np.int8),
        slots=slots,
        expires_at=expires_at,
        segments=segments,
        segments_at=segments_at,
        degraded=np.zeros(n, np.uint8),
        cold=user_row < 0,
        log_rate=each(log_rate, np.float64),
        availability_seq=each(edition.view.seq, np.int64),
    )


def release_places(user_row: I32, edition: Edition) -> tuple[I16, I16]:
    """Zone and region as the release knows them; the ledger's word replaces them where it has one."""
    rows = edition.release.catalogue
    zone = rows.user_zones[user_row]
    zone[zone == UNKNOWN_ZONE] = edition.policy.default_zone
    return zone, rows.user_regions[user_row]
