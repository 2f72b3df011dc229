"""The owner of the state as a deployment, and its handle.

It is an application of its own on a cluster (`serve_app.served:state`): a rolling update of everything else leaves it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray.serve.handle import DeploymentHandle

from serve_app.serving import spans
from serve_app.serving.local_rpc import NotTaken
from serve_app.serving.nearby import Nearby, Peer
from serve_app.settings import Settings

if TYPE_CHECKING:
    from serve_app.ledger.protocol import UserChanges, UserRecord
    from serve_app.serving.board import Kind, Orders, Report
    from serve_app.serving.owner import LiveAnswer, Optings

__all__ = ["LedgerReplica", "OwnerHandle"]


class LedgerReplica:
    """The one process that owns the ledger and the promotion board."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]
        from serve_app.clock import now_us
        from serve_app.errors import NotReady
        from serve_app.ledger.opening import open_ledger
        from serve_app.policies import read_current_policy, read_policy
        from serve_app.release.registry import read_current
        from serve_app.replicas import begin
        from serve_app.serving.board import Board
        from serve_app.serving.local_servers import LoopServer
        from serve_app.serving.owner import StateOwner

        begin(settings, "ledger")
        data = settings.data
        (release, _), (policy, _) = read_current(data), read_current_policy(data)
        if release is None:
            raise NotReady("no release has been promoted", field=str(data), hint="hindcast build --promote")
        if policy is None:
            raise NotReady("no policy has been promoted", field=str(data), hint="hindcast policy promote FILE")
        ledger = open_ledger(
            data,
            backend=settings.ledger.backend,
            redis_url=settings.ledger.redis_url,
            durability=settings.ledger.durability,
        )
        self._near = LoopServer({name: getattr(self, name) for name in ("call", "live", "change_user")})
        board = Board(release, policy, epoch=now_us(), near={"ledger": (self._near.address,)})
        self._owner = StateOwner(
            ledger,
            board,
            threads=settings.deployments.ledger.threads,
            stuck_s=settings.budgets.stuck_s,
            window_us=lambda revision: read_policy(data, revision).longest_window_us,
        )
        self._owner.keep_histories()
        await self._near.start()
        self._telling = asyncio.get_running_loop().create_task(self._owner.tell_calls())

    async def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """See StateOwner."""
        return await self._owner.call(method, *arguments, **keywords)

    async def live(self, users: Any, after_seq: int) -> LiveAnswer:
        """See StateOwner."""
        return await self._owner.live(users, after_seq)

    async def change_user(self, user: int, changes: UserChanges, optings: Optings | None = None) -> UserRecord:
        """See StateOwner."""
        return await self._owner.change_user(user, changes, optings)

    async def poll(self, report: Report, after_epoch: int) -> Orders:
        """See StateOwner."""
        return await self._owner.poll(report, after_epoch)

    async def prepare(self, kind: Kind, version: str) -> None:
        """See StateOwner."""
        await self._owner.prepare(kind, version)

    async def commit_version(self, kind: Kind, version: str) -> None:
        """See StateOwner."""
        await self._owner.commit_version(kind, version)

    async def replicas(self) -> Sequence[Report]:
        """See StateOwner."""
        return await self._owner.replicas()

    def check_health(self) -> None:
        """Called by Serve."""
        self._owner.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_owner"):
            self._near.close()
            self._owner.close()


class OwnerHandle:
    """The state owner behind its deployment handle; one handle a method, built once.

    What requests wait for goes over a local socket where the owner is on this host, else through the handle: so do calls
    while the owner is away, which wait for its successor there, and while spans are made, whose context Ray carries.

    Orders of the promotion board pass here, and with them who else can be called over local sockets (`nearby`).
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._far = {"call": handle.call, "live": handle.live, "change_user": handle.change_user}
        self.nearby = Nearby()
        self.nearby.call("ledger")
        self._listens_at: str | None = None
        self._poll, self._prepare, self._commit_version = handle.poll, handle.prepare, handle.commit_version
        self._replicas = handle.replicas

    def announce(self, address: str) -> None:
        """This process listens at `address`; the board hears of it with the next report."""
        self._listens_at = address

    def near(self) -> Peer | None:
        """The owner on this host, where it can be called there."""
        return None if spans.active() else self.nearby.choose("ledger")

    async def _ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        if (near := self.near()) is not None:
            with contextlib.suppress(NotTaken):
                return await near.ask(method, *arguments, **keywords)
        return await self._far[method].remote(*arguments, **keywords)

    async def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        return await self._ask("call", method, *arguments, **keywords)

    async def live(self, users: Any, after_seq: int) -> LiveAnswer:
        answer: LiveAnswer = await self._ask("live", users, after_seq)
        return answer

    async def change_user(self, user: int, changes: UserChanges, optings: Optings | None = None) -> UserRecord:
        record: UserRecord = await self._ask("change_user", user, changes, optings)
        return record

    async def poll(self, report: Report, after_epoch: int) -> Orders:
        orders: Orders = await self._poll.remote(replace(report, near=self._listens_at), after_epoch)
        self.nearby.learn(orders.near)
        return orders

    async def prepare(self, kind: Kind, version: str) -> None:
        await self._prepare.remote(kind, version)

    async def commit_version(self, kind: Kind, version: str) -> None:
        await self._commit_version.remote(kind, version)

    async def replicas(self) -> Sequence[Report]:
        return await self._replicas.remote()
