"""What was asked, and what was known when: the notification requests of one bucket group of the log as a batch.

Rows stand in replay order: by user, and within a user by the ledger version each decision read; of the decisions that read
the same version, those that wrote come last, since the others did not see what they wrote.

Requests that the policy never decided are set aside: retries answered with what was decided before, requests that met no
ledger or lost every race for it, and transactional messages sent without it. They would have fared alike under any policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import Batch, Columns, lengths_to_offsets
from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS
from serve_app.errors import DamagedArtifact
from serve_app.kernels import kernel
from serve_app.log.places import region_indices, zone_indices
from serve_app.policy.assign import Assignment, assign
from serve_app.policy.compile import CompiledPolicy
from serve_app.vocabulary import Reason, StageBit, Surface
from simulators.replay.memberships import members_of
from simulators.replay.pack_columns import Decoder
from simulators.replay.pack_lazy import replaced

__all__ = ["COLUMNS_READ", "Opportunities", "opportunities_of"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Array = npt.NDArray[Any]

_REQUESTS = (
    "request_id", "root_id", "parent_request_id", "attempt", "surface", "origin", "trigger_event_id", "decided_at",
    "env_seq", "user", "consent_ad_at", "consent_night_at", "customer_until", "reachable", "opted_out",
    "segments", "segments_at", "refunds_read", "width", "slots", "degraded", "expires_at", "log_rate",
)  # fmt: skip
_CANDIDATES = (
    "campaign", "channel", "message_class", "category", "priority", "delivery", "labelled", "campaign_killed", "segment",
    "cost", "margin", "expires_at", "heads",
)  # fmt: skip
_OUTCOMES = (
    "value", "gate_outcome", "gate_reason", "used", "limit", "next_free_at", "reason", "action", "until", "p_choice",
    "p_shadow", "ghost", "ghost_first", "holdout", "slot",
)  # fmt: skip
_DECIDED = ("action", "reason", "until", "p_none", "forced", "explored", "read_version", "commit_version", "granted")
_KEYS = ("user", "request_id")
_NOT_DECIDED = [int(one) for one in (Reason.duplicate, Reason.ledger_unavailable, Reason.outcome_unknown)]
COLUMNS_READ: Mapping[str, tuple[str, ...]] = {
    "requests": (*_REQUESTS, "order", "zone", "region", "policy_revision", "head_names", "candidate_count"),
    "candidates": (*_KEYS, "item", *_CANDIDATES, *_OUTCOMES),
    "decisions": (*_KEYS, *_DECIDED),
}
"""What `opportunities_of` needs of each table."""


@dataclass(frozen=True)
class Opportunities:
    """batch: requests with candidates and logged heads; its `policy` column indexes `revisions`. item_hashes: u64 by item
    row of the batch. logged, logged_candidates: what was decided, aligned with requests and candidates; the outcome of a
    request is that of its first decision row. set_aside i64[reasons]: requests that no policy decided, by the reason they
    were answered with. packed: where columns of the candidates are read from, if it is a pack. rescored: (names, f32[m, H])
    of the heads that other policies weigh in place of the logged ones."""

    batch: Batch
    revisions: tuple[str, ...]
    item_hashes: U64
    logged: Mapping[str, Array]
    logged_candidates: Mapping[str, Array]
    set_aside: I64
    packed: Decoder | None = None
    rescored: tuple[tuple[str, ...], npt.NDArray[np.float32]] | None = None

    def __len__(self) -> int:
        return len(self.batch)

    def take(self, rows: I64) -> Opportunities:
        """Some of the requests (rising places)."""
        chosen = np.zeros(len(self), np.bool_)
        chosen[rows] = True
        flat = np.flatnonzero(chosen[self.batch.owner])
        return Opportunities(
            self.batch.take(rows),
            self.revisions,
            self.item_hashes,
            {name: values[rows] for name, values in self.logged.items()},
            {name: values[flat] for name, values in self.logged_candidates.items()},
            self.set_aside,
            rescored=None if self.rescored is None else (self.rescored[0], self.rescored[1][flat]),
        )

    def scored(self) -> Opportunities:
        """The same with the scores that other policies weigh: `rescored`, where there are any, in place of the logged."""
        if self.rescored is None:
            return self
        names, heads = self.rescored
        candidates = replaced(self.batch.candidates, CANDIDATE_COLUMNS, {"heads": heads})
        batch = Batch(self.batch.requests, candidates, self.batch.offsets, {**self.batch.meta, "heads": names})
        out = replace(self, batch=batch, rescored=None)
        vars(out).update(begins=self.begins, users=self.users, owner=self.owner)
        return out

    def members(self, behaviour: Sequence[CompiledPolicy], segments: Sequence[str]) -> npt.NDArray[np.bool_] | None:
        """bool[n]: requests of users in one of `segments` then; None: none is named. See `memberships.members_of`."""
        requests = self.batch.requests
        return members_of(self.logged["policy"], requests["segments"], requests["segments_at"], behaviour, segments)

    @cached_property
    def begins(self) -> I64:
        """i64[u + 1]: the first request of each user, and the end."""
        users = self.batch.requests["user"]
        first = np.flatnonzero(users[1:] != users[:-1]) + 1
        return np.concatenate([[0], first, [len(users)]]) if len(users) else np.zeros(1, np.int64)

    @cached_property
    def users(self) -> U64:
        """u64[u]: the users, ascending."""
        out: U64 = self.batch.requests["user"][self.begins[:-1]]
        return out

    @cached_property
    def owner(self) -> I64:
        """i64[n]: each request's user, as a row of `users`."""
        return np.repeat(np.arange(len(self.users)), np.diff(self.begins))

    def coded(self, name: str) -> tuple[Array, Array]:
        """(values, codes): a column of the candidates is values[codes]; values may repeat, and some may be used by none."""
        known = self.packed.coded(name) if self.packed is not None else None
        if known is not None:
            return known
        column = pa.array(self.batch.candidates[name]).dictionary_encode()
        return column.dictionary.to_numpy(zero_copy_only=False), column.indices.to_numpy(zero_copy_only=False)

    def assigned(self, policy: CompiledPolicy) -> Assignment:
        """The policy's own assignment of each request to arms and cell."""
        return assign(policy.trials, self.batch.requests["user"], self.batch.requests["decided_at"])


