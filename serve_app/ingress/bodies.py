"""Bodies of calls as they arrive: each within its bounds and its time, all of them within what one ingress can hold.

HAProxy waits for bodies of up to 16 KB, so those are here at once. Larger ones may drip: a caller who sends many such, or
means harm, must not take every place of an ingress, nor its memory.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from serve_app.ingress.batcher import overloaded
from serve_app.ingress.problems import ProblemError

__all__ = ["Bodies", "Body"]

_HERE_AT_ONCE = 16 * 1024


class Bodies:
    """Bodies of one ingress. most_arriving: larger ones under way to it at once. most_bytes: of all that are held, from the
    first byte until their call is answered. arrive_s: time for a body to arrive."""

    def __init__(self, *, most_arriving: int, most_bytes: int, arrive_s: float) -> None:
        self._most_arriving, self._most_bytes, self.arrive_s = most_arriving, most_bytes, arrive_s
        self.arriving = 0
        self.bytes = 0

    def arrives(self) -> None:
        """A larger one begins to. ProblemError 503 where too many do."""
        if self.arriving >= self._most_arriving:
            raise overloaded(f"{self.arriving} other calls are still sending their bodies")
        self.arriving += 1

    def arrived(self) -> None:
        """It has, or never will."""
        self.arriving -= 1

    def take(self, size: int) -> None:
        """Bytes more are here. ProblemError 503 where they are too many."""
        if self.bytes + size > self._most_bytes:
            raise overloaded(f"the bodies of other calls take {self.bytes} bytes")
        self.bytes += size

    def give_back(self, size: int) -> None:
        """The call they belong to was answered."""
        self.bytes -= size


class Body:
    """The body of one call; what it takes of `bodies` is given back when the block ends."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self._size = bodies, 0

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._bodies.give_back(self._size)

    async def read(self, request: Request, limit: int) -> bytes:
        """All of it. ProblemError 413 where it is larger than `limit`, 408 where it is too slow, 503 where others take too
        much."""
        text = request.headers.get("content-length", "")
        declared = int(text) if text.isdigit() else 0
        if declared > limit:
            raise _too_large(limit)
        large = declared > _HERE_AT_ONCE or "transfer-encoding" in request.headers
        if large:
            self._bodies.arrives()
        limit_s = self._bodies.arrive_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._bounded(request, limit)
        except TimeoutError:
            raise ProblemError(
                408, "request-timeout", f"the body did not arrive within {limit_s:g} s", field="body", hint="send it faster"
            ) from None
        finally:
            if large:
                self._bodies.arrived()

    async def _bounded(self, request: Request, limit: int) -> bytes:
        chunks: list[bytes] = []
        async for chunk in request.stream():
            if self._size + len(chunk) > limit:
                raise _too_large(limit)
            self._bodies.take(len(chunk))
            self._size += len(chunk)
            chunks.append(chunk)
        return b"".join(chunks)


def _too_large(limit: int) -> ProblemError:
    detail = f"the body is larger than {limit} bytes"
    return ProblemError(413, "body-too-large", detail, field="body", hint="send less at a time")
