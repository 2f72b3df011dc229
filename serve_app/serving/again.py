"""Deferrals whose time has come, as requests to be decided anew.

A re-decision is a request like any other (`origin` deferral, `parent_request_id`, the root's noise key, `attempt` one
higher) about the messages its parent could choose from, as campaigns, items and the user's state are now. Everything that
identifies it follows from its parent: whoever decides it again meets the same request id and the same idempotency key, so
that a deferral answers once, whatever dies in between.

Words: a deferral's *child* is the re-decision that settles it. Nobody waits for a child's answer, so what it grants goes to
the outbox, whatever the campaign's own `delivery` says.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, lengths_to_offsets
from serve_app.campaigns import CampaignTable
from serve_app.columns import CANDIDATE_COLUMNS
from serve_app.errors import DamagedArtifact
from serve_app.ledger.protocol import Deferral
from serve_app.ledger.record import unpack_record
from serve_app.serving.asking import notification_requests
from serve_app.serving.library import Edition
from serve_app.stages.decision.deferrals import children_of
from serve_app.vocabulary import Delivery, Origin, Source

__all__ = ["Again", "Due", "asked_again", "read_due"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

_KEY = struct.Struct("<QQH")
_DIGEST = struct.Struct("<Q")
_FRESH = ("message_class", "category", "priority", "cost", "margin", "expires_at", "labelled", "segment")
_RECORDED = (*_FRESH, "campaign", "channel")


@dataclass(frozen=True, slots=True)
class Due:
    """One deferral with its record read. candidates: columns of the record by name."""

    deferral: Deferral
    request: dict[str, Any]
    candidates: dict[str, npt.NDArray[Any]]

    @property
    def root(self) -> int:
        """Request id of the first request of the chain."""
        return int(self.request.get("root_id") or self.deferral.request_id)

    @property
    def attempt(self) -> int:
        """Generation of the child: 1 for the first re-decision."""
        return int(self.request.get("attempt", 0)) + 1

    @property
    def key(self) -> bytes:
        """K#n: 16 bytes that stand for (user, first request of the chain, generation)."""
        said = _KEY.pack(self.deferral.user, self.root, self.attempt)
        return hashlib.blake2b(said, digest_size=16, person=b"deferral").digest()

    @property
    def digest(self) -> bytes:
        """What K#n asks: the deferral, which never changes."""
        return hashlib.blake2b(_DIGEST.pack(self.deferral.request_id), digest_size=16, person=b"deferral").digest()


@dataclass(frozen=True, slots=True)
class Again:
    """Requests with candidates, and their keys and digests by row."""

    batch: Batch
    keys: list[bytes]
    digests: list[bytes]


def read_due(deferrals: Sequence[Deferral]) -> tuple[list[Due], list[tuple[Deferral, str]]]:
    """The deferrals with their records, and those whose record cannot be read, with what is wrong."""
    found, damaged = [], []
    for one in deferrals:
        try:
            record = unpack_record(one.record)
            found.append(Due(one, record["request"], record["candidates"]))
        except (DamagedArtifact, ValueError, KeyError, TypeError) as error:
            damaged.append((one, str(error)))
    return found, damaged


def asked_again(due: Sequence[Due], edition: Edition, now: int, deadline_at: int) -> Again:
    """The children of `due`, asked at `now`. A campaign or item that is no longer there leaves a candidate that is switched
    off, so that the log says why it was not sent."""
    n = len(due)
    users = np.array([one.deferral.user for one in due], np.uint64)
    parents = np.array([one.deferral.request_id for one in due], np.uint64)
    batch = notification_requests(
        edition,
        request_ids=children_of(users, parents),
        users=users,
        decided_at=np.full(n, now, np.int64),
        deadline_at=np.full(n, deadline_at, np.int64),
        slots=np.array([one.request.get("slots", 1) for one in due], np.int32),
        expires_at=np.array([one.request.get("expires_at", 0) for one in due], np.int64),
        origin=Origin.deferral,
        root_ids=np.array([one.root for one in due], np.uint64),
        parents=parents,
        attempts=np.array([one.attempt for one in due], np.int16),
    )
    with_candidates = _with_candidates(batch, due, edition)
    return Again(with_candidates, [one.key for one in due], [one.digest for one in due])


def _with_candidates(batch: Batch, due: Sequence[Due], edition: Edition) -> Batch:
    offsets = lengths_to_offsets([len(one.candidates["campaign"]) for one in due])
    recorded = {name: _joined(due, name, CANDIDATE_COLUMNS[name].dtype) for name in _RECORDED}
    table = edition.campaigns
    row = table.rows_of(recorded["campaign"])
    known = (row >= 0) & _allowed(table, row, recorded["channel"])
    fresh = {name: np.where(known, getattr(table, name)[row], recorded[name]) for name in _FRESH} if len(table) else {}
    at = np.repeat(batch.requests["decided_at"], np.diff(offsets))
    killed = ~known
    if len(table):
        killed |= (at < table.starts_at[row]) | table.closed[row]
    item, gone = _items(_joined(due, "item_hash", np.dtype(np.uint64)), edition)
    return batch.with_candidates(
        offsets,
        **{**recorded, **fresh},
        item=item,
        campaign_killed=killed | gone,
        delivery=np.full(len(row), Delivery.outbox, np.int8),
        sources=np.full(len(row), Source.given, np.uint32),
        retrieval_score=np.zeros(len(row), np.float64),
    )


def _joined(due: Sequence[Due], name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """One column of all records, 0 where a record lacks it."""
    parts = [one.candidates.get(name, np.zeros(len(one.candidates["campaign"]), dtype)) for one in due]
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)


def _allowed(table: CampaignTable, row: I32, channel: npt.NDArray[np.int8]) -> Bools:
    """bool[m]: does the campaign still use the channel?"""
    if not len(table):
        return np.zeros(len(row), np.bool_)
    bits = np.zeros(len(table), np.uint16)
    owner = np.repeat(np.arange(len(table)), table.channels.lengths)
    np.bitwise_or.at(bits, owner, np.uint16(1) << table.channels.values.astype(np.uint16))
    known: Bools = (bits[row] >> np.maximum(channel, 0).astype(np.uint16)) & 1 == 1
    return known & (channel >= 0)


def _items(hashes: U64, edition: Edition) -> tuple[I32, Bools]:
    """Rows of the candidates' items (-1: about none), and who is about an item that cannot be had now."""
    about = hashes != 0
    item = np.full(len(hashes), -1, np.int32)
    item[about] = edition.view.rows_of(hashes[about])
    hidden = (item >= 0) & edition.view.overlay.unavailable[np.maximum(item, 0)] if len(hashes) else about
    return item, (about & (item < 0)) | hidden
