"""Every column a batch may carry: dtype, raggedness, meaning. A name not listed here is an error.

Times are i64 microseconds since 1970-01-01 UTC. Durations carry their unit in the name. Item, user and campaign *rows*
(i32) index the release's or the policy's tables and mean nothing outside a process; *hashes* (u64, `serve_app.ids`)
are stable and are what the log keeps. Enumerations stand in `serve_app.vocabulary`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

__all__ = ["CANDIDATE_COLUMNS", "REQUEST_COLUMNS", "ColumnSpec"]


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """dtype of the values, whether one value or a list per row, width of a second axis (0: none), and the meaning."""

    dtype: np.dtype[np.generic]
    ragged: bool
    doc: str


def _flat(dtype: str, doc: str) -> ColumnSpec:
    return ColumnSpec(np.dtype(dtype), False, doc)


def _list(dtype: str, doc: str) -> ColumnSpec:
    return ColumnSpec(np.dtype(dtype), True, doc)


REQUEST_COLUMNS = MappingProxyType(
    {
        # identity; root and attempt key the noise
        "request_id": _flat("u8", "random 64 bits; unique together with user"),
        "root_id": _flat("u8", "request_id of the first request of a deferral chain or gateway page; keys the noise"),
        "parent_request_id": _flat("u8", "0: none"),
        "attempt": _flat("i2", "0 for the first; n for the n-th re-decision of a deferral"),
        "surface": _flat("i1", "Surface"),
        "origin": _flat("i1", "Origin"),
        "trigger_event_id": _flat("u8", "event that caused the request; 0: none"),
        "decided_at": _flat("i8", "admission clock"),
        "deadline_at": _flat("i8", "when the answer must leave"),
        "env_seq": _flat("i8", "position in the environment table"),
        # pins
        "policy": _flat("i2", "index into the context's policies"),
        "cell": _flat("i2", "policy cell; -1: none declared"),
        "epoch": _flat("i4", "index of the cell's epoch"),
        "p_cell": _flat("f8", "probability with which the cell was drawn; 1 where none declared"),
        # who
        "user": _flat("u8", "hash of the user's id"),
        "user_row": _flat("i4", "row in the release's user table; -1: unknown user (cold start)"),
        "zone": _flat("i2", "index into serve_app.policy.zones"),
        "region": _flat("i2", "index into serve_app.regions; -1: unknown"),
        "consent_ad_at": _flat("i8", "advertising consent given at; 0: none"),
        "consent_night_at": _flat("i8", "consent to advertising at night given at; 0: none"),
        "customer_until": _flat("i8", "end of the existing-customer exception; 0: none"),
        "reachable": _flat("u2", "bits by Channel"),
        "opted_out": _flat("u2", "bits by Channel"),
        "segments": _flat("u8", "bits: member of the policy's i-th segment"),
        "segments_at": _flat("i8", "when segment membership was computed; 0: never"),
        "read_version": _flat("i8", "ledger version the decision was made on; -1: not read"),
        "refunds_read": _flat("i2", "refunded uses in the history the decision was made on; -1: not read"),
        # what
        "anchor": _flat("i4", "item row the request is about; -1: none"),
        "recents": _list("i4", "item rows recently seen, oldest first"),
        "recents_age_s": _list("f4", "age of each recent, seconds before decided_at"),
        "bought": _list("i4", "item rows bought by the user, as far as known"),
        "excluded": _list("i4", "item rows the caller excludes"),
        "categories": _list("i4", "category indices the answer is limited to; empty: no limit"),
        "width": _flat("i4", "candidates asked for before ranking"),
        "slots": _flat("i4", "length of the list asked for; notifications: how many may be sent"),
        "context_hour": _flat("i1", "local hour of day at decided_at"),
        "context_device": _flat("i1", "0 unknown, 1 app, 2 mobile web, 3 desktop"),
        # what happened
        "degraded": _flat("u1", "StageBit"),
        "cold": _flat("?", "answered by region and context because the user is unknown"),
        "log_rate": _flat("f8", "probability that this request's full candidate set is logged"),
        "availability_seq": _flat("i8", "availability changes applied before the last filter"),
        "p_none": _flat("f8", "notifications: probability that nothing is chosen"),
        "explored": _flat("?", "a flip changed the choice"),
        "forced": _flat("?", "the choice was certain"),
        "action": _flat("i1", "Action"),
        "reason": _flat("i1", "Reason, when no candidate was chosen"),
        "until": _flat("i8", "a deferral's end; 0: none"),
        "expires_at": _flat("i8", "the request as a whole expires; 0: never"),
        "arms": _flat("u8", "4 bits per experiment of the policy, lowest first: arm + 1; 0: not assigned"),
        "variant": _flat("i2", "compiled variant of the policy: arms x cell"),
    }
)

CANDIDATE_COLUMNS = MappingProxyType(
    {
        # identity
        "item": _flat("i4", "item row; -1: none"),
        "review": _flat("i4", "review row; -1: none"),
        "widget": _flat("i4", "widget row; -1: none"),
        "campaign": _flat("u8", "hash of the campaign's id; 0: none"),
        "channel": _flat("i1", "Channel; -1: none"),
        "message_class": _flat("i1", "MessageClass; -1: none"),
        "category": _flat("u8", "hash of the category's name; 0: none"),
        "priority": _flat("i2", "higher first where several may be sent"),
        # retrieval
        "sources": _flat("u4", "Source bits"),
        "source_scores": _flat("f4", "[m, S] score in each source, columns named in meta['sources']; NaN: not from there"),
        "retrieval_score": _flat("f8", "blended order before ranking"),
        "drop_reason": _flat("i1", "DropReason"),
        # features
        "features": _flat("f4", "[m, F] columns named in meta['features']"),
        "feature_status": _flat("u1", "[m, F] FeatureStatus"),
        # ranking
        "heads": _flat("f4", "[m, H] calibrated scores, columns named in meta['heads']; NaN: not scored"),
        "value": _flat("f8", "weighted sum of heads"),
        "slot": _flat("i4", "slot given by the selector; -1: not chosen"),
        "p_slot": _flat("f8", "propensity of the chosen slot, conditional on the prefix"),
        # notification economics
        "cost": _flat("f8", "of one send"),
        "margin": _flat("f8", "of one conversion"),
        "expires_at": _flat("i8", "never sent after; 0: never expires"),
        "labelled": _flat("?", "advertising text carries the label its region demands"),
        "campaign_killed": _flat("?", "the campaign is switched off or out of its dates"),
        "segment": _flat("i2", "policy segment the campaign is limited to; -1: none"),
        "delivery": _flat("i1", "Delivery"),
        # decision
        "gates_evaluated": _flat("u4", "bits by position in meta['gates']"),
        "gate_outcome": _flat("i1", "[m, G] GateOutcome"),
        "gate_reason": _flat("i1", "[m, G] Reason"),
        "used": _flat("f8", "[m, G] observed value, gate's own unit"),
        "limit": _flat("f8", "[m, G] limit, same unit"),
        "next_free_at": _flat("i8", "[m, G] when the gate would let it pass; 0: unknown or now"),
        "reason": _flat("i1", "primary Reason of the candidate"),
        "action": _flat("i1", "Action of the candidate"),
        "until": _flat("i8", "a deferral's end; 0: none"),
        "p_choice": _flat("f8", "probability that this candidate is chosen"),
        "ghost": _flat("?", "would have been sent but for a holdout"),
        "ghost_first": _flat("?", "the user's first would-send under that holdout (marked in both arms)"),
        "holdout": _flat("i2", "index of the policy's holdout that silenced it; -1: none"),
        "counts": _flat("u4", "bits: caps of the policy this grant consumes"),
        "p_shadow": _flat("f8", "probability that this held-out candidate is chosen on its shadow history; else 0"),
    }
)
