"""Membership kept fresh while a server runs: a refresh in a process of its own, whenever the set in force is old enough or
does not know the policy in force.

The process reads log, catalogue and ledger as any reader does; nothing that serves waits for it. Several workers may do
this: the first to take the lock refreshes, the others find a fresh set.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from serve_app.clock import now_us
from serve_app.errors import HindcastError, NotReady
from serve_app.policies import current_policy
from serve_app.policy.segment_tree import segment_digests
from serve_app.segments.store import read_set_manifest
from serve_app.serving.meters import count

__all__ = ["SegmentRefresher"]

_LOG = logging.getLogger("hindcast.serving")
_MINUTE_US = 60_000_000
_BUSY = 3


class SegmentRefresher:
    """See the module. refresh_minutes: age at which a set is computed anew; look_every_s: how often that is asked."""

    def __init__(
        self, data: Path, *, refresh_minutes: float, redis_url: str | None = None, look_every_s: float = 15.0,
        clock: Callable[[], int] = now_us,
    ) -> None:  # fmt: skip
        self._data, self._redis_url, self._clock = data, redis_url, clock
        self._age_us, self._look_every_s = round(refresh_minutes * _MINUTE_US), look_every_s

    async def run(self) -> None:
        """Until cancelled. An error is said, counted, and tried again: memberships then grow stale and gates close."""
        while True:
            wait_s = self._look_every_s
            try:
                if await asyncio.to_thread(self.due) and not await self.refresh():
                    wait_s = max(wait_s, min(self._age_us / 1e6, 300.0))
            except (HindcastError, OSError) as error:
                count("hindcast_segment_sets", outcome="failed")
                _LOG.warning("segments cannot be refreshed: %s", error)
            await asyncio.sleep(wait_s)

    def due(self) -> bool:
        """Whether the policy in force has segments whose membership is unknown or old."""
        try:
            policy = current_policy(self._data)
        except NotReady:
            return False
        if not policy.segments:
            return False
        manifest = read_set_manifest(self._data)
        if manifest is None or self._clock() - manifest.computed_at >= self._age_us:
            return True
        return not set(segment_digests(policy.segments).values()) <= {one.digest for one in manifest.segments}

    async def refresh(self) -> bool:
        """One refresh in a process of its own; False where it failed."""
        environment = dict(os.environ)
        environment.pop("HINDCAST_LEDGER__REDIS_URL", None)
        if self._redis_url is not None:
            environment["HINDCAST_LEDGER__REDIS_URL"] = self._redis_url
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "serve_app.segments", str(self._data),
            env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            _, said = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        if process.returncode == 0:
            count("hindcast_segment_sets", outcome="refreshed")
            return True
        busy = process.returncode == _BUSY
        count("hindcast_segment_sets", outcome="busy" if busy else "failed")
        lines = said.decode(errors="replace").strip().splitlines()
        level = logging.INFO if busy else logging.WARNING
        _LOG.log(level, "segments were not refreshed (exit code %s): %s", process.returncode, lines[-1] if lines else "")
        return busy
