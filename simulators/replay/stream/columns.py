"""Opportunities as kernels take them: contiguous columns by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.kernels import inlined
from serve_app.policy.compile import CompiledPolicy
from simulators.replay.opportunities import Opportunities
from simulators.replay.stream.pointers import i1, i2, i4, i8, plain, u1, u2, u8

__all__ = ["Asked", "Logged", "asked_at", "asked_of", "logged_at", "logged_of"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]


class Asked(NamedTuple):
    """n requests, in replay order, and their m candidates between `offsets`: see serve_app.columns. segments u64[S, n] and
    segment i16[S, m]: one row for all policies, or one for each. hashes: of the candidates' items, by `item`."""

    user: U64
    request_id: U64
    root_id: U64
    decided_at: I64
    attempt: I16
    origin: I8
    expires_at: I64
    slots: I32
    zone: I16
    region: I16
    consent_ad_at: I64
    consent_night_at: I64
    customer_until: I64
    reachable: U16
    opted_out: U16
    segments_at: I64
    refunds_read: I16
    campaign: U64
    channel: I8
    message_class: I8
    category: U64
    priority: I16
    labelled: Bool
    campaign_killed: Bool
    item: I32
    offsets: I64
    candidate_expires_at: I64
    segments: U64
    segment: I16
    hashes: U64
    n: int
    m: int


@inlined
def asked_at(t: I64) -> Asked:
    """Inside kernels: from the addresses of an `Asked`."""
    return Asked(
        u8(t[0]), u8(t[1]), u8(t[2]), i8(t[3]), i2(t[4]), i1(t[5]), i8(t[6]), i4(t[7]), i2(t[8]), i2(t[9]), i8(t[10]),
        i8(t[11]), i8(t[12]), u2(t[13]), u2(t[14]), i8(t[15]), i2(t[16]), u8(t[17]), i1(t[18]), i1(t[19]), u8(t[20]),
        i2(t[21]), u1(t[22]), u1(t[23]), i4(t[24]), i8(t[25]), i8(t[26]), u8(t[27]), i2(t[28]), u8(t[29]), t[30], t[31],
    )  # fmt: skip


class Logged(NamedTuple):
    """What was done: slot, ghost and holdout of the candidates; granted and policy of the requests, whose holdouts' keys
    begin at holdouts[policy], and whose default zone is zone[policy]."""

    slot: I32
    ghost: Bool
    holdout: I16
    granted: Bool
    policy: I16
    keys: U64
    holdouts: I64
    zone: I16


@inlined
def logged_at(t: I64) -> Logged:
    """Inside kernels: from the addresses of a `Logged`."""
    return Logged(i4(t[0]), u1(t[1]), i2(t[2]), u1(t[3]), i2(t[4]), u8(t[5]), i8(t[6]), i2(t[7]))


def asked_of(asked: Opportunities, segments: U64 | None = None, segment: I16 | None = None) -> Asked:
    """segments, segment: as other policies number them, one row a policy (None: as logged)."""
    requests, rows = asked.batch.requests, asked.batch.candidates
    of_requests: dict[str, Any] = {name: plain(requests[name]) for name in Asked._fields[:17]}
    of_rows: dict[str, Any] = {name: plain(rows[name]) for name in Asked._fields[17:25]}
    return Asked(
        **of_requests,
        **of_rows,
        offsets=plain(asked.batch.offsets),
        candidate_expires_at=plain(rows["expires_at"]),
        segments=plain(requests["segments"] if segments is None else segments),
        segment=plain(rows["segment"] if segment is None else segment),
        hashes=plain(asked.item_hashes),
        n=len(asked),
        m=rows.rows,
    )


def logged_of(asked: Opportunities, behaviour: Sequence[CompiledPolicy]) -> Logged:
    """behaviour: the policies of `asked.revisions`."""
    candidates = asked.logged_candidates
    return Logged(
        plain(candidates["slot"]),
        plain(candidates["ghost"]),
        plain(candidates["holdout"]),
        plain(asked.logged["granted"]),
        plain(asked.logged["policy"]),
        np.concatenate([one.holdouts.keys for one in behaviour]),
        np.cumsum([0, *(len(one.holdouts) for one in behaviour)]),
        np.array([one.default_zone for one in behaviour], np.int16),
    )
