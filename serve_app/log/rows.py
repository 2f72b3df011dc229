"""From a finished batch to rows of the log: requests, candidates, decisions.

The server writes these rows to its journal, the world writes them to Parquet; both call `rows_from_batch`. Columns the
batch does not carry get their sentinel (see `serve_app.log.schema`). Vectorized: no Python object per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import Batch, Columns, Ragged
from serve_app.ids import hash_id
from serve_app.log.filling import SENTINELS, assignments, constant, fill, named
from serve_app.log.schema import TABLES
from serve_app.noise import hash_key, salt_of, uniform
from serve_app.policy.zones import zone_name
from serve_app.regions import region_name
from serve_app.vocabulary import Action, Reason, Surface

__all__ = ["EntityHashes", "assignments", "fill", "logged_in_full", "rows_from_batch"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]

_EMPTY: U64 = np.empty(0, np.uint64)
_SAMPLE = salt_of("log sample")
_CHOSEN_COPIES = ("item", "widget", "review", "campaign", "category", "channel", "message_class")


@dataclass(frozen=True, slots=True)
class EntityHashes:
    """u64 hashes by row index: items and categories of the release, its reviews and widgets. Row -1 becomes 0."""

    items: U64
    reviews: U64 = field(default_factory=lambda: _EMPTY)
    widgets: U64 = field(default_factory=lambda: _EMPTY)
    categories: U64 = field(default_factory=lambda: _EMPTY)


def logged_in_full(request_ids: U64, log_rate: npt.NDArray[np.float64]) -> Bools:
    """bool[n]: whole requests drawn by a hash of the request id, so that every writer and reader agrees."""
    return uniform(hash_key(_SAMPLE, request_ids)) < log_rate


def rows_from_batch(
    batch: Batch,
    *,
    hashes: EntityHashes,
    policy_revision: str | Sequence[str],
    release: str,
    fingerprint: str,
    salt: int,
    code_version: str,
    commit_version: I64 | None = None,
    granted: Bools | None = None,
    idempotency_keys: Sequence[bytes] | None = None,
    arms: pa.ListArray | None = None,
    holdouts: pa.ListArray | None = None,
) -> dict[str, pa.RecordBatch]:
    """Rows of `requests`, `candidates` and `decisions` of a batch whose last stage has run.

    A candidate is chosen where its `slot` >= 0 or its `action` is send. policy_revision: one text, or texts indexed by the
    requests' `policy`. commit_version i64[n] and granted bool[n] are what the ledger answered (default: nothing written;
    granted where the action is send or show). arms, holdouts: see `assignments`. Raises InvalidInput where the batch lacks
    request_id, user, surface or decided_at.
    """
    req = batch.requests
    n = len(batch)
    full = (req["surface"] == Surface.notification) | logged_in_full(req["request_id"], _flat(req, "log_rate", n, 1.0))
    owner = batch.owner
    chosen = _chosen(batch, owner)
    counts = np.diff(batch.offsets)
    common = _identity(req, n)
    requests = {
        **common,
        **_request_columns(req, hashes),
        "release": constant(release, n),
        "policy_revision": _revisions(policy_revision, req, n),
        "code_version": constant(code_version, n),
        "fingerprint": constant(fingerprint, n),
        "salt": np.full(n, salt, np.uint64),
        "decided_at": req["decided_at"],
        "full": full,
        "log_rate": np.where(req["surface"] == Surface.notification, 1.0, _flat(req, "log_rate", n, 1.0)),
        "candidate_count": counts.astype(np.int32),
        "arms": arms,
        "holdouts": holdouts,
        **{f"{one}_names": constant(_names(batch, f"{one}s"), n) for one in ("head", "feature", "gate")},
    }
    kept = np.flatnonzero(full[owner] | chosen)
    candidates = _candidate_columns(batch, kept, owner, common, hashes)
    ledger = (commit_version, granted, idempotency_keys)
    decisions = _decision_columns(batch, chosen, owner, common, hashes, ledger)
    return {
        "requests": fill("requests", n, requests),
        "candidates": fill("candidates", len(kept), candidates),
        "decisions": fill("decisions", len(decisions["user"]), decisions),
    }


def _revisions(revision: str | Sequence[str], req: Columns, rows: int) -> pa.DictionaryArray:
    if isinstance(revision, str):
        return constant(revision, rows)
    return pa.DictionaryArray.from_arrays(pa.array(_flat(req, "policy", rows, 0).astype(np.int32)), pa.array(list(revision)))


def _names(batch: Batch, key: str) -> str:
    names = batch.meta.get(key, ())
    return names if isinstance(names, str) else ",".join(names)


def _flat(columns: Columns, name: str, rows: int, default: Any) -> Array:
    if name in columns:
        values: Array = columns[name]
        return values
    return np.full(rows, default)


def _identity(req: Columns, rows: int) -> dict[str, Any]:
    order = _flat(req, "read_version", rows, -1)
    return {"user": req["user"], "ts": req["decided_at"], "order": order, "request_id": req["request_id"]}


def _rows_to_hashes(rows: Array, table: U64) -> U64:
    out = np.zeros(len(rows), np.uint64)
    known = rows >= 0
    out[known] = table[rows[known]]
    return out


def _request_columns(req: Columns, hashes: EntityHashes) -> dict[str, Any]:
    """Request columns of the batch that the log has too, row indices turned into hashes."""
    out: dict[str, Any] = {}
    names = set(TABLES["requests"].names) & set(req)
    for name in names - {"arms", "log_rate", "recents", "bought", "excluded", "anchor", "categories", "zone", "region"}:
        out[name] = req[name]
    for name in {"recents", "bought", "excluded"} & set(req):
        out[name] = Ragged(_rows_to_hashes(req[name].values, hashes.items), req[name].offsets)
    if "categories" in req:
        out["categories"] = Ragged(_rows_to_hashes(req["categories"].values, hashes.categories), req["categories"].offsets)
    for name, name_of in (("zone", zone_name), ("region", region_name)):
        if name in req:
            out[name] = named(req[name], name_of)
    if "arms" in req:
        out["arm_bits"] = req["arms"]
    if "anchor" in req:
        out["anchor"] = _rows_to_hashes(req["anchor"], hashes.items)
    return out


def _chosen(batch: Batch, owner: I64) -> Bools:
    """bool[m]: candidates that are in the answer, or whose send was decided."""
    cand = batch.candidates
    chosen = np.zeros(cand.rows, np.bool_)
    if "slot" in cand:
        chosen |= cand["slot"] >= 0
    if "action" in cand:
        chosen |= (cand["action"] == Action.send) & (batch.requests["surface"][owner] == Surface.notification)
    return chosen


def _candidate_columns(
    batch: Batch, kept: I64, owner: I64, common: Mapping[str, Any], hashes: EntityHashes
) -> dict[str, Any]:
    cand = batch.candidates if len(kept) == batch.candidates.rows else batch.candidates.take(kept)
    out: dict[str, Any] = {name: values[owner[kept]] for name, values in common.items()}
    out["idx"] = (kept - batch.offsets[owner[kept]]).astype(np.int32)
    names = set(TABLES["candidates"].names) & set(cand)
    out.update({name: cand[name] for name in names - {"item", "widget", "review"}})
    out.update(_entity_columns(cand, hashes))
    if "slot" not in cand:
        out["slot"] = np.full(len(kept), -1, np.int32)
    plan = _names(batch, "features")
    out["feature_plan"] = np.full(len(kept), hash_id(plan) if plan else 0, np.uint64)
    return out


def _entity_columns(cand: Columns, hashes: EntityHashes) -> dict[str, U64]:
    tables = {"item": hashes.items, "widget": hashes.widgets, "review": hashes.reviews}
    return {name: _rows_to_hashes(cand[name], table) for name, table in tables.items() if name in cand}


def _decision_columns(
    batch: Batch,
    chosen: Bools,
    owner: I64,
    common: Mapping[str, Any],
    hashes: EntityHashes,
    ledger: tuple[I64 | None, Bools | None, Sequence[bytes] | None],
) -> dict[str, Any]:
    """One row per chosen candidate, in order of slot, and one per request without any (chosen_idx -1)."""
    req, n = batch.requests, len(batch)
    at = np.flatnonzero(chosen)
    none = np.flatnonzero(np.bincount(owner[at], minlength=n) == 0)
    rows = np.concatenate([owner[at], none])
    slots = np.concatenate([_slots(batch, at, owner), np.zeros(len(none), np.int32)])
    cand_at = np.concatenate([at, np.full(len(none), -1, np.int64)])
    order = np.lexsort((slots, rows))
    rows, slots, cand_at = rows[order], slots[order], cand_at[order]
    notification = req["surface"][rows] == Surface.notification
    out: dict[str, Any] = {name: values[rows] for name, values in common.items()}
    out |= {"slot": slots, "surface": req["surface"][rows]}
    out["chosen_idx"] = np.where(cand_at >= 0, cand_at - batch.offsets[rows], -1).astype(np.int32)
    out.update(_chosen_copies(batch.candidates, cand_at, hashes))
    out.update(_outcomes(batch, rows, cand_at, notification))
    out.update(_ghosts(batch, owner, rows))
    out["read_version"] = out["order"]
    commit_version, granted, keys = ledger
    if commit_version is not None:
        out["commit_version"] = commit_version[rows]
    served = (out["action"] == Action.send) | (out["action"] == Action.show)
    out["granted"] = served if granted is None else served & (~notification | granted[rows])
    if keys is not None:
        out["idempotency_key"] = pa.array(keys, pa.binary()).take(pa.array(rows))
    return out


def _slots(batch: Batch, at: I64, owner: I64) -> npt.NDArray[np.int32]:
    """Slot of each chosen candidate; sends without a slot are numbered in candidate order."""
    cand = batch.candidates
    given = cand["slot"][at] if "slot" in cand else np.full(len(at), -1, np.int32)
    if len(at) == 0 or (given >= 0).all():
        return given.astype(np.int32)
    rows = owner[at]
    first = np.searchsorted(rows, rows)
    return np.where(given >= 0, given, np.arange(len(at)) - first).astype(np.int32)


def _chosen_copies(cand: Columns, cand_at: I64, hashes: EntityHashes) -> dict[str, Array]:
    out: dict[str, Array] = {}
    known = cand_at >= 0
    picked = cand.take(cand_at[known])
    copies = dict(picked) | _entity_columns(picked, hashes)
    for name in (*_CHOSEN_COPIES, "counts"):
        if name in copies:
            out[name] = np.full(len(cand_at), SENTINELS.get(name, 0), copies[name].dtype)
            out[name][known] = copies[name]
    return out


def _outcomes(batch: Batch, rows: I64, cand_at: I64, notification: Bools) -> dict[str, Array]:
    """action, reason, until, p_action, p_none, forced, explored of each decision row."""
    req, cand, n = batch.requests, batch.candidates, len(batch)
    known = cand_at >= 0
    p_none = _flat(req, "p_none", n, np.nan)[rows].astype(np.float64)
    p_action = p_none.copy()
    if cand.rows:
        # A notification's probability is p_choice; a slate's is p_slot.
        m = cand.rows
        p_choice, p_slot = (_flat(cand, name, m, np.nan)[cand_at] for name in ("p_choice", "p_slot"))
        p_action = np.where(known, np.where(notification, p_choice, p_slot), p_action)
    action = np.where(known, np.where(notification, Action.send, Action.show), _flat(req, "action", n, Action.none)[rows])
    reason = np.where(known, Reason.chosen, _flat(req, "reason", n, Reason.none)[rows])
    return {
        "action": action.astype(np.int8),
        "reason": reason.astype(np.int8),
        "until": np.where(known, 0, _flat(req, "until", n, 0)[rows]).astype(np.int64),
        "p_action": p_action,
        "p_none": np.where(notification, p_none, 0.0),
        "forced": _flat(req, "forced", n, False)[rows].astype(np.bool_),
        "explored": _flat(req, "explored", n, False)[rows].astype(np.bool_),
    }


def _ghosts(batch: Batch, owner: I64, rows: I64) -> dict[str, Bools]:
    """ghost and ghost_first of the request, marked on its first row only, so that summing rows counts requests."""
    out: dict[str, Bools] = {}
    for name in ("ghost", "ghost_first"):
        marked = np.zeros(len(batch), np.bool_)
        if name in batch.candidates:
            marked[owner[batch.candidates[name]]] = True
        first = np.concatenate([[True], rows[1:] != rows[:-1]]) if len(rows) else np.zeros(0, np.bool_)
        out[name] = marked[rows] & first
    return out
