"""Compiled policies side by side: what kernels take to decide each request under the policy it names.

Variants of all policies stand one after the other; tables of fewer rows are filled up with caps that bind nobody and quiet
hours of no channel. Lists of a policy lie between its offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.batch import lengths_to_offsets
from serve_app.kernels import inlined
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.tables import CAP_LIMIT
from serve_app.stages.decision.prepare import head_columns
from simulators.replay.stream.pointers import f4_2, f8, f8_2, f8_3, i1, i2, i8, i8_2, i8_3, u1, u8, u8_2

__all__ = ["Rules", "Tables", "Trials", "rules_at", "rules_of", "tables_at", "tables_of", "trials_of"]

I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_NEVER_FULL = np.iinfo(np.int64).max


class Rules(NamedTuple):
    """P policies of V variants, h holdouts in all. By policy: first variant and region row, kill switches, staleness, salts,
    default zone, holdouts. By variant: flip. held: room
    for which of the holdouts hold the user at hand out. longest: microseconds, how far back any of them looks."""

    first_variant: I64
    region_rows: I64
    kill_all: Bool
    kill_channels: I64
    kill_categories: U64
    kill_category_offsets: I64
    kill_campaigns: U64
    kill_campaign_offsets: I64
    staleness: I64
    deferral_salt: U64
    flip_salt: U64
    default_zone: I16
    only: U64
    flip: F64
    holdouts: I64
    holdout_keys: U64
    holdout_salts: U64
    holdout_share: F64
    holdout_classes: I64
    holdout_campaigns: U64
    holdout_campaign_offsets: I64
    holdout_blocking: Bool
    holdout_reasons: I8
    held: Bool
    longest: int
    holdout_count: int


@inlined
def rules_at(t: I64) -> Rules:
    """Inside kernels: from the addresses of `Rules`."""
    return Rules(
        i8(t[0]), i8(t[1]), u1(t[2]), i8(t[3]), u8(t[4]), i8(t[5]), u8(t[6]), i8(t[7]), i8(t[8]), u8(t[9]), u8(t[10]),
        i2(t[11]), u8(t[12]), f8(t[13]), i8(t[14]), u8(t[15]), u8(t[16]), f8(t[17]), i8(t[18]), u8(t[19]), i8(t[20]),
        u1(t[21]), i1(t[22]), u1(t[23]), t[24], t[25],
    )  # fmt: skip


class Tables(NamedTuple):
    """Of the same policies, with K caps, Q quiet hours and H heads at most, see `serve_app.policy.tables`: regions by region
    row; caps, gap, quiet, classes, scalars, thresholds and weights by variant; columns of the heads and `only` of the caps
    by policy; dates by holdout. And two matrices more: heads f4[m, H] of the candidates (no column: nothing is scored), keys
    u64[4, entries] of the history at hand."""

    regions: I64
    caps: I64
    gap: I64
    quiet: I64
    classes: I64
    scalars: I64
    thresholds: F64
    weights: F64
    columns: I64
    only_offsets: I64
    dates: I64
    heads: F32
    keys: U64


@inlined
def tables_at(t: I64) -> Tables:
    """Inside kernels: from the `shapes` of `Tables`."""
    return Tables(
        i8_2(t[0], t[1], t[2], t[3]), i8_3(t[4], t[5], t[6], t[7]), i8_2(t[8], t[9], t[10], t[11]),
        i8_3(t[12], t[13], t[14], t[15]), i8_3(t[16], t[17], t[18], t[19]), i8_2(t[20], t[21], t[22], t[23]),
        f8_2(t[24], t[25], t[26], t[27]), f8_3(t[28], t[29], t[30], t[31]), i8_2(t[32], t[33], t[34], t[35]),
        i8_2(t[36], t[37], t[38], t[39]), i8_2(t[40], t[41], t[42], t[43]), f4_2(t[44], t[45], t[46], t[47]),
        u8_2(t[48], t[49], t[50], t[51]),
    )  # fmt: skip


class Trials(NamedTuple):
    """One policy's experiments and cells: see `serve_app.policy.assign.TrialArrays`."""

    arm_salts: U64
    arm_edges: F64
    arm_counts: I64
    dates: I64
    cell_salt: np.uint64
    cell_edges: F64
    epoch: int


def trials_of(policy: CompiledPolicy) -> Trials:
    """As kernels take them."""
    own = policy.trials
    return Trials(own.arm_salts, own.arm_edges, own.arm_counts, own.dates, own.cell_salt, own.cell_edges, own.epoch)


