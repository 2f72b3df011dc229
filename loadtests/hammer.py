"""A closed-loop HTTP client that costs little: n connections, each sends its next request when the last is answered.

For benchmarks that compare servers at a number of connections. (For what users would feel, use `hindcast load`, which does
not wait.) Run as a process of its own: ``python -m loadtests.hammer`` reads a task as JSON and prints what it saw.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from typing import Any

from hdrh.histogram import HdrHistogram

__all__ = ["Connection", "hammer", "main"]

_END = b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """One connection's requests, one after the other. Where the server ends it, which it may announce, a new one follows."""

    def __init__(self, run: _Run, at: int) -> None:
        self._run, self._at = run, at
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._sent = 0.0
        self._announced = False
        self._connecting: asyncio.Task[None] | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._sent = time.perf_counter()
        if self._sent >= self._run.end:
            self._finish()
            return
        self._at = (self._at + 1) % len(self._run.requests)
        self._transport.write(self._run.requests[self._at])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(_END)
        if head < 0:
            return
        headers = bytes(self._buffer[:head]).lower()
        if (at := headers.find(b"content-length:")) >= 0:
            line = headers[at + 15 :].split(b"\r\n", 1)[0]
            if len(self._buffer) < head + 4 + int(line):
                return
        elif not self._buffer.endswith(b"0\r\n\r\n"):  # chunked: the last chunk is empty
            return
        status = headers[9:12]
        if not (status == b"200" or self._run.first_failure):
            self._run.first_failure = bytes(self._buffer[:600]).decode(errors="replace")
        self._run.answered(status, time.perf_counter() - self._sent)
        self._buffer.clear()
        if b"\r\nconnection: close" in headers:
            self._announced = True
            self._reconnect()
        else:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        if self._announced:
            self._announced = False
        elif not self.over.done():  # closed by the server, whatever became of what was asked last
            self._run.failed += 1
            self._buffer.clear()
            self._reconnect()

    def _reconnect(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self._connecting = asyncio.get_running_loop().create_task(self.connect())

    async def connect(self) -> None:
        """Open the connection and send its first request; nothing more is sent where nobody listens."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._run.port)
        except OSError:
            self._run.failed += 1
            self._finish()

    def _finish(self) -> None:
        if not self.over.done():
            self.over.set_result(None)
        if self._transport is not None:
            self._transport.close()


class _Run:
    def __init__(self, port: int, requests: list[bytes], end: float) -> None:
        self.port, self.requests, self.end = port, requests, end
        self.latency = HdrHistogram(1, 600_000_000, 3)
        self.refusal = HdrHistogram(1, 600_000_000, 3)
        self.good = self.refused = self.failed = 0
        self.first_failure = ""

    def answered(self, status: bytes, seconds: float) -> None:
        took_us = max(1, round(seconds * 1e6))
        if status == b"200":
            self.good += 1
            self.latency.record_value(took_us)
            return
        self.failed += 1
        if status in (b"429", b"503"):
            self.refused += 1
            self.refusal.record_value(took_us)


async def hammer(port: int, path: str, bodies: list[Any], connections: int, seconds: float) -> dict[str, Any]:
    """Answers of status 200 in `seconds`, and their latencies (microseconds, encoded histogram). Refusals (429, 503) are
    among the failed, and counted and timed apart."""
    requests = []
    for body in bodies:
        raw = json.dumps(body).encode()
        kind = f"Content-Type: application/json\r\nContent-Length: {len(raw)}"
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}\r\n\r\n"
        requests.append(head.encode() + raw)
    began, cpu = time.perf_counter(), time.process_time()
    run = _Run(port, requests, began + seconds)
    step = max(1, len(requests) // connections)
    opened = [Connection(run, n * step) for n in range(connections)]
    for one in opened:
        await one.connect()
    done, waiting = await asyncio.wait([one.over for one in opened], timeout=seconds + 30)
    del done
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "good": run.good,
        "failed": run.failed + len(waiting),
        "first_failure": run.first_failure,
        "refused": run.refused,
        "refusal": base64.b64encode(run.refusal.encode()).decode(),
        "latency": base64.b64encode(run.latency.encode()).decode(),
    }


def main() -> None:
    """Read the task, run it, print what came back."""
    sys.stdout.write(json.dumps(asyncio.run(hammer(**json.load(sys.stdin)))) + "\n")


if __name__ == "__main__":
    main()
