"""A call from one deployment to another: over a local socket where a replica of it is on this host, else by Serve.

What Serve does for a call through a handle, and who does it for a call over a socket:
where to: `Nearby.choose`. How many at once: the replica, by `max_ongoing`; it sends the caller back to the handle, which
queues and refuses. What autoscaling counts: `Listening.stats` and `serve_app.scaling`. A replica's end: `Listening.retire`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve_app.scaling import NEAR
from serve_app.serving import spans
from serve_app.serving.local_rpc import HungUp, NotTaken
from serve_app.serving.local_servers import ThreadServer
from serve_app.serving.lost import called_off, own_error
from serve_app.serving.nearby import Nearby, Peer
from serve_app.serving.threads import Turns
from serve_app.settings import DeploymentsSettings

if TYPE_CHECKING:
    from serve_app.serving.library import Role

__all__ = ["Hop", "Listening"]


class Hop:
    """The method `run` of another deployment. Raises what it raised; HungUp where the replica asked, or the way to it, has
    ended; Serve's BackPressureError where too many calls wait."""

    def __init__(self, handle: DeploymentHandle, role: Role, nearby: Nearby, deployments: DeploymentsSettings) -> None:
        """On the event loop. role: of the deployment's replicas. Once a near one has as many of our calls as autoscaling
        aims for, others on other hosts get some."""
        # What it carries is plain data, which C pickles in half the time of cloudpickle.
        self._far = handle.run.options(request_serialization="pickle", response_serialization="pickle")
        self._role, self._nearby = role.value, nearby
        self._spread_from: float = getattr(deployments, role.value).target_ongoing
        self._loop = asyncio.get_running_loop()
        nearby.call(role.value)

    async def __call__(self, *arguments: Any) -> Any:
        """What `run` gives; on the event loop."""
        while (near := self._near()) is not None:
            try:
                return await near.ask("run", *arguments)
            except NotTaken as refused:
                if not refused.ending:
                    break
        return await self._over_serve(*arguments)

    def wait(self, turns: Turns, within_s: float, *arguments: Any) -> Any:
        """What `run` gives; in a thread that works, whose turn others have meanwhile. TimeoutError after `within_s`: the
        call is called off."""
        with turns.given_up():
            while (near := self._near()) is not None:
                try:
                    return near.wait(within_s, "run", *arguments)
                except NotTaken as refused:
                    if not refused.ending:
                        break
            asked = asyncio.run_coroutine_threadsafe(self._over_serve(*arguments), self._loop)
            try:
                return asked.result(within_s)
            except TimeoutError:
                asked.cancel()
                raise

    def _near(self) -> Peer | None:
        return None if spans.active() else self._nearby.choose(self._role, self._spread_from)

    async def _over_serve(self, *arguments: Any) -> Any:
        try:
            return await self._far.remote(*arguments)
        except RayTaskError as error:  # raised by our code over there
            raise own_error(error) or error from error
        except BackPressureError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            if called_off(error):
                raise
            raise HungUp(f"{type(error).__name__}: {error}") from error


class Listening:
    """A replica's own socket, beside what Serve calls it by."""

    def __init__(self, run: Callable[..., Any], turns: Turns, max_ongoing: int) -> None:
        """It takes calls from now on."""
        self._server = ThreadServer({"run": run}, turns, most=max_ongoing)
        self._server.start()
        self.address = self._server.address

    def stats(self) -> dict[str, float]:
        """Calls under way that Serve does not see, for autoscaling."""
        return {NEAR: float(self._server.under_way)}

    async def retire(self) -> None:
        """Answer what was asked, and be called no more."""
        await asyncio.to_thread(self._server.retire)
