"""Rules as integer matrices. Column constants name what stands where; kernels take the matrices whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from serve_app.ids import hash_id
from serve_app.noise import salt_of
from serve_app.policy.base import seconds_of_day
from serve_app.policy.document import PolicyDocument
from serve_app.policy.rules import RegionRule
from serve_app.regions import REGIONS, region_index
from serve_app.vocabulary import Channel, GateOutcome, MessageClass

__all__ = ["RuleArrays", "VariantArrays", "channel_mask", "class_mask", "compile_rules", "compile_variants"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]

SECOND = 1_000_000
DAY = 86_400 * SECOND

# VariantArrays.caps[v, cap, ...]
CAP_LIMIT, CAP_WINDOW, CAP_PERIOD, CAP_SCOPE, CAP_COUNTS, CAP_BINDS, CAP_REFUND = range(7)
# CAP_PERIOD
ROLLING, BY_DAY, BY_WEEK, BY_MONTH = range(4)
# CAP_SCOPE
SCOPE_GLOBAL, SCOPE_CHANNEL, SCOPE_CATEGORY, SCOPE_CAMPAIGN = range(4)
# VariantArrays.gap[v, ...]
GAP_LENGTH, GAP_COUNTS, GAP_BINDS, GAP_REFUND = range(4)
# VariantArrays.quiet[v, rule, ...]
QUIET_START, QUIET_END, QUIET_CHANNELS, QUIET_CLASSES, QUIET_OUTCOME = range(5)
# VariantArrays.classes[v, class, ...]
BYPASS_CAPS, BYPASS_GAP, BYPASS_QUIET, BYPASS_OPT_OUT, BYPASS_THRESHOLD, CLASS_PRIORITY = range(6)
# VariantArrays.scalars[v, ...]
DUPLICATE_WINDOW, ORDER_BY_VALUE, MAX_SENDS, SPREAD, MAX_ATTEMPTS, FLIP_CLASSES, FLIP_OTHERS, FLIP_NONE = range(8)
# RuleArrays.regions[region + 1, ...]
AD_CONSENT, VALID_FOR, EXCEPTION, NIGHT_CONSENT, NIGHT_START, NIGHT_END, NIGHT_EXEMPT, NIGHT_OUTCOME, LABEL = range(9)


@dataclass(frozen=True, slots=True)
class RuleArrays:
    """What no trial may change. regions i64[677, 9], row region + 1, row 0 for unknown; kill_* sorted hashes;
    segment_staleness in microseconds; deferral_salt u64; flip_salt u64."""

    regions: I64
    kill_all: bool
    kill_channels: int
    kill_categories: U64
    kill_campaigns: U64
    segment_staleness: int
    deferral_salt: np.uint64
    flip_salt: np.uint64


@dataclass(frozen=True, slots=True)
class VariantArrays:
    """Settings by variant: caps i64[V, K, 7], gap i64[V, 4], quiet i64[V, Q, 5], classes i64[V, 3, 6], scalars i64[V, 8],
    thresholds f8[V, 3], flip_probability f8[V]. Times and durations in microseconds, quiet hours in seconds of day.
    cap_only u64: hashes (or channel numbers) each cap is limited to, ragged over caps by cap_only_offsets i64[K + 1]."""

    caps: I64
    cap_only: U64
    cap_only_offsets: I64
    gap: I64
    quiet: I64
    classes: I64
    scalars: I64
    thresholds: F64
    flip_probability: F64


def class_mask(names: Iterable[str]) -> int:
    """Bits by MessageClass."""
    return sum(1 << MessageClass[name] for name in set(names))


def channel_mask(names: Iterable[str]) -> int:
    """Bits by Channel."""
    return sum(1 << Channel[name] for name in set(names))


def _outcome(action: str) -> int:
    return int(GateOutcome.defer if action == "defer" else GateOutcome.suppress)


def compile_rules(document: PolicyDocument) -> RuleArrays:
    """The parts every variant shares."""
    regions = np.tile(np.array(_region(document.other_regions), np.int64), (REGIONS + 1, 1))
    for code, rule in document.regions.items():
        regions[region_index(code) + 1] = _region(rule)
    switches = document.kill_switches
    return RuleArrays(
        regions=regions,
        kill_all=switches.all,
        kill_channels=channel_mask(switches.channels),
        kill_categories=np.sort(np.array([hash_id(name) for name in switches.categories], np.uint64)),
        kill_campaigns=np.sort(np.array([hash_id(name) for name in switches.campaigns], np.uint64)),
        segment_staleness=round(document.segment_staleness_hours * 3600 * SECOND),
        deferral_salt=salt_of(document.deferral.salt),
        flip_salt=salt_of(document.flips.salt),
    )


def _region(rule: RegionRule) -> list[int]:
    return [
        int(rule.ad_consent_required),
        rule.consent_valid_days * DAY,
        int(rule.existing_customer_exception),
        int(rule.night_consent_required),
        seconds_of_day(rule.night_start),
        seconds_of_day(rule.night_end),
        channel_mask(rule.night_exempt_channels),
        _outcome(rule.night_action),
        int(rule.ad_label is not None),
    ]


def compile_variants(variants: Sequence[PolicyDocument]) -> VariantArrays:
    """The settings of each variant, stacked. All variants have the same caps and quiet hours, by construction."""
    only = [_only(cap.scope, cap.only) for cap in variants[0].caps]
    offsets = np.zeros(len(only) + 1, np.int64)
    np.cumsum([len(one) for one in only], out=offsets[1:])
    count = len(variants)
    caps = np.array([_caps(one) for one in variants], np.int64).reshape(count, len(only), 7)
    quiet = np.array([_quiet(one) for one in variants], np.int64).reshape(count, len(variants[0].quiet_hours), 5)
    return VariantArrays(
        caps=caps,
        cap_only=np.array(list(chain.from_iterable(only)), np.uint64),
        cap_only_offsets=offsets,
        gap=np.array([_gap(one) for one in variants], np.int64),
        quiet=quiet,
        classes=np.array([_classes(one) for one in variants], np.int64),
        scalars=np.array([_scalars(one) for one in variants], np.int64),
        thresholds=np.array([_thresholds(one) for one in variants], np.float64),
        flip_probability=np.array([one.flips.probability for one in variants], np.float64),
    )


def _only(scope: str, names: Iterable[str]) -> list[int]:
    return sorted(int(Channel[name]) if scope == "channel" else hash_id(name) for name in names)


def _caps(document: PolicyDocument) -> list[list[int]]:
    periods = {"day": BY_DAY, "week": BY_WEEK, "month": BY_MONTH}
    scopes = {"global": SCOPE_GLOBAL, "channel": SCOPE_CHANNEL, "category": SCOPE_CATEGORY, "campaign": SCOPE_CAMPAIGN}
    return [
        [
            cap.limit,
            round((cap.window.rolling_hours or 0) * 3600 * SECOND),
            periods[cap.window.calendar] if cap.window.calendar else ROLLING,
            scopes[cap.scope],
            class_mask(cap.counts),
            class_mask(cap.binds),
            int(cap.refund_failed_delivery),
        ]
        for cap in document.caps
    ]


def _gap(document: PolicyDocument) -> list[int]:
    gap = document.min_gap
    return [
        round(gap.minutes * 60 * SECOND),
        class_mask(gap.counts),
        class_mask(gap.binds),
        int(gap.refund_failed_delivery),
    ]


def _quiet(document: PolicyDocument) -> list[list[int]]:
    return [
        [
            seconds_of_day(one.start),
            seconds_of_day(one.end),
            channel_mask(one.channels or Channel.__members__),
            class_mask(one.classes),
            _outcome(one.action),
        ]
        for one in document.quiet_hours
    ]


def _classes(document: PolicyDocument) -> list[list[int]]:
    rows = []
    for one in MessageClass:
        rule = getattr(document.message_classes, one.name)
        bypasses = (
            rule.bypass_caps,
            rule.bypass_min_gap,
            rule.bypass_quiet_hours,
            rule.bypass_opt_out,
            rule.bypass_threshold,
        )
        rows.append([*(int(flag) for flag in bypasses), rule.priority])
    return rows


def _thresholds(document: PolicyDocument) -> list[float]:
    own = [getattr(document.message_classes, one.name).threshold for one in MessageClass]
    return [document.threshold if value is None else value for value in own]


def _scalars(document: PolicyDocument) -> list[int]:
    flips = document.flips
    return [
        round(document.duplicate_window_hours * 3600 * SECOND),
        int(document.order == "value"),
        document.max_sends_per_decision,
        round(document.deferral.spread_minutes * 60 * SECOND),
        document.deferral.max_attempts,
        class_mask(flips.classes),
        int(flips.to in ("other_passing", "either")),
        int(flips.to in ("none", "either")),
    ]
