"""Names of keys in Redis, and commands as the bytes that go over the wire (RESP2).

Users lie in 4,096 buckets; sixteen neighbours form a shard, the unit of a Redis Cluster's slots, of a commit and of the
queues. Every key carries its shard as hash tag, `hc:{007}:` and a letter:

    n  meta (counters)        u<user>  state and history      w<user>  names and proofs (hash)
    c<number>  whose records are where      b<name>  records      k<key>  idempotency key
    s<user>  recents (list)      e<id>  event seen
    z, y  deferrals by time, their records                        p, o, a  outbox by time, payloads, attempts

Users, ids, chunk numbers and names are 8 bytes, numbers big-endian. What lies in them: redis_commit.lua, redis_rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.ids import BUCKETS

__all__ = [
    "BUCKETS_PER_SHARD",
    "CATALOGUE",
    "META_KEYS",
    "SHARDS",
    "Command",
    "Script",
    "command",
    "key_of",
    "row_gets",
    "shard_of",
    "shards_of",
    "user_key",
]

SHARDS = 256
BUCKETS_PER_SHARD = BUCKETS // SHARDS
CATALOGUE = SHARDS
"""Routes the catalogue's keys, which lie in a slot of their own, `hc:{catalogue}:`."""
_SHIFT = 56
_PREFIXES = [b"hc:{%03d}:" % shard for shard in range(SHARDS)]
META_KEYS = [prefix + b"n" for prefix in _PREFIXES]

U64 = npt.NDArray[np.uint64]
# "$18" CRLF "hc:{007}:u" and then the user: one argument of an MGET.
_GET = np.dtype([("prefix", "V15"), ("user", ">u8"), ("end", "V2")])
_GET_PREFIXES = np.frombuffer(b"".join(b"$18\r\n" + prefix + b"u" for prefix in _PREFIXES), "V15")
_END = np.frombuffer(b"\r\n", "V2")[0]


class Command(NamedTuple):
    """One command as it goes over the wire, and the script it calls, if any. `lead`: replies before its own, to commands
    that prepare it; atomic: all of them stand in MULTI and EXEC."""

    data: bytes
    script: Script | None = None
    lead: int = 0
    atomic: bool = False


def command(*arguments: bytes | str | float, script: Script | None = None) -> Command:
    """Encode one command."""
    parts: list[bytes] = [b"*%d\r\n" % len(arguments)]
    for one in arguments:
        value = one if isinstance(one, bytes) else str(one).encode()
        parts += (b"$%d\r\n" % len(value), value, b"\r\n")
    return Command(b"".join(parts), script)


class Script:
    """A Lua file of this package; `call` gives a command."""

    def __init__(self, name: str) -> None:
        self.text = resources.files("serve_app.ledger").joinpath(name).read_text(encoding="utf-8")
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def call(self, keys: Sequence[bytes], *arguments: Any) -> Command:
        """EVALSHA with `keys` and `arguments`."""
        return command(b"EVALSHA", self.sha, len(keys), *keys, *arguments, script=self)


def shard_of(user: int) -> int:
    """The shard of a user's (or an event id's) hash: its top eight bits."""
    return user >> _SHIFT


def shards_of(users: U64) -> npt.NDArray[np.uint8]:
    """u8[n]: the shard of each hash."""
    return (users >> np.uint64(_SHIFT)).astype(np.uint8)


def key_of(shard: int, kind: bytes, name: bytes = b"") -> bytes:
    """`hc:{shard}:` kind name."""
    return _PREFIXES[shard] + kind + name


def user_key(kind: bytes, user: int) -> bytes:
    """The key of that kind of one user (or event id)."""
    return _PREFIXES[user >> _SHIFT] + kind + user.to_bytes(8, "big")


def row_gets(users: U64, shards: npt.NDArray[np.uint8], ends: Sequence[int]) -> list[Command]:
    """MGETs of users' rows: of users[0:ends[0]], users[ends[0]:ends[1]], ..."""
    rows = np.empty(len(users), _GET)
    rows["prefix"], rows["user"], rows["end"] = _GET_PREFIXES[shards], users, _END
    packed, wide, start, out = rows.tobytes(), _GET.itemsize, 0, []
    for end in ends:
        out.append(Command(b"*%d\r\n$4\r\nMGET\r\n%b" % (end - start + 1, packed[start * wide : end * wide])))
        start = end
    return out