@kernel
def _match(users: U64, ids: U64, row_users: U64, row_ids: U64, first: I64, count: I64) -> int:
    """first[i], count[i]: the run of rows that belong to request i. Both sides stand in the same order. Returns the first
    row that belongs to none; len(row_ids) when there is none."""
    place = 0
    for i in range(len(ids)):
        first[i] = place
        while place < len(row_ids) and row_ids[place] == ids[i] and row_users[place] == users[i]:
            place += 1
        count[i] = place - first[i]
    return place


def opportunities_of(requests: pa.Table, candidates: pa.Table, decisions: pa.Table) -> Opportunities:
    """From the three tables of one bucket group, each in the log's order. Raises DamagedArtifact where a candidate or
    decision belongs to no request, or a request has lost candidates."""
    users, ids = _flat(requests, "user"), _flat(requests, "request_id")
    _refuse_copies(users, ids)
    candidate_first, candidate_count = _runs(users, ids, candidates, "candidates")
    decision_first, decision_count = _runs(users, ids, decisions, "decisions")
    mine = np.flatnonzero(_flat(requests, "surface") == Surface.notification)
    _refuse(decision_count[mine] == 0, ids[mine], "decisions", "has no decision")
    mine, set_aside = _decided_by_a_policy(requests, decisions, mine, decision_first)
    written = _flat(decisions, "commit_version")[decision_first[mine]] >= 0
    keys = (ids[mine], _flat(requests, "decided_at")[mine], written, _flat(requests, "order")[mine], users[mine])
    mine = mine[np.lexsort(keys)]
    said = _flat(requests, "candidate_count")[mine]
    _refuse(candidate_count[mine] < said, ids[mine], "candidates", "has lost candidates")
    _refuse(candidate_count[mine] > said, ids[mine], "candidates", "has more candidates than it was decided over")
    offsets = lengths_to_offsets(candidate_count[mine])
    rows = np.arange(offsets[-1]) + np.repeat(candidate_first[mine] - offsets[:-1], candidate_count[mine])
    chosen = np.repeat(np.arange(len(mine)), candidate_count[mine])[_flat(candidates, "slot")[rows] >= 0]
    wanted = np.maximum(np.bincount(chosen, minlength=len(mine)), 1)
    _refuse(decision_count[mine] != wanted, ids[mine], "decisions", "has not one decision for each of its sends")
    batch, revisions, items = _batch(requests, candidates, mine, rows, offsets)
    chosen = decision_first[mine]
    return Opportunities(
        batch,
        revisions,
        items,
        {"policy": batch.requests["policy"], **{name: _flat(decisions, name)[chosen] for name in _DECIDED}},
        {name: _values(candidates, name, rows) for name in _OUTCOMES},
        set_aside,
    )


def _refuse(wrong: npt.NDArray[np.bool_], ids: U64, table: str, words: str) -> None:
    """DamagedArtifact for the first request that is wrong."""
    if wrong.any():
        bad, more = int(ids[np.flatnonzero(wrong)[0]]), int(wrong.sum()) - 1
        also = f", and {more:,} more like it" if more else ""
        message = f"request {bad:016x} {words}{also}"
        raise DamagedArtifact(message, field=f"log.{table}", hint="restore the log's files from where it was written")


def _refuse_copies(users: U64, ids: U64) -> None:
    """Copies stand beside each other: the same request has the same place in the order."""
    again = np.flatnonzero((ids[1:] == ids[:-1]) & (users[1:] == users[:-1]))
    if len(again):
        message = f"{len(again):,} requests stand twice, {int(ids[again[0]]):016x} the first of them"
        raise DamagedArtifact(message, field="log.requests", hint="a file was copied, or compacted twice: restore it")


