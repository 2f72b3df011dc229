"""Decision records of the ledger as rows of the log: the same rows the journal would have held, but for what a record does
not keep (features, recents)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from serve_app.batch import Batch, Columns, lengths_to_offsets
from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS
from serve_app.errors import DamagedArtifact, HindcastError
from serve_app.ledger.protocol import StoredRecord
from serve_app.ledger.record import unpack_record
from serve_app.log.assigned import Assigned, assigned_lists
from serve_app.log.rows import EntityHashes, rows_from_batch
from serve_app.log.schema import TABLES
from serve_app.policy.assigned import Trials
from serve_app.vocabulary import Action, Surface

__all__ = ["RecordRows", "rows_of_records"]

_ALWAYS = ("request_id", "user", "decided_at", "action")
_PLACES = ("zone", "region")


@dataclass(slots=True)
class RecordRows:
    """tables: rows by log table; unreadable: ids of records that are damaged or lack what a row must have."""

    tables: dict[str, pa.Table] = field(default_factory=dict)
    unreadable: list[int] = field(default_factory=list)


def rows_of_records(records: Sequence[StoredRecord]) -> RecordRows:
    """Rows of requests, candidates and decisions."""
    out = RecordRows()
    alike: defaultdict[tuple[Any, ...], list[tuple[StoredRecord, dict[str, Any]]]] = defaultdict(list)
    for one in records:
        try:
            alike[_shape(one, found := unpack_record(one.record))].append((one, found))
        except HindcastError:
            out.unreadable.append(one.id)
    parts = [_rows([one for one, _ in group], [found for _, found in group]) for group in alike.values()]
    for table in parts[0] if parts else ():
        batches = [part[table] for part in parts]
        out.tables[table] = pa.Table.from_batches(batches, schema=TABLES[table]).unify_dictionaries()
    return out


def _shape(one: StoredRecord, found: dict[str, Any]) -> tuple[Any, ...]:
    """What records must share to become one batch. DamagedArtifact: it is not of the decision it is stored under."""
    request, meta = found["request"], found["meta"]
    if any(name not in request for name in _ALWAYS):
        raise DamagedArtifact("the record lacks what every decision has")
    if (request["user"], request["request_id"]) != (one.user, one.request_id):
        raise DamagedArtifact("the record is of another decision")
    names = [meta.get(key) or () for key in ("gates", "heads", "policy_revisions")]
    scalars = [meta.get(key) for key in ("release", "code_version", "fingerprint")]
    return (
        tuple(request), tuple(found["candidates"]), *map(tuple, names), *scalars, str(meta.get("trials")),
    )  # fmt: skip


def _rows(records: Sequence[StoredRecord], found: Sequence[dict[str, Any]]) -> dict[str, pa.RecordBatch]:
    requests, meta = [one["request"] for one in found], found[0]["meta"]
    batch, hashes = _batch(found)
    trials = [Trials.of_document(one) for one in meta.get("trials") or ()]
    pinned = requests[0].get("policy", 0) if trials else 0
    uniform_pin = all(one.get("policy", 0) == pinned for one in requests)
    rows = rows_from_batch(
        batch,
        hashes=hashes,
        policy_revision=list(meta.get("policy_revisions") or [""]),
        release=meta.get("release") or "",
        fingerprint=meta.get("fingerprint") or "",
        salt=trials[pinned].flip_salt if trials and uniform_pin else 0,
        code_version=meta.get("code_version") or "",
        commit_version=np.array([one.version for one in records], np.int64),
        granted=batch.requests["action"] == Action.send,
        idempotency_keys=[one.get("idempotency_key", b"") for one in requests],
        **_assigned(requests, trials),
    )
    places = {name: pa.array([one.get(name, "") for one in requests]).dictionary_encode() for name in _PLACES}
    table = rows["requests"]
    for name, values in places.items():
        table = table.set_column(table.schema.get_field_index(name), TABLES["requests"].field(name), values)
    return {**rows, "requests": table}


def _assigned(requests: Sequence[dict[str, Any]], trials: Sequence[Trials]) -> Assigned:
    if not trials:
        return {}
    pinned = np.array([one.get("policy", 0) for one in requests], np.int64)
    bits, held = (np.array([one.get(name) or 0 for one in requests], np.uint64) for name in ("arms", "held"))
    return assigned_lists(trials, pinned, bits, held)


def _batch(found: Sequence[dict[str, Any]]) -> tuple[Batch, EntityHashes]:
    """The records' columns as one batch; item rows index the hashes beside it."""
    n, first = len(found), found[0]
    requests = Columns(n, REQUEST_COLUMNS)
    for name in first["request"]:
        if name in REQUEST_COLUMNS and name not in _PLACES:
            requests[name] = np.array([one["request"][name] for one in found], REQUEST_COLUMNS[name].dtype)
    if "surface" not in requests:
        requests["surface"] = np.full(n, Surface.notification, np.int8)
    offsets = lengths_to_offsets([_count(one["candidates"]) for one in found])
    candidates = Columns(int(offsets[-1]), CANDIDATE_COLUMNS)
    whole = {name: np.concatenate([one["candidates"][name] for one in found]) for name in first["candidates"]}
    items = np.empty(0, np.uint64)
    for name, values in whole.items():
        if name == "item_hash":
            items, places = np.unique(values, return_inverse=True)
            candidates["item"] = np.where(values != 0, places, -1).astype(np.int32)
        else:
            candidates[name] = values.astype(CANDIDATE_COLUMNS[name].dtype, copy=False)
    meta = {name: tuple(first["meta"].get(name) or ()) for name in ("gates", "heads")}
    return Batch(requests, candidates, offsets, meta), EntityHashes(items)


def _count(candidates: dict[str, Any]) -> int:
    return len(next(iter(candidates.values()))) if candidates else 0
