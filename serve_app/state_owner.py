"""The owner of the state as a deployment, and its handle.

It is an application of its own on a cluster (`serve_app.served:state`): a rolling update of everything else leaves it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray.serve.handle import DeploymentHandle

from serve_app.settings import Settings

if TYPE_CHECKING:
    from serve_app.ledger.protocol import UserChanges, UserRecord
    from serve_app.serving.board import Kind, Orders, Report
    from serve_app.serving.owner import LiveAnswer, Optings

__all__ = ["LedgerReplica", "OwnerHandle"]


class LedgerReplica:
    """The one process that owns the ledger and the promotion board."""

    def __init__(self, settings: Settings) -> None:
        from serve_app.clock import now_us
        from serve_app.errors import NotReady
        from serve_app.ledger.opening import open_ledger
        from serve_app.policies import read_current_policy, read_policy
        from serve_app.release.registry import read_current
        from serve_app.replicas import begin
        from serve_app.serving.board import Board
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
        board = Board(release, policy, epoch=now_us())
        self._owner = StateOwner(
            ledger,
            board,
            threads=settings.deployments.ledger.threads,
            stuck_s=settings.budgets.stuck_s,
            window_us=lambda revision: read_policy(data, revision).longest_window_us,
        )
        self._owner.keep_histories()

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
            self._owner.close()


class OwnerHandle:
    """The state owner behind its deployment handle; one handle a method, built once."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._call, self._live, self._change_user = handle.call, handle.live, handle.change_user
        self._poll, self._prepare, self._commit_version = handle.poll, handle.prepare, handle.commit_version
        self._replicas = handle.replicas

    async def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        return await self._call.remote(method, *arguments, **keywords)

    async def live(self, users: Any, after_seq: int) -> LiveAnswer:
        return await self._live.remote(users, after_seq)

    async def change_user(self, user: int, changes: UserChanges, optings: Optings | None = None) -> UserRecord:
        return await self._change_user.remote(user, changes, optings)

    async def poll(self, report: Report, after_epoch: int) -> Orders:
        return await self._poll.remote(report, after_epoch)

    async def prepare(self, kind: Kind, version: str) -> None:
        await self._prepare.remote(kind, version)

    async def commit_version(self, kind: Kind, version: str) -> None:
        await self._commit_version.remote(kind, version)

    async def replicas(self) -> Sequence[Report]:
        return await self._replicas.remote()
