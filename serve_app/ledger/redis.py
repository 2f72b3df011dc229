"""The ledger of a cluster: Redis, one script call a commit, durable before it answers.

Every key carries its shard (sixteen neighbouring buckets) as hash tag, so a shard lives on one node and one call commits its
users at once; a single server takes a whole batch in one call. Refuses a server that could forget an answered grant:
`appendfsync always` and `noeviction` are required, now and later, and with replicas each write waits for `replicas` of them.
Each shard counts its writes; a counter that goes backwards after a fail-over closes its buckets (status `regressed`) until
`reopen_bucket`. What happens when a server dies, hangs, moves or comes back: redis_link.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from serve_app.ledger.columns import LedgerView
from serve_app.ledger.protocol import LedgerSettings
from serve_app.ledger.redis_events import RedisCatalogue, RedisEvents
from serve_app.ledger.redis_keys import BUCKETS_PER_SHARD, META_KEYS, SHARDS, command
from serve_app.ledger.redis_queues import RedisQueues
from serve_app.ledger.redis_rows import erased_of, view_of
from serve_app.ledger.redis_users import RedisUsers
from serve_app.ledger.redis_wire import Wire
from serve_app.ledger.table import entries_until

__all__ = ["RedisLedger"]

_HORIZON = "hc:{catalogue}:history_horizon_us"


class RedisLedger(RedisUsers, RedisQueues, RedisEvents, RedisCatalogue):
    """See Ledger. `url`: redis:// or rediss:// of the server, or of any node of a cluster.

    replicas: how many must confirm a write. require: "disk" (as above), or "weaker" to accept a server that may lose
    answered writes when it or its machine stops (`durability` then says "weaker"). timeout_s: how long a server may be
    silent before a call gives up.
    """

    def __init__(
        self,
        url: str,
        settings: LedgerSettings | None = None,
        *,
        replicas: int = 0,
        require: Literal["disk", "weaker"] = "disk",
        timeout_s: float = 2.0,
    ) -> None:
        self.durability = require
        wire = Wire(url, timeout_s=timeout_s, replicas=replicas, weaker=require == "weaker")
        try:
            super().__init__(wire, settings or LedgerSettings())
            self._horizon_us = max(self.settings.history_horizon_us, self._stored_horizon())
        except BaseException:
            wire.close()
            raise

    def snapshot(self, as_of: int, chunk: int = 10_000) -> Iterator[LedgerView]:
        """See Ledger."""
        known: list[int] = []
        for link in self._wire.primaries():
            known += [int.from_bytes(key[-8:], "big") for key in link.scan("hc:{???}:u*")]
        users = np.unique(np.asarray(known, np.uint64))
        living = ((user, row) for user, row in self._every_row(users, chunk) if row is not None and not erased_of(row))
        while some := list(islice(living, chunk)):
            view = view_of(np.asarray([user for user, _ in some], np.uint64), [row for _, row in some])
            yield entries_until(view, as_of)

    def _every_row(self, users: npt.NDArray[np.uint64], chunk: int) -> Iterator[tuple[int, bytes | None]]:
        for start in range(0, len(users), chunk):
            some = users[start : start + chunk]
            yield from zip(some.tolist(), self._rows(some), strict=True)

    def set_history_horizon(self, horizon_us: int) -> None:
        """See Ledger."""
        self._horizon_us = max(self._horizon_us, horizon_us, self._stored_horizon())
        self._catalogue(command("SET", _HORIZON, self._horizon_us), write=True)

    def _stored_horizon(self) -> int:
        return int(self._catalogue(command("GET", _HORIZON), write=False) or 0)

    def closed_buckets(self) -> list[int]:
        """Buckets of the shards whose counter went backwards."""
        metas = self._wire.every_shard([command("GETRANGE", key, 8, 15) for key in META_KEYS], write=False)
        closed = [shard for shard in range(SHARDS) if any(metas[shard])]
        return [shard * BUCKETS_PER_SHARD + k for shard in closed for k in range(BUCKETS_PER_SHARD)]

    def reopen_bucket(self, bucket: int) -> None:
        """After reconciling: grant again in the bucket's shard, from a counter above all that any process has seen."""
        shard = bucket // BUCKETS_PER_SHARD
        top = self._one(shard, self._queue_call(shard, "reopen", int(self._seen[shard])), write=True)
        self._saw(np.asarray([shard]), np.asarray([int(top)]))

    def close(self) -> None:
        """See Ledger."""
        self._wire.close()
