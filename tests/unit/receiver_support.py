"""A receiver of webhooks: a real HTTP server on loopback that remembers what it got and answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Received", "Receiver", "receiver"]


@dataclass(frozen=True)
class Received:
    """One message as it arrived; header names in lower case."""

    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Receiver:
    """answer: gives (status, headers) for the n-th message, from 0."""

    url: str
    answer: Callable[[int], tuple[int, dict[str, str]]] = lambda _: (200, {})
    got: list[Received] = field(default_factory=list)
    connections: int = 0
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, messages: int, timeout_s: float) -> bool:
        """Whether so many messages arrive in time."""
        with self.arrived:
            return self.arrived.wait_for(lambda: len(self.got) >= messages, timeout_s)


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            made.connections += 1
            super().setup()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with made.arrived:
                made.got.append(Received({k.lower(): v for k, v in self.headers.items()}, body))
                status, headers = made.answer(len(made.got) - 1)
                made.arrived.notify_all()
            self.send_response(status)
            for name, value in {**headers, "content-length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        made = Receiver(f"http://127.0.0.1:{server.server_port}/messages")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()
