"""A user's row in Redis, and batches of rows as columns.

A row is one string, `state | entries | head` (words in redis_commit.lua): read whole with one GET, written at its end. Zone
and region stand in it as hashes of their names, which any process turns into its own indices; the names themselves, the
proofs of consents and the id behind the user's hash lie beside it (`hc:{shard}:w<user>`), where only `get_user` looks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import lengths_to_offsets
from serve_app.errors import DamagedArtifact
from serve_app.ids import hash_id
from serve_app.kernels import kernel
from serve_app.ledger.columns import HISTORY_DTYPE, NEVER_KNOWN, Histories, LedgerView, UserState
from serve_app.ledger.protocol import Consent
from serve_app.policy.tzif import zone_names
from serve_app.policy.zones import zone_index
from serve_app.regions import region_index

__all__ = ["ENTRIES_AT", "STATE", "consents_of", "erased_of", "pack_consent", "pack_states", "skipped_of", "view_of"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

STATE = np.dtype(
    [
        ("consent_ad_at", "<i8"),
        ("consent_night_at", "<i8"),
        ("customer_until", "<i8"),
        ("zone", "<u8"),
        ("region", "<u8"),
        ("reachable", "<u2"),
        ("opted_out", "<u2"),
        ("spare", "<u4"),
    ]
)
_HEAD = struct.Struct(">qQIIQqq")  # version, newest record, entries, of which dropped, first kept, known since, erased
ENTRIES_AT = STATE.itemsize
_BLANK = bytes(ENTRIES_AT) + _HEAD.pack(0, 0, 0, 0, 0, NEVER_KNOWN, 0)
_CONSENT = struct.Struct("<qq")
_COPIED = ("consent_ad_at", "consent_night_at", "customer_until", "reachable", "opted_out")


class _Names:
    """Hashes of names against this process's indices."""

    def __init__(self, names: Sequence[str], index_of: Callable[[str], int]) -> None:
        hashes = np.asarray([hash_id(name) for name in names], np.uint64)
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._indices = np.asarray([index_of(name) for name in names], np.int16)[order]

    def indices(self, hashes: U64) -> npt.NDArray[np.int16]:
        """-1 for what this process does not know, 0 (no name) included."""
        if not hashes.any():
            return np.full(len(hashes), -1, np.int16)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return np.where(self._hashes[at] == hashes, self._indices[at], np.int16(-1))


@cache
def _zones() -> _Names:
    return _Names(list(zone_names()), zone_index)


@cache
def _regions() -> _Names:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return _Names([first + second for first in letters for second in letters], region_index)


@kernel
def _spread(words: I64, ends: I64, columns: I64) -> None:
    """The six words before and the six behind the entries of each row into `columns`[12, n]."""
    start = 0
    for i in range(len(ends)):
        end = ends[i]
        for k in range(6):
            columns[k, i] = words[start + k]
            columns[6 + k, i] = words[end - 6 + k]
        start = end


@kernel
def _collect(words: I64, ends: I64, offsets: I64, out: I64) -> None:
    """Kept entries (the last ones of each row), seven words each."""
    for i in range(len(ends)):
        length = 7 * (offsets[i + 1] - offsets[i])
        source, target = ends[i] - 6 - length, 7 * offsets[i]
        for k in range(length):
            out[target + k] = words[source + k]


def view_of(users: U64, rows: Sequence[bytes | None]) -> LedgerView:
    """What `Ledger.read` returns, of the users' rows (None: never written)."""
    texts = [row or _BLANK for row in rows]
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    total, odd = np.divmod(lengths - len(_BLANK), HISTORY_DTYPE.itemsize)
    if odd.any() or (total < 0).any():
        raise _damaged(users, (odd != 0) | (total < 0))
    words, ends = np.frombuffer(b"".join(texts), np.int64), np.cumsum(lengths) >> 3
    columns = np.empty((12, len(texts)), np.int64)
    _spread(words, ends, columns)
    heads = columns[6:].byteswap()  # version, newest record, entries and of them dropped, first kept, known since, erased
    skipped = heads[2] & 0xFFFFFFFF
    if (heads[2] >> 32 != total).any() or (skipped > total).any():
        raise _damaged(users, (heads[2] >> 32 != total) | (skipped > total))
    offsets = lengths_to_offsets(total - skipped)
    entries = np.empty(int(offsets[-1]), HISTORY_DTYPE)
    _collect(words, ends, offsets, entries.view(np.int64))
    zones, regions = _zones().indices(columns[3].view(np.uint64)), _regions().indices(columns[4].view(np.uint64))
    bits = columns[5].view(np.uint16).reshape(-1, 4)
    state = UserState(zones, regions, columns[0], columns[1], columns[2], bits[:, 0].copy(), bits[:, 1].copy())
    return LedgerView(users, heads[0], state, Histories(entries, offsets), heads[4])


def _damaged(users: U64, bad: npt.NDArray[np.bool_]) -> DamagedArtifact:
    user = int(users[np.flatnonzero(bad)[0]])
    return DamagedArtifact(f"the row of user {user:016x} in Redis is damaged", hint="restore it from a copy")


def erased_of(row: bytes | None) -> bool:
    """Only the version is left of the user."""
    return row is not None and bool(_HEAD.unpack_from(row, len(row) - _HEAD.size)[6])


def skipped_of(row: bytes) -> int:
    """How many leading entries of a row count as dropped."""
    return int(_HEAD.unpack_from(row, len(row) - _HEAD.size)[3])


def pack_states(state: UserState, zones: Sequence[str], regions: Sequence[str]) -> npt.NDArray[Any]:
    """STATE rows, with zone and region by name ("" is unknown)."""
    rows = np.zeros(len(zones), STATE)
    for name in _COPIED:
        rows[name] = getattr(state, name)
    for field, names in (("zone", zones), ("region", regions)):
        hashes = {name: hash_id(name) if name else 0 for name in set(names)}
        rows[field] = np.fromiter((hashes[name] for name in names), np.uint64, len(names))
    return rows


def pack_consent(consent: Consent) -> bytes:
    """Field a or n of a user's names and proofs."""
    return _CONSENT.pack(consent.at, consent.recorded_at) + consent.proof.encode()


def consents_of(fields: Sequence[bytes | None]) -> tuple[Consent, Consent] | None:
    """The reverse, of fields a and n; None when neither is there."""
    if not any(fields):
        return None
    ad, night = (_unpack_consent(field) if field else Consent(0) for field in fields)
    return ad, night


def _unpack_consent(field: bytes) -> Consent:
    at, recorded_at = _CONSENT.unpack_from(field)
    return Consent(at, recorded_at, field[_CONSENT.size :].decode())
