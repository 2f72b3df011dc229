"""Give a ledger the user states a log last saw, for users the ledger does not know yet.

A shop that moves in brings its log; without this its users would count as unreachable and without consent until each was
PUT once. The state is that of the user's newest notification request (LOG: requests.user_state), with opt-outs and opt-ins
received after it left to the caller's own PUTs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.ledger.columns import UserState
from serve_app.ledger.protocol import Ledger
from serve_app.log.places import region_indices, zone_indices
from serve_app.log.reader import read_log
from serve_app.vocabulary import Surface

__all__ = ["last_states", "seed_ledger"]

_COLUMNS = ("zone", "region", "consent_ad_at", "consent_night_at", "customer_until", "reachable", "opted_out")
_TYPES = ("i2", "i2", "i8", "i8", "i8", "u2", "u2")


def last_states(data: Path) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint64]], UserState]:
    """(users u64[n], their states) by the newest notification request of each user in the log of `data`."""
    table: pa.Table = read_log(data, "requests", columns=["user", "surface", "decided_at", "order", *_COLUMNS])
    table = table.filter(pc.equal(table["surface"], int(Surface.notification)))
    users = table["user"].to_numpy()
    order = np.lexsort((table["order"].to_numpy(), table["decided_at"].to_numpy(), users))
    newest = order[np.flatnonzero(np.r_[users[order][1:] != users[order][:-1], True])] if len(order) else order
    places = {"zone": zone_indices(table["zone"]), "region": region_indices(table["region"])}
    columns = [places[name] if name in places else table[name].to_numpy() for name in _COLUMNS]
    parts = [column[newest].astype(kind) for column, kind in zip(columns, _TYPES, strict=True)]
    return users[newest].astype(np.uint64), UserState(*parts)


def seed_ledger(ledger: Ledger, data: Path, *, chunk: int = 10_000) -> int:
    """Write `last_states` for users whose ledger version is 0; returns how many. Running it again writes nothing."""
    users, state = last_states(data)
    written = 0
    for start in range(0, len(users), chunk):
        part = slice(start, start + chunk)
        new = np.flatnonzero(ledger.read(users[part]).versions == 0) + start
        if len(new):
            ledger.put_users(users[new], UserState(*(getattr(state, name)[new] for name in _COLUMNS)))
        written += len(new)
    return written
