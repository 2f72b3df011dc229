"""What a decided batch writes: history entries, decision records, deferrals, outbox payloads, as one commit plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import orjson

from serve_app.batch import Batch, lengths_to_offsets
from serve_app.ids import decision_id_text
from serve_app.kernels import kernel
from serve_app.ledger.columns import HISTORY_DTYPE, CommitPlan
from serve_app.ledger.record import pack_records
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.zones import local_day
from serve_app.vocabulary import Action, Channel, Delivery, MessageClass, Origin

__all__ = ["commit_plan", "history_entries", "must_be_written", "outbox_payloads"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

# Looking a member up costs more than comparing one row.
_SEND, _DEFER, _DEFERRAL, _OUTBOX = int(Action.send), int(Action.defer), int(Origin.deferral), int(Delivery.outbox)


@kernel
def _any_by_request(offsets: I64, marks: Bool, out: Bool) -> None:
    for r in range(len(out)):
        for c in range(offsets[r], offsets[r + 1]):
            out[r] = out[r] or marks[c]


def settled_deferrals(batch: Batch) -> U64:
    """u64[n]: the deferral each request answers (a re-decision's parent); 0: none."""
    requests = batch.requests
    if "origin" not in requests or "parent_request_id" not in requests:
        return np.zeros(len(batch), np.uint64)
    answering = requests["origin"] == _DEFERRAL
    if not answering.any():
        return np.zeros(len(batch), np.uint64)
    return np.where(answering, requests["parent_request_id"], np.uint64(0))


def must_be_written(batch: Batch, keys: Sequence[bytes] | None) -> Bool:
    """bool[n]: grants, ghosts, deferrals, answers to a deferral, and rows with an idempotency key."""
    action = batch.requests["action"]
    out = (action == _SEND) | (action == _DEFER) | (settled_deferrals(batch) != 0)
    _any_by_request(batch.offsets, batch.candidates["ghost"], out)
    if keys is not None:
        out |= np.fromiter((key != b"" for key in keys), np.bool_, len(keys))
    return out


def history_entries(batch: Batch, policies: Sequence[CompiledPolicy]) -> tuple[npt.NDArray[np.void], I64]:
    """(entries, offsets i64[n + 1]): sends in slot order, then ghosts under their holdout's key."""
    rows, requests = batch.candidates, batch.requests
    chosen = np.flatnonzero((rows["slot"] >= 0) | rows["ghost"])
    owner = batch.owner[chosen]
    if len(chosen) > 1:
        place = np.where(rows["ghost"][chosen], np.iinfo(np.int32).max, rows["slot"][chosen])
        order = np.lexsort((chosen, place, owner))
        chosen, owner = chosen[order], owner[order]
    entries = np.zeros(len(chosen), HISTORY_DTYPE)
    for name in ("campaign", "category", "channel", "message_class"):
        entries[name] = rows[name][chosen]
    entries["slot"] = np.maximum(rows["slot"][chosen], 0)
    entries["at"], entries["request_id"] = requests["decided_at"][owner], requests["request_id"][owner]
    if len(chosen):
        entries["local_day"] = local_day(entries["at"], requests["zone"][owner])
        entries["holdout"] = _holdout_keys(batch, chosen, owner, policies)
    return entries, lengths_to_offsets(np.bincount(owner, minlength=len(batch)))


def _holdout_keys(batch: Batch, chosen: I64, owner: I64, policies: Sequence[CompiledPolicy]) -> U64:
    keys = np.zeros(len(chosen), np.uint64)
    holdout, ghost = batch.candidates["holdout"][chosen], batch.candidates["ghost"][chosen]
    pinned = batch.requests["policy"][owner] if "policy" in batch.requests else np.zeros(len(owner), np.int16)
    for index in np.unique(pinned[ghost]).tolist():
        mine = ghost & (pinned == index)
        keys[mine] = policies[index].holdouts.keys[holdout[mine]]
    return keys


def outbox_payloads(batch: Batch, item_hashes: U64 | None = None) -> list[bytes]:
    """JSON for the delivery worker, one per request (its sends in slot order); b"" where a caller delivers. Ids are hashes,
    expires_at (0: never) is the sooner of the request's and the candidate's."""
    rows = batch.candidates
    if "delivery" not in rows:
        return []
    queued = np.flatnonzero((rows["slot"] >= 0) & (rows["delivery"] == _OUTBOX))
    if not len(queued):
        return []
    owner = batch.owner[queued]
    sends: dict[int, list[dict[str, object]]] = {}
    for c, r in sorted(zip(queued.tolist(), owner.tolist(), strict=True), key=lambda pair: int(rows["slot"][pair[0]])):
        user, request = int(batch.requests["user"][r]), int(batch.requests["request_id"][r])
        slot, item = int(rows["slot"][c]), int(rows["item"][c]) if "item" in rows else -1
        send = {
            "decision_id": decision_id_text(user, request, slot),
            "campaign": f"{int(rows['campaign'][c]):016x}",
            "channel": Channel(int(rows["channel"][c])).name,
            "message_class": MessageClass(int(rows["message_class"][c])).name,
            "expires_at": _sooner(int(rows["expires_at"][c]), int(batch.requests["expires_at"][r])),
            "item": None if item_hashes is None or item < 0 else f"{int(item_hashes[item]):016x}",
        }
        sends.setdefault(r, []).append(send)
    at = batch.requests["decided_at"].tolist()
    return [orjson.dumps({"at": at[r], "sends": sends[r]}) if r in sends else b"" for r in range(len(batch))]


def _sooner(one: int, other: int) -> int:
    """The earlier of two times of which 0 means never."""
    return min(one, other) if one and other else one or other


def commit_plan(
    batch: Batch,
    policies: Sequence[CompiledPolicy],
    *,
    keys: Sequence[bytes] | None = None,
    digests: Sequence[bytes] | None = None,
    item_hashes: U64 | None = None,
    keep_records: bool = True,
) -> CommitPlan:
    """The plan of a decided batch in which no user repeats; every row of it is written."""
    entries, offsets = history_entries(batch, policies)
    requests = batch.requests
    return CommitPlan(
        users=requests["user"],
        read_versions=requests["read_version"],
        decided_at=requests["decided_at"],
        new_entries=entries,
        new_offsets=offsets,
        records=pack_records(batch, item_hashes=item_hashes, policies=policies, keys=keys) if keep_records else [],
        request_ids=requests["request_id"],
        keys=list(keys or []),
        digests=list(digests or []),
        outbox=outbox_payloads(batch, item_hashes),
        deferred_until=np.where(requests["action"] == _DEFER, requests["until"], 0),
        settles=settled_deferrals(batch),
    )