def _decided_by_a_policy(requests: pa.Table, decisions: pa.Table, mine: I64, decision_first: I64) -> tuple[I64, I64]:
    """Of the requests `mine`, those a policy decided; and how many of the others there are, by reason (i64[reasons])."""
    first = decision_first[mine]
    reason, unread = _flat(decisions, "reason")[first], _flat(decisions, "read_version")[first] < 0
    aside = unread & np.isin(reason, _NOT_DECIDED) | (_flat(requests, "degraded")[mine] & StageBit.ledger != 0)
    return mine[~aside], np.bincount(reason[aside], minlength=len(Reason)).astype(np.int64)


def _runs(users: U64, ids: U64, rows: pa.Table, name: str) -> tuple[I64, I64]:
    first, count = np.empty(len(ids), np.int64), np.empty(len(ids), np.int64)
    own, requests = _flat(rows, "user"), _flat(rows, "request_id")
    reached = _match(users, ids, own, requests, first, count)
    if reached < len(rows):
        message = f"request {int(requests[reached]):016x} of the {name} is not among the requests, or out of order"
        raise DamagedArtifact(message, field=f"log.{name}", hint="run `hindcast log check`")
    return first, count


def _batch(
    requests: pa.Table, candidates: pa.Table, mine: I64, rows: I64, offsets: I64
) -> tuple[Batch, tuple[str, ...], U64]:
    columns = Columns(len(mine), REQUEST_COLUMNS)
    for name in _REQUESTS:
        columns[name] = _flat(requests, name)[mine].astype(REQUEST_COLUMNS[name].dtype, copy=False)
    columns["zone"] = zone_indices(requests["zone"])[mine]
    columns["region"] = region_indices(requests["region"])[mine]
    revisions, columns["policy"] = _coded(requests, "policy_revision", mine)
    of_candidates = Columns(len(rows), CANDIDATE_COLUMNS)
    for name in _CANDIDATES:
        values = _values(candidates, name, rows)
        if name != "heads" or values.shape[1] or not len(rows):  # nothing was scored: the stage is told of no heads
            of_candidates[name] = values.astype(CANDIDATE_COLUMNS[name].dtype, copy=False)
    items, inverse = np.unique(_flat(candidates, "item")[rows], return_inverse=True)
    known = items != 0
    of_candidates["item"] = np.where(known[inverse], inverse, -1).astype(np.int32)
    heads = _one_text(requests, "head_names", mine)
    meta = {"heads": tuple(heads.split(",")) if heads else ()}
    return Batch(columns, of_candidates, offsets, meta), revisions, items


def _flat(rows: pa.Table, name: str) -> Array:
    return rows[name].combine_chunks().to_numpy(zero_copy_only=False)


def _values(rows: pa.Table, name: str, chosen: I64) -> Array:
    """Flat values, or the [n, width] matrix of a column whose lists have one length. Candidates that nothing scored have no
    heads: theirs are NaN, which is what the gates read as not scored."""
    column = rows[name]
    if not pa.types.is_list(column.type):
        return _flat(rows, name)[chosen]
    lists = _as_list(column)
    every = len(chosen) == len(lists) and np.array_equal(chosen, np.arange(len(lists)))
    picked = lists if every else lists.take(pa.array(chosen))
    if not len(chosen):
        return np.empty((0, 0), picked.type.value_type.to_pandas_dtype())
    counts = np.diff(picked.offsets.to_numpy())
    lengths = np.unique(counts)
    unscored = name == "heads" and lengths[0] == 0
    if len(lengths) - unscored > 1:
        message = f"lists of {lengths[unscored * 1]} and of {lengths[-1]} values beside each other"
        raise DamagedArtifact(message, field=f"log.candidates.{name}", hint="replay the days before and after apart")
    values = picked.flatten().to_numpy(zero_copy_only=False)
    if not unscored:
        return values.reshape(len(chosen), int(lengths[0]))
    out = np.full((len(chosen), int(lengths[-1])), np.nan, values.dtype)
    out[counts > 0] = values.reshape(-1, int(lengths[-1])) if lengths[-1] else out[:0]
    return out


def _as_list(column: pa.ChunkedArray) -> pa.ListArray:
    return column.combine_chunks()


def _coded(rows: pa.Table, name: str, chosen: I64) -> tuple[tuple[str, ...], npt.NDArray[np.int16]]:
    column = rows[name].combine_chunks()
    column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    texts, codes = column.dictionary.to_pylist(), column.indices.to_numpy(zero_copy_only=False)[chosen]
    used, inverse = np.unique(codes, return_inverse=True)
    return tuple(texts[code] for code in used.tolist()), inverse.astype(np.int16)


def _one_text(rows: pa.Table, name: str, chosen: I64) -> str:
    texts, _ = _coded(rows, name, chosen)
    named: Sequence[str] = [text for text in texts if text]
    if len(named) > 1:
        raise DamagedArtifact(
            f"scores of {' and of '.join(named)} beside each other",
            field=f"log.requests.{name}",
            hint="replay the days before and after apart",
        )
    return named[0] if named else ""
