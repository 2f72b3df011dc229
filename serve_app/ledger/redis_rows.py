"""A user's row in Redis: a hash of small binary fields, and the columns of a batch of them.

Fields: v version, s state, z zone and r region by name, h history, k known_since, a and n consents with proof, i the id
behind the hash, e erased.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from serve_app.batch import lengths_to_offsets
from serve_app.ledger.names import NameTable
from serve_app.ledger.protocol import (
    HISTORY_DTYPE,
    NEVER_KNOWN,
    Consent,
    Histories,
    LedgerView,
    UserState,
)
from serve_app.ledger.table import blank_state

__all__ = ["FIELDS", "pack_consent", "pack_state", "state_rows", "unpack_consent", "view_of"]

FIELDS = ("v", "s", "z", "r", "h", "k")
_STATE = np.dtype(
    [
        ("consent_ad_at", "<i8"),
        ("consent_night_at", "<i8"),
        ("customer_until", "<i8"),
        ("reachable", "<u2"),
        ("opted_out", "<u2"),
    ]
)
_BLANK = np.zeros(1, _STATE).tobytes()
_CONSENT = struct.Struct("<qq")


def pack_state(state: np.void) -> bytes:
    """Field s of a STATE_DTYPE row."""
    row = np.zeros(1, _STATE)
    for name in _STATE.names or ():
        row[name] = state[name]
    return row.tobytes()


def pack_consent(consent: Consent) -> bytes:
    """Field a or n."""
    return _CONSENT.pack(consent.at, consent.recorded_at) + consent.proof.encode()


def unpack_consent(field: bytes | None) -> Consent | None:
    """The reverse of `pack_consent`; None for a field that is not there."""
    if field is None:
        return None
    at, recorded_at = _CONSENT.unpack_from(field)
    return Consent(at, recorded_at, field[_CONSENT.size :].decode())


def state_rows(rows: Sequence[Sequence[Any]], zones: NameTable, regions: NameTable) -> np.ndarray[Any, np.dtype[np.void]]:
    """STATE_DTYPE rows of replies in the order of FIELDS."""
    state = blank_state(len(rows))
    packed = np.frombuffer(b"".join(row[1] or _BLANK for row in rows), _STATE)
    for name in _STATE.names or ():
        state[name] = packed[name]
    state["version"] = [int(row[0] or 0) for row in rows]
    state["zone"] = [zones.stored(row[2].decode()) if row[2] else 0 for row in rows]
    state["region"] = [regions.stored(row[3].decode()) if row[3] else 0 for row in rows]
    state["known_since"] = [int(row[5]) if row[5] else NEVER_KNOWN for row in rows]
    return state


def view_of(
    users: np.ndarray[Any, np.dtype[np.uint64]], rows: Sequence[Sequence[Any]], zones: NameTable, regions: NameTable
) -> LedgerView:
    """What `Ledger.read` returns, of replies in the order of FIELDS."""
    state = state_rows(rows, zones, regions)
    histories = [row[4] or b"" for row in rows]
    lengths = np.fromiter(map(len, histories), np.int64, len(histories)) // HISTORY_DTYPE.itemsize
    entries = np.frombuffer(bytearray(b"".join(histories)), HISTORY_DTYPE)
    columns = UserState(
        zones.process_of(state["zone"]),
        regions.process_of(state["region"]),
        *(state[name].copy() for name in _STATE.names or ()),
    )
    known = state["known_since"].copy()
    return LedgerView(users, state["version"].copy(), columns, Histories(entries, lengths_to_offsets(lengths)), known)
