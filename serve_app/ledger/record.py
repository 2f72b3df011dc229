"""The decision record: all that a decision saw and said, as bytes that need nothing else to be read.

::

    magic "HR" | schema u2 | request mask u8 | candidate mask u8 | candidates u4 | gates u2 | heads u2 | meta length u4
    meta (JSON: names of gates and heads, release, policies ...) | request row | candidate rows

Rows are packed little-endian structs of the columns whose bit stands in the mask, in the order declared here. The order
is the format: add at the end, never move. Zone and region go by name, because their indices belong to a process. Arms and
holdouts go as bits, with their names and shares in the meta (`serve_app.policy.assigned.Trials`).

A record holds what the Decision stage read and said. What the heads were computed from (features, recents) is in the journal
frame of the same decision; a log row that only a record could give has heads, and `feature_plan` 0.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Columns
from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.ledger.records import Records, assemble
from serve_app.policy.assigned import Trials, held_bits, trials_of
from serve_app.policy.zones import zone_count, zone_name
from serve_app.regions import REGIONS, region_name

if TYPE_CHECKING:
    from serve_app.policy.compile import CompiledPolicy

__all__ = ["RECORD_SCHEMA", "pack_records", "unpack_record"]

RECORD_SCHEMA = 2
_READABLE = (1, 2)  # 2: more columns, whose bits a reader of 1 would not know
_MAGIC = b"HR"
_HEAD = struct.Struct("<2sHQQIHHI")
_COUNT_AT = struct.calcsize("<2sHQQ")

# fmt: off
_REQUEST = (
    "request_id", "root_id", "parent_request_id", "attempt", "surface", "origin", "trigger_event_id", "decided_at",
    "env_seq", "policy", "cell", "epoch", "p_cell", "user", "zone", "region", "consent_ad_at", "consent_night_at",
    "customer_until", "reachable", "opted_out", "segments", "segments_at", "read_version", "width", "slots", "degraded",
    "cold", "log_rate", "availability_seq", "p_none", "explored", "forced", "action", "reason", "until", "expires_at",
    "context_hour", "context_device", "arms", "variant", "held", "idempotency_key",
    "refunds_read",
)
_CANDIDATE = (
    "item_hash", "campaign", "channel", "message_class", "category", "priority", "sources", "retrieval_score", "drop_reason",
    "heads", "value", "slot", "p_slot", "cost", "margin", "expires_at", "labelled", "campaign_killed", "segment", "delivery",
    "gates_evaluated", "gate_outcome", "gate_reason", "used", "limit", "next_free_at", "reason", "action", "until",
    "p_choice", "ghost", "ghost_first", "holdout", "counts", "p_shadow",
)
# fmt: on
_PER_GATE = frozenset({"gate_outcome", "gate_reason", "used", "limit", "next_free_at"})
_NAMED = {"zone": "S40", "region": "S16"}
_OWN = {"item_hash": "<u8", "held": "<u8", "idempotency_key": "V16"}  # not columns of a batch
_META = (
    "gates", "heads", "release", "policies", "policy_revisions", "code_version", "fingerprint", "salt", "durability",
    "trials",
)  # fmt: skip
_NO_KEY = bytes(16)


@lru_cache(maxsize=256)
def _layout(order: tuple[str, ...], mask: int, gates: int, heads: int, *, request: bool) -> np.dtype[np.void]:
    fields: list[Any] = []
    for bit, name in enumerate(order):
        if not mask >> bit & 1:
            continue
        if request and name in _NAMED:
            fields.append((name, _NAMED[name]))
        elif name in _OWN:
            fields.append((name, _OWN[name]))
        else:
            kind = (REQUEST_COLUMNS if request else CANDIDATE_COLUMNS)[name].dtype.str
            width = gates if name in _PER_GATE else heads if name == "heads" else None
            if width != 0:
                fields.append((name, kind) if width is None else (name, kind, (width,)))
    return np.dtype(fields)


@lru_cache(maxsize=256)
def _mask(order: tuple[str, ...], present: tuple[str, ...]) -> int:
    return sum(1 << bit for bit, name in enumerate(order) if name in present)


@cache
def _texts(column: str) -> npt.NDArray[np.bytes_]:
    """Names by this process's indices, and "" behind the last, where -1 looks."""
    every = (zone_name(at) for at in range(zone_count())) if column == "zone" else map(region_name, range(REGIONS))
    return np.array([*(name.encode() for name in every), b""], _NAMED[column])


def _fill(rows: npt.NDArray[np.void], values: Mapping[str, Any]) -> npt.NDArray[np.void]:
    for name in rows.dtype.names or ():
        rows[name] = values[name]
    return rows


def _width(columns: Columns, names: frozenset[str]) -> int:
    return next((columns[name].shape[1] for name in names if name in columns), 0)


