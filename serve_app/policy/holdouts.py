"""Holdouts: which candidates of which users are withheld, and which sends are a user's first under a holdout."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from serve_app.ids import hash_id
from serve_app.kernels import inlined, kernel
from serve_app.noise import absorb, salt_of, unit_interval
from serve_app.policy.assign import ALWAYS_FROM, ALWAYS_TO
from serve_app.policy.document import PolicyDocument
from serve_app.policy.instants import instant_us
from serve_app.vocabulary import MessageClass, Reason

__all__ = ["HoldoutArrays", "compile_holdouts", "covers", "held_out_by", "is_held"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
I16 = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class HoldoutArrays:
    """h holdouts, global ones first, then in the document's order. keys u64: hash of the id, as history entries carry it;
    share f8; classes i64 bits; dates i64[h, 2]; campaigns u64 ragged by offsets (none: all campaigns)."""

    ids: tuple[str, ...]
    keys: U64
    salts: U64
    share: F64
    classes: I64
    dates: I64
    campaigns: U64
    offsets: I64
    blocking: npt.NDArray[np.bool_]
    reasons: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.ids)


def compile_holdouts(document: PolicyDocument) -> HoldoutArrays:
    """The document's holdouts as arrays."""
    ordered = sorted(document.holdouts, key=lambda one: one.scope != "global")
    campaigns = [[hash_id(name) for name in one.campaigns] for one in ordered]
    offsets = np.zeros(len(ordered) + 1, np.int64)
    np.cumsum([len(one) for one in campaigns], out=offsets[1:])
    dates = [
        (instant_us(one.starts_at) if one.starts_at else ALWAYS_FROM, instant_us(one.ends_at) if one.ends_at else ALWAYS_TO)
        for one in ordered
    ]
    reasons = [Reason.global_holdout if one.scope == "global" else Reason.campaign_holdout for one in ordered]
    return HoldoutArrays(
        ids=tuple(one.id for one in ordered),
        keys=np.array([hash_id(f"holdout/{one.id}/{one.salt}") for one in ordered], np.uint64),
        salts=np.array([salt_of(one.salt) for one in ordered], np.uint64),
        share=np.array([round(one.percent * 100) / 10_000 for one in ordered], np.float64),
        classes=np.array([sum(1 << MessageClass[name] for name in set(one.classes)) for one in ordered], np.int64),
        dates=np.array(dates, np.int64).reshape(len(ordered), 2),
        campaigns=np.array(list(chain.from_iterable(campaigns)), np.uint64),
        offsets=offsets,
        blocking=np.array([one.blocking for one in ordered], np.bool_),
        reasons=np.array(reasons, np.int8),
    )


@inlined
def covers(
    h: int, at: int, campaign: np.uint64, message_class: int, classes: I64, dates: I64, campaigns: U64, offsets: I64
) -> bool:
    """Scalar, inside kernels: would holdout h, in force at `at`, withhold this message from a user it holds out?"""
    if message_class < 0 or not (classes[h] >> message_class) & 1 or not dates[h, 0] <= at < dates[h, 1]:
        return False
    if offsets[h] == offsets[h + 1]:
        return True
    found = False
    for i in range(offsets[h], offsets[h + 1]):
        found = found or campaigns[i] == campaign
    return found


@inlined
def is_held(h: int, user: np.uint64, salts: U64, share: F64) -> bool:
    """Scalar, inside kernels: does the salted hash put the user into the held-out share?"""
    return unit_interval(absorb(salts[h], user)) < share[h]


@kernel
def _held_out_by(
    offsets: I64, users: U64, at: I64, campaign: U64, message_class: npt.NDArray[np.int8], salts: U64, share: F64,
    classes: I64, dates: I64, campaigns: U64, campaign_offsets: I64, out: I16,
) -> int:  # fmt: skip
    total = 0
    for r in range(len(users)):
        start, end = offsets[r], offsets[r + 1]
        for c in range(start, end):
            out[c] = -1
        for h in range(len(salts)):
            if not dates[h, 0] <= at[r] < dates[h, 1] or not is_held(h, users[r], salts, share):
                continue
            for c in range(start, end):
                if out[c] < 0 and covers(
                    h, at[r], campaign[c], message_class[c], classes, dates, campaigns, campaign_offsets
                ):
                    out[c] = h
                    total += 1
    return total


def held_out_by(
    holdouts: HoldoutArrays, offsets: I64, users: U64, at: I64, campaign: U64, message_class: npt.NDArray[np.int8]
) -> tuple[I16, int]:
    """(i16[m] first holdout that withholds each candidate, -1: none; how many are withheld)."""
    out = np.empty(int(offsets[-1]), np.int16)
    if not len(holdouts):
        out.fill(-1)
        return out, 0
    count = _held_out_by(
        offsets,
        users,
        at,
        campaign,
        message_class,
        holdouts.salts,
        holdouts.share,
        holdouts.classes,
        holdouts.dates,
        holdouts.campaigns,
        holdouts.offsets,
        out,
    )
    return out, count
