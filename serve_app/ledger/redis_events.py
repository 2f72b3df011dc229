"""Recents, event ids, and the catalogue log in Redis."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from serve_app.batch import lengths_to_offsets
from serve_app.errors import LedgerUnavailable
from serve_app.ledger.columns import Recents
from serve_app.ledger.protocol import CampaignRow, CatalogueChange
from serve_app.ledger.redis_keys import Command, Script, command, shard_of, shards_of, user_key
from serve_app.ledger.redis_store import RedisStore
from serve_app.ledger.redis_wire import checked

__all__ = ["RedisCatalogue", "RedisEvents"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
_RECENT = np.dtype([("at", "<i8"), ("item", "<u8")])
_TWO = struct.Struct("<qq")
_LOG, _CAMPAIGNS = b"hc:{catalogue}:log", b"hc:{catalogue}:campaigns"


class RedisEvents(RedisStore):
    """What users looked at, and which events were seen before."""

    def record_events(self, users: U64, items: U64, at: I64) -> None:
        """See Ledger."""
        packed = np.empty(len(users), _RECENT)
        packed["at"], packed["item"] = at, items
        commands: list[Command] = []
        routes: list[int] = []
        for user in dict.fromkeys(users.tolist()):
            mine = packed[users == np.uint64(user)][-self.settings.recents_max :]
            key = user_key(b"s", user)
            commands.append(command("RPUSH", key, *(one.tobytes() for one in mine)))
            commands.append(command("LTRIM", key, -self.settings.recents_max, -1))
            routes += [shard_of(user)] * 2
        for reply in self._wire.run(commands, routes, write=True):
            checked(reply)

    def recents(self, users: U64) -> Recents:
        """See Ledger."""
        commands = [command("LRANGE", user_key(b"s", user), 0, -1) for user in users.tolist()]
        replies = [checked(reply) for reply in self._wire.run(commands, shards_of(users).tolist(), write=False)]
        rows = np.frombuffer(b"".join(one for reply in replies for one in reply), _RECENT)
        return Recents(rows["item"].copy(), rows["at"].copy(), lengths_to_offsets([len(reply) for reply in replies]))

    def dedupe_events(self, ids: U64, at: int, *, mark: bool = True) -> npt.NDArray[np.bool_]:  # noqa: ARG002 (Redis expires by its own clock)
        """See Ledger."""
        keys = [user_key(b"e", one) for one in ids.tolist()]
        life = self.settings.event_horizon_us // 1000
        commands = [command("SET", key, b"", "NX", "PX", life) if mark else command("EXISTS", key) for key in keys]
        answers = [checked(reply) for reply in self._wire.run(commands, shards_of(ids).tolist(), write=mark)]
        fresh = [answer is not None for answer in answers] if mark else [answer == 0 for answer in answers]
        first = np.zeros(len(ids), np.bool_)
        first[np.unique(ids, return_index=True)[1]] = True
        return np.asarray(fresh, np.bool_) & first


class RedisCatalogue(RedisStore):
    """The sequenced log of catalogue changes, and campaigns."""

    _campaign = Script("redis_campaign.lua")
    _head_seen = 0

    def append_catalogue_change(self, kind: str, payload: bytes) -> int:
        """See Ledger."""
        return self._saw_head(int(self._catalogue(command("RPUSH", _LOG, _change_bytes(kind, payload)), write=True)))

    def catalogue_head(self) -> int:
        """See Ledger."""
        head = int(self._catalogue(command("LLEN", _LOG), write=False))
        if head < self._head_seen:
            raise LedgerUnavailable(
                f"the catalogue log fell back from {self._head_seen} to {head}", hint="restore it, or restart"
            )
        return self._saw_head(head)

    def catalogue_changes(self, after_seq: int, limit: int = 10_000) -> list[CatalogueChange]:
        """See Ledger."""
        after = max(0, after_seq)
        found = self._catalogue(command("LRANGE", _LOG, after, after + limit - 1), write=False)
        return [CatalogueChange(after + 1 + i, *_change_of(one)) for i, one in enumerate(found)]

    def put_campaign(self, campaign_id: str, document: bytes) -> CampaignRow:
        """See Ledger."""
        change = _change_bytes("campaign", document)
        version, seq = self._catalogue(self._campaign.call([_LOG, _CAMPAIGNS], campaign_id, document, change), write=True)
        return CampaignRow(campaign_id, version, self._saw_head(seq), document)

    def get_campaigns(self) -> list[CampaignRow]:
        """See Ledger."""
        found = self._catalogue(command("HGETALL", _CAMPAIGNS), write=False)
        rows: list[CampaignRow] = []
        for name, value in zip(found[::2], found[1::2], strict=True):
            version, seq = _TWO.unpack_from(value)
            rows.append(CampaignRow(name.decode(), version, seq, value[_TWO.size :]))
        return sorted(rows, key=lambda row: row.campaign_id)

    def _saw_head(self, head: int) -> int:
        with self._lock:
            self._head_seen = max(self._head_seen, head)
        return head


def _change_bytes(kind: str, payload: bytes) -> bytes:
    name = kind.encode()
    return bytes([len(name)]) + name + payload


def _change_of(change: bytes) -> tuple[str, bytes]:
    end = 1 + change[0]
    return change[1:end].decode(), change[end:]
