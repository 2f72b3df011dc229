"""From a finished batch to rows of the log: requests, candidates, decisions.

The server writes these rows to its journal (`given_from_batch`), the world writes them to Parquet (`rows_from_batch`); both
take the same columns. Columns the batch does not carry get their sentinel (see `serve_app.log.schema`). Vectorized: no
Python object per row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NotRequired, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import Batch, Columns, Ragged
from serve_app.ids import hash_id
from serve_app.log.chosen import chosen_candidates, decision_columns
from serve_app.log.entities import EntityHashes, entity_columns, rows_to_hashes
from serve_app.log.filling import Names, assignments, fill
from serve_app.log.given import GivenRows, given_rows
from serve_app.log.schema import TABLES
from serve_app.log.short import Repeats, Runs, Some
from serve_app.noise import hash_key, salt_of, uniform
from serve_app.policy.zones import zone_name
from serve_app.regions import region_name
from serve_app.vocabulary import Surface

__all__ = ["EntityHashes", "Stamps", "assignments", "fill", "given_from_batch", "logged_in_full", "rows_from_batch"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]

_SAMPLE = salt_of("log sample")
_NOTIFICATION = np.int8(Surface.notification)
_ITEMS, _PLACES = ("recents", "bought", "excluded"), (("zone", zone_name), ("region", region_name))
# Columns that batch and log have under one name, each with the same meaning.
_REQUEST_COPIES = frozenset(
    name
    for name in TABLES["requests"].names
    if name not in {"arms", "log_rate", *_ITEMS, "anchor", "categories", "zone", "region"}
)
_CANDIDATE_COPIES = frozenset(name for name in TABLES["candidates"].names if name not in {"item", "widget", "review"})


class Stamps(TypedDict):
    """What rows are stamped with beside the batch. policy_revision: one text, or texts indexed by the requests' `policy`.
    commit_version i64[n] and granted bool[n] are what the ledger answered (default: nothing written; granted where the
    action is send or show). arms, holdouts: lists of (id, arm, p), see `serve_app.log.assigned`. matrices: columns of the
    batch's candidates that only some of them have, in place of its own."""

    hashes: EntityHashes
    policy_revision: str | Sequence[str]
    release: str
    fingerprint: str
    salt: int
    code_version: str
    commit_version: NotRequired[I64 | None]
    granted: NotRequired[Bools | None]
    idempotency_keys: NotRequired[Sequence[bytes] | None]
    arms: NotRequired[Ragged | pa.ListArray | None]
    holdouts: NotRequired[Ragged | pa.ListArray | None]
    matrices: NotRequired[Mapping[str, Some]]


def logged_in_full(request_ids: U64, log_rate: F64) -> Bools:
    """bool[n]: whole requests drawn by a hash of the request id, so that every writer and reader agrees."""
    if (log_rate >= 1.0).all():  # what is drawn is below 1
        return np.ones(len(request_ids), np.bool_)
    return uniform(hash_key(_SAMPLE, request_ids)) < log_rate


def rows_from_batch(batch: Batch, **stamps: Unpack[Stamps]) -> dict[str, pa.RecordBatch]:
    """Rows of `requests`, `candidates` and `decisions` of a batch whose last stage has run.

    A candidate is chosen where its `slot` >= 0 or its `action` is send. Raises InvalidInput where the batch lacks
    request_id, user, surface or decided_at.
    """
    return {table: fill(table, rows, columns) for table, (rows, columns) in _tables(batch, stamps).items()}


def given_from_batch(batch: Batch, **stamps: Unpack[Stamps]) -> dict[str, GivenRows]:
    """The same rows for the journal, which makes them once they are read. Raises what `rows_from_batch` raises."""
    return {table: given_rows(table, rows, columns) for table, (rows, columns) in _tables(batch, stamps).items()}


def _tables(batch: Batch, stamps: Stamps) -> dict[str, tuple[int, dict[str, Any]]]:
    """Number of rows and given columns of each table."""
    req, hashes = batch.requests, stamps["hashes"]
    notification = req["surface"] == _NOTIFICATION
    log_rate = req["log_rate"] if "log_rate" in req else np.ones(len(batch))
    full = notification if notification.all() else notification | logged_in_full(req["request_id"], log_rate)
    chosen = chosen_candidates(batch)
    order = req["read_version"] if "read_version" in req else np.full(len(batch), -1)
    common = {"user": req["user"], "ts": req["decided_at"], "order": order, "request_id": req["request_id"]}
    requests = {**common, **_request_columns(batch, stamps), "full": full, "log_rate": np.where(notification, 1.0, log_rate)}
    kept = None if full.all() else np.repeat(full, np.diff(batch.offsets)) | chosen
    rows, candidates = _candidate_columns(batch, kept, common, hashes, stamps.get("matrices", {}))
    ledger = (stamps.get("commit_version"), stamps.get("granted"), stamps.get("idempotency_keys"))
    decided, decisions = decision_columns(batch, chosen, common, hashes, ledger)
    return {"requests": (len(batch), requests), "candidates": (rows, candidates), "decisions": (decided, decisions)}


