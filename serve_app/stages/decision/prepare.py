"""Before the gates: neutral, closed defaults for absent columns, assignment to arms and cell, and the value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS
from serve_app.errors import InvalidInput
from serve_app.kernels import inlined, kernel
from serve_app.noise import absorb
from serve_app.policy.assign import assign
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.result import column

__all__ = ["NO_ITEM", "head_columns", "identities", "identity_of", "prepared", "value_of", "values"]

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
U64 = npt.NDArray[np.uint64]

NO_ITEM = np.uint64(2**64 - 1)
_NEEDED = ("request_id", "user", "decided_at")
_CANDIDATES_NEEDED = ("campaign", "channel", "message_class")
# What an absent column stands for. Nothing is assumed that would let a message pass: no consent, unreachable, unlabelled.
_REQUEST_DEFAULTS = {
    "attempt": 0, "zone": -1, "region": -1, "consent_ad_at": 0, "consent_night_at": 0, "customer_until": 0, "reachable": 0,
    "opted_out": 0, "segments": 0, "segments_at": 0, "slots": 1, "expires_at": 0,
}  # fmt: skip
_CANDIDATE_DEFAULTS = {
    "item": -1, "category": 0, "priority": 0, "expires_at": 0, "labelled": False, "campaign_killed": False, "segment": -1,
}  # fmt: skip


def prepared(batch: Batch, policy: CompiledPolicy) -> Batch:
    """A batch with every column the gates read. Raises InvalidInput naming a needed column that is absent."""
    for name, columns in [(n, batch.requests) for n in _NEEDED] + [(n, batch.candidates) for n in _CANDIDATES_NEEDED]:
        if name not in columns:
            raise InvalidInput("the decision needs this column", field=name, hint="an earlier stage must set it")
    requests, candidates = batch.requests.copy(), batch.candidates.copy()
    out = Batch(requests, candidates, batch.offsets, batch.meta)
    for name, value in _REQUEST_DEFAULTS.items():
        if name not in requests:
            requests[name] = np.full(len(out), value, REQUEST_COLUMNS[name].dtype)
    for name, value in _CANDIDATE_DEFAULTS.items():
        if name not in candidates:
            candidates[name] = np.full(candidates.rows, value, CANDIDATE_COLUMNS[name].dtype)
    if "root_id" not in requests:
        requests["root_id"] = requests["request_id"]
    zone = requests["zone"]
    if len(zone) and zone.min() < 0:
        requests["zone"] = np.where(zone < 0, np.int16(policy.default_zone), zone)
    if "variant" not in requests:
        own = assign(policy.trials, column(requests, "user"), column(requests, "decided_at"))
        for name, drawn in own.columns().items():
            requests[name] = drawn
    candidates["value"] = values(out, policy)
    return out


@inlined
def value_of(c: int, kind: int, p: int, v: int, heads: F32, where: I64, weights: F64) -> float:
    """Scalar, inside kernels: a candidate's value under policy p, variant v. where i64[P, H]: columns of its heads, -1: not
    there."""
    total, row = 0.0, max(kind, 0)
    for h in range(where.shape[1]):
        weight = weights[v, row, h]
        if weight != 0.0:
            total += weight * (heads[c, where[p, h]] if where[p, h] >= 0 else np.nan)
    return total


@kernel
def _values(offsets: I64, variant: I16, message_class: I8, heads: F32, where: I64, weights: F64, out: F64) -> None:
    for r in range(len(variant)):
        for c in range(offsets[r], offsets[r + 1]):
            out[c] = value_of(c, message_class[c], 0, variant[r], heads, where, weights)


def head_columns(policy: CompiledPolicy, names: Sequence[str]) -> I64:
    """i64[H]: where each head that the policy may weigh stands among `names`; -1: nowhere."""
    own = policy.heads.get("notification", ())
    return np.array([names.index(name) if name in names else -1 for name in own], np.int64)


def values(batch: Batch, policy: CompiledPolicy) -> F64:
    """f64[m]: sum of weight * head, added in the policy's order of heads; NaN when a weighed head is NaN or absent.

    `batch.candidates["heads"]` f4[m, H] has its names in `batch.meta["heads"]`; without heads every value is NaN.
    """
    out = np.empty(batch.candidates.rows)
    if "heads" not in batch.candidates:
        out.fill(np.nan)
        return out
    where = head_columns(policy, tuple(batch.meta["heads"]))[None]
    heads = batch.candidates["heads"]
    heads = heads if heads.flags.c_contiguous and heads.flags.writeable else np.array(heads, order="C")
    _values(
        batch.offsets, column(batch.requests, "variant"), column(batch.candidates, "message_class"), heads, where,
        policy.weights, out,
    )  # fmt: skip
    return out


@inlined
def identity_of(campaign: np.uint64, item: np.uint64, channel: int, message_class: int) -> np.uint64:
    """Scalar, inside kernels: what a candidate is, wherever it stands. item: the item's hash, `NO_ITEM` for none."""
    key = absorb(campaign, item)
    return absorb(absorb(key, np.uint64(np.int64(channel))), np.uint64(np.int64(message_class)))


@kernel
def _identities(campaign: U64, item: U64, channel: I8, message_class: I8, out: U64) -> None:
    for c in range(len(campaign)):
        out[c] = identity_of(campaign[c], item[c], channel[c], message_class[c])


def identities(batch: Batch, item_hashes: U64 | None) -> U64:
    """u64[m]: what a candidate is, wherever it stands in the batch; keys its noise and breaks ties.

    Made of hashes alone, so that the log suffices to draw the same noise again under any release. `item_hashes` u64 by item
    row; None where no candidate has an item. Raises InvalidInput for a candidate with an item and no hash to it.
    """
    rows = batch.candidates
    item = rows["item"]
    known = item >= 0
    hashes = np.full(rows.rows, NO_ITEM)
    if known.any():
        if item_hashes is None:
            raise InvalidInput("candidates have items whose ids are not known", field="context.parts.item_hashes")
        hashes[known] = item_hashes[item[known]]
    out = np.empty(rows.rows, np.uint64)
    _identities(column(rows, "campaign"), hashes, column(rows, "channel"), column(rows, "message_class"), out)
    return out
