"""`/metrics`: what the replicas of all nodes measured, as one Prometheus text."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

import httpx

from serve_app.clock import monotonic_s
from serve_app.errors import NotReady

__all__ = ["MetricsPage", "merged"]

_LOG = logging.getLogger("hindcast.ingress")
_NODES_KNOWN_S = 10.0


class MetricsPage:
    """Fetches every node's page. A node that does not answer is left out and said; with none, NotReady."""

    def __init__(self, addresses: Callable[[], Sequence[str]]) -> None:
        """addresses: of the nodes' pages; may block."""
        self._addresses = addresses
        self._known: tuple[str, ...] = ()
        self._known_at = float("-inf")
        self._client: httpx.AsyncClient | None = None

    async def text(self) -> str:
        """The merged text."""
        if monotonic_s() - self._known_at > _NODES_KNOWN_S:
            self._known, self._known_at = tuple(await asyncio.to_thread(self._addresses)), monotonic_s()
        if self._client is None:  # its pool belongs to the event loop that serves
            self._client = httpx.AsyncClient(timeout=5.0)
        pages = await asyncio.gather(*(self._page(self._client, address) for address in self._known))
        found = [page for page in pages if page is not None]
        if not found:
            raise NotReady("no node's metrics agent answers", field="metrics")
        return found[0] if len(found) == 1 else merged(found)

    @staticmethod
    async def _page(client: httpx.AsyncClient, address: str) -> str | None:
        try:
            return (await client.get(address)).raise_for_status().text
        except httpx.HTTPError as error:
            _LOG.warning("the metrics agent at %s does not answer: %s", address, type(error).__name__)
            return None


def merged(pages: Iterable[str]) -> str:
    """Several pages as one: each metric's HELP and TYPE once, before the samples of all pages. Ray's labels name node and
    process, so samples of different pages are different series."""
    families: dict[str, dict[str, None]] = {}
    for page in pages:
        name = ""
        for line in page.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ", 3)[2]
            if line:
                families.setdefault(name, {})[line] = None
    return "".join(f"{line}\n" for lines in families.values() for line in lines)
