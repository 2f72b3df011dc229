"""Changes of users' rows as script calls: the argument layout of redis_put.lua."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.ledger.redis_keys import META_KEYS, Script, shards_of
from serve_app.ledger.redis_plans import GROUP, Piece, in_pieces

__all__ = ["Put", "put_pieces"]

I64 = npt.NDArray[np.int64]

_PUT = np.dtype(
    [
        ("user", ">u8"),
        ("read_version", ">i8"),
        ("version", ">i8"),
        ("place", "<u4"),
        ("length", "<u4"),
        ("fields", "<u4"),
        ("spare", "<u4"),
    ]
)
assert _PUT.itemsize == 40


class Put(NamedTuple):
    """Bytes to lay into one user's row at `place`, and fields of its names and proofs ("" removes one)."""

    user: int
    read_version: int
    place: int
    patch: bytes
    fields: Sequence[bytes | str] = ()


def put_pieces(script: Script, puts: Sequence[Put], seen: I64, *, by_shard: bool) -> list[Piece]:
    """Calls of redis_put.lua."""
    users = np.asarray([put.user for put in puts], np.uint64)
    shards = shards_of(users)
    order = np.argsort(shards, kind="stable")
    shards = shards[order]
    ordered = [puts[row] for row in order.tolist()]
    rows = np.zeros(len(puts), _PUT)
    rows["user"] = users[order]
    rows["read_version"] = [put.read_version for put in ordered]
    rows["version"] = rows["read_version"] + 1
    rows["place"], rows["length"] = [put.place for put in ordered], [len(put.patch) for put in ordered]
    rows["fields"] = [len(put.fields) // 2 for put in ordered]
    out = []
    for start, end in in_pieces(shards, by_shard=by_shard):
        own = ordered[start:end]
        edges = np.flatnonzero(np.concatenate(([True], shards[start + 1 : end] != shards[start : end - 1])))
        groups = np.zeros(len(edges), GROUP)
        distinct = shards[start:end][edges].astype(np.int64)
        groups["seen"], groups["rows"] = seen[distinct], np.diff(edges, append=end - start)
        patches = b"".join(put.patch for put in own)
        fields = [field for put in own for field in put.fields]
        keys = [META_KEYS[shard] for shard in distinct.tolist()]
        call = script.call(keys, groups.tobytes(), rows[start:end].tobytes(), patches, *fields)
        out.append(Piece(distinct, order[start:end], int(distinct[0]), call))
    return out