def pack_records(
    batch: Batch,
    *,
    item_hashes: npt.NDArray[np.uint64] | None = None,
    policies: Sequence[CompiledPolicy] = (),
    keys: Sequence[bytes] | None = None,
) -> Records:
    """One record per request of a decided batch, with all its candidates.

    item_hashes: u64 by item row of the release, where candidates have items. policies: what the requests' `policy` indexes,
    so that holdout assignments are kept. keys: 16-byte digests of the idempotency keys, b"" for none. Only columns the batch
    has are packed. `batch.meta` gives the names of gates and heads, the release and the policy revisions, where set.
    """
    if "request_id" not in batch.requests or "user" not in batch.requests:
        raise InvalidInput("a decision record needs request_id and user", field="request_id")
    request, candidate = _request_values(batch, policies, keys), batch.candidates.as_dict()
    if item_hashes is not None and "item" in candidate:
        items = candidate["item"]
        candidate["item_hash"] = np.where(items >= 0, item_hashes[np.maximum(items, 0)], np.uint64(0))
    gates, heads = _width(batch.candidates, _PER_GATE), _width(batch.candidates, frozenset({"heads"}))
    masks = _mask(_REQUEST, tuple(request)), _mask(_CANDIDATE, tuple(candidate))
    request_rows = np.empty(len(batch), _layout(_REQUEST, masks[0], gates, heads, request=True))
    candidate_rows = np.empty(batch.candidates.rows, _layout(_CANDIDATE, masks[1], gates, heads, request=False))
    revisions, trials = tuple(one.revision for one in policies), tuple(trials_of(one) for one in policies)
    meta = _said(tuple((name, _hashable(batch.meta[name])) for name in _META if name in batch.meta), revisions, trials)
    head = _HEAD.pack(_MAGIC, RECORD_SCHEMA, *masks, 0, gates, heads, len(meta))
    rows = _fill(request_rows, request), _fill(candidate_rows, candidate)
    return assemble(head + meta, _COUNT_AT, *rows, batch.offsets)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@lru_cache(maxsize=256)
def _said(meta: tuple[tuple[str, Any], ...], revisions: tuple[str, ...], trials: tuple[Trials, ...]) -> bytes:
    """The meta of a record as JSON; batch after batch says the same."""
    said = dict(meta)
    if revisions:
        said |= {"policy_revisions": revisions, "trials": [one.document() for one in trials]}
    return json.dumps({name: said[name] for name in _META if name in said}, separators=(",", ":")).encode()


def _request_values(batch: Batch, policies: Sequence[CompiledPolicy], keys: Sequence[bytes] | None) -> dict[str, Any]:
    """The request columns as a record keeps them."""
    out = batch.requests.as_dict()
    for name in _NAMED:
        if name in out:
            out[name] = _texts(name)[np.maximum(out[name], -1)]
    if policies:
        out["held"] = _held(batch, policies)
    if keys:
        out["idempotency_key"] = np.frombuffer(b"".join(one or _NO_KEY for one in keys), "V16")
    return out


def _held(batch: Batch, policies: Sequence[CompiledPolicy]) -> npt.NDArray[np.uint64]:
    users = batch.requests["user"]
    if len(policies) == 1 or "policy" not in batch.requests:
        return held_bits(policies[0].holdouts, users)
    pinned, out = batch.requests["policy"], np.zeros(len(users), np.uint64)
    for index in np.unique(pinned).tolist():
        mine = pinned == index
        out[mine] = held_bits(policies[index].holdouts, users[mine])
    return out


@lru_cache(maxsize=256)
def _meta(text: bytes) -> dict[str, Any]:
    """Records of a batch share theirs."""
    said: dict[str, Any] = json.loads(text)
    return said


def unpack_record(record: bytes) -> dict[str, Any]:
    """{"schema": int, "meta": dict, "request": {column: value}, "candidates": {column: array of c rows}}.

    Per-gate columns are [c, G] with the names in meta["gates"], heads [c, H]. Raises DamagedArtifact.
    """
    if len(record) < _HEAD.size or record[:2] != _MAGIC:
        raise DamagedArtifact("not a decision record", hint="check the ledger with `hindcast ledger check`")
    _, schema, *masks, count, gates, heads, meta_length = _HEAD.unpack_from(record)
    if schema not in _READABLE:
        raise DamagedArtifact(
            f"decision record of schema {schema}, this version reads {RECORD_SCHEMA}", hint="upgrade hindcast"
        )
    wide = _layout(_REQUEST, masks[0], gates, heads, request=True)
    narrow = _layout(_CANDIDATE, masks[1], gates, heads, request=False)
    start = _HEAD.size + meta_length
    if len(record) != start + wide.itemsize + count * narrow.itemsize:
        raise DamagedArtifact("decision record of the wrong length", hint="check the ledger with `hindcast ledger check`")
    row = np.frombuffer(record, wide, 1, start)[0]
    request = {name: row[name].item() for name in wide.names or ()}
    for name in _NAMED.keys() & request.keys():
        request[name] = request[name].decode()
    if "idempotency_key" in request:
        request["idempotency_key"] = b"" if request["idempotency_key"] == _NO_KEY else request["idempotency_key"]
    rows = np.frombuffer(record, narrow, count, start + wide.itemsize)
    return {
        "schema": schema,
        "meta": dict(_meta(record[_HEAD.size : start])),
        "request": request,
        "candidates": {name: np.ascontiguousarray(rows[name]) for name in narrow.names or ()},
    }