def _request_columns(batch: Batch, stamps: Stamps) -> dict[str, Any]:
    """Request columns of the batch that the log has too, row indices turned into hashes, and what all rows share."""
    req, hashes = batch.requests, stamps["hashes"]
    out: dict[str, Any] = {name: values for name, values in req.items() if name in _REQUEST_COPIES}
    for name in _ITEMS:
        if name in req:
            out[name] = _hashed(req[name], hashes.items)
    if "categories" in req:
        out["categories"] = _hashed(req["categories"], hashes.categories)
    for name, name_of in _PLACES:
        if name in req:
            out[name] = _place(req[name], name_of)
    if "arms" in req:
        out["arm_bits"] = req["arms"]
    if "anchor" in req:
        out["anchor"] = rows_to_hashes(req["anchor"], hashes.items)
    out["policy_revision"] = _revisions(stamps["policy_revision"], req)
    out |= {"arms": stamps.get("arms"), "holdouts": stamps.get("holdouts")}
    out |= {"release": stamps["release"], "code_version": stamps["code_version"], "fingerprint": stamps["fingerprint"]}
    out["salt"] = Runs.constant(np.uint64(stamps["salt"]), len(batch))
    out["candidate_count"] = np.diff(batch.offsets).astype(np.int32)
    for one in ("head", "feature", "gate"):
        out[f"{one}_names"] = _names(batch, f"{one}s")
    return out


def _place(indices: npt.NDArray[np.int16], name_of: Callable[[int], str]) -> str | Names:
    """Zones or regions (-1: unknown) by name."""
    if len(indices) == 1:
        index = int(indices[0])
        return name_of(index) if index >= 0 else ""
    return Names.of(indices, name_of)


def _hashed(rows: Ragged, table: U64) -> Ragged:
    return Ragged(rows_to_hashes(rows.values, table), rows.offsets)


def _revisions(revision: str | Sequence[str], req: Columns) -> str | Names:
    if isinstance(revision, str):
        return revision
    places = req["policy"].astype(np.int32) if "policy" in req else np.zeros(req.rows, np.int32)
    return Names(places, tuple(revision))


def _names(batch: Batch, key: str) -> str:
    names = batch.meta.get(key, ())
    return names if isinstance(names, str) else _commas(tuple(names))


@lru_cache(maxsize=256)
def _commas(names: tuple[str, ...]) -> str:
    return ",".join(names)


def _candidate_columns(
    batch: Batch, kept: Bools | None, common: Mapping[str, Array], hashes: EntityHashes, matrices: Mapping[str, Some]
) -> tuple[int, dict[str, Any]]:
    """Number of rows and columns of the candidates `kept` (None: all)."""
    cand, counts = batch.candidates, np.diff(batch.offsets)
    place = _within(batch.offsets, counts, cand.rows)
    if kept is not None and not kept.all():
        places = np.flatnonzero(kept)
        cand, place = cand.take(places), place[places]
        matrices = {name: one.take(places) for name, one in matrices.items()}
        counts = np.diff(np.searchsorted(places, batch.offsets))
    rows, repeats = cand.rows, Repeats.of(counts)
    out: dict[str, Any] = {name: Runs(values, repeats) for name, values in common.items()}
    out["idx"] = place
    out.update({name: values for name, values in cand.items() if name in _CANDIDATE_COPIES})
    out.update(matrices)
    out.update(entity_columns(cand, hashes))
    if "slot" not in cand:
        out["slot"] = Runs.constant(np.int32(-1), rows)
    out["feature_plan"] = Runs.constant(_plan_hash(_names(batch, "features")), rows)
    return rows, out


def _within(offsets: I64, counts: I64, rows: int) -> npt.NDArray[np.int32]:
    """i32[m]: the place of each candidate among its request's."""
    place = np.arange(rows, dtype=np.int32)
    if len(counts) > 1:
        place -= np.repeat(offsets[:-1], counts).astype(np.int32)
    return place


@lru_cache(maxsize=64)
def _plan_hash(plan: str) -> np.uint64:
    return np.uint64(hash_id(plan) if plan else 0)