def rules_of(policies: Sequence[CompiledPolicy]) -> Rules:
    """Those that kernels take by address."""
    rules, settings = [one.rules for one in policies], [one.settings for one in policies]
    holdouts = [one.holdouts for one in policies]
    return Rules(
        first_variant=lengths_to_offsets([len(one.variants) for one in policies])[:-1],
        region_rows=lengths_to_offsets([len(one.regions) for one in rules])[:-1],
        kill_all=np.array([one.kill_all for one in rules], np.bool_),
        kill_channels=np.array([one.kill_channels for one in rules], np.int64),
        kill_categories=_joined([one.kill_categories for one in rules]),
        kill_category_offsets=lengths_to_offsets([len(one.kill_categories) for one in rules]),
        kill_campaigns=_joined([one.kill_campaigns for one in rules]),
        kill_campaign_offsets=lengths_to_offsets([len(one.kill_campaigns) for one in rules]),
        staleness=np.array([one.segment_staleness for one in rules], np.int64),
        deferral_salt=np.array([one.deferral_salt for one in rules], np.uint64),
        flip_salt=np.array([one.flip_salt for one in rules], np.uint64),
        default_zone=np.array([one.default_zone for one in policies], np.int16),
        only=_joined([one.cap_only for one in settings]),
        flip=_joined([one.flip_probability for one in settings]),
        holdouts=lengths_to_offsets([len(one) for one in holdouts]),
        holdout_keys=_joined([one.keys for one in holdouts]),
        holdout_salts=_joined([one.salts for one in holdouts]),
        holdout_share=_joined([one.share for one in holdouts]),
        holdout_classes=_joined([one.classes for one in holdouts]),
        holdout_campaigns=_joined([one.campaigns for one in holdouts]),
        holdout_campaign_offsets=lengths_to_offsets(np.concatenate([np.diff(one.offsets) for one in holdouts])),
        holdout_blocking=_joined([one.blocking for one in holdouts]),
        holdout_reasons=_joined([one.reasons for one in holdouts]),
        held=np.zeros(sum(len(one) for one in holdouts), np.bool_),
        longest=max(one.longest_window_us for one in policies),
        holdout_count=sum(len(one) for one in holdouts),
    )


def tables_of(policies: Sequence[CompiledPolicy], names: Sequence[str], heads: F32, keys: U64) -> Tables:
    """names: of the columns of `heads`."""
    settings = [one.settings for one in policies]
    only, caps = [one.cap_only_offsets for one in settings], max(one.caps.shape[1] for one in settings)
    begins = np.cumsum([0, *(len(one.cap_only) for one in settings)])
    return Tables(
        regions=_joined([one.rules.regions for one in policies]),
        caps=_filled([one.caps for one in settings], axis=1, empty={CAP_LIMIT: _NEVER_FULL}),
        gap=_joined([one.gap for one in settings]),
        quiet=_filled([one.quiet for one in settings], axis=1),
        classes=_joined([one.classes for one in settings]),
        scalars=_joined([one.scalars for one in settings]),
        thresholds=_joined([one.thresholds for one in settings]),
        weights=_filled([one.weights for one in policies], axis=2),
        columns=_stacked([head_columns(one, tuple(names)) for one in policies], -1),
        only_offsets=np.stack([np.pad(o, (0, caps + 1 - len(o)), "edge") + b for o, b in zip(only, begins, strict=False)]),
        dates=_joined([one.holdouts.dates for one in policies]),
        heads=heads,
        keys=keys,
    )


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.array(np.concatenate(parts), order="C")


def _stacked(rows: Sequence[I64], empty: int) -> I64:
    """Rows of different lengths as one matrix."""
    out = np.full((len(rows), max(len(one) for one in rows)), empty, np.int64)
    for place, one in enumerate(rows):
        out[place, : len(one)] = one
    return out


def _filled(parts: Sequence[npt.NDArray[Any]], axis: int, empty: dict[int, int] | None = None) -> npt.NDArray[Any]:
    """Tables joined along their first axis, as wide along `axis` as the widest; new rows are 0 but for `empty`."""
    width = max(one.shape[axis] for one in parts)
    out = []
    for one in parts:
        shape = list(one.shape)
        shape[axis] = width
        wide = np.zeros(shape, one.dtype)
        for column, value in (empty or {}).items():
            wide[..., column] = value
        wide[tuple(slice(size) for size in one.shape)] = one
        out.append(wide)
    return _joined(out)
