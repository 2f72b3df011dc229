"""Callers that mean harm, or are merely broken, against the table of calls on a real port: each gets its problem document,
costs a bounded time, and leaves nothing behind. (tests/cluster/test_ops_closed.py does the same through HAProxy.)"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.responses import Response

from serve_app.ingress.auth import KeyRing, Scope
from serve_app.ingress.bodies import Bodies
from serve_app.ingress.call_log import call_log
from serve_app.ingress.calls import Call, CallsApp, Incoming, add_calls, json_answer
from serve_app.ingress.key_file import add_key
from serve_app.ingress.problems import install_problem_handlers
from serve_app.ingress.refusing import RefusalPace
from serve_app.ingress.schemas_notify import DecideRequest

LIMIT = 64 * 1024
BODY_S = 1.0


class Server(uvicorn.Server):
    """One call that takes a decision's body, behind keys."""

    def __init__(self, keys: Path) -> None:
        self.handled = 0
        self.last: Incoming | None = None
        self.bodies = Bodies(most_arriving=2, most_bytes=2 * LIMIT, arrive_s=BODY_S)
        app = CallsApp(docs_url=None, redoc_url=None, openapi_url=None)
        install_problem_handlers(app)
        call = Call("POST", "/v1/decide", "", self.handle, Scope.decide, DecideRequest, None, LIMIT)
        add_calls(app, [call], KeyRing(keys), bodies=self.bodies, tell=call_log("none"), refusals=RefusalPace(200, 0.5))
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        self.listening, self.port = listening, listening.getsockname()[1]
        super().__init__(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=2))
        self.thread = threading.Thread(target=lambda: asyncio.run(self.serve([listening])), daemon=True)

    async def handle(self, incoming: Incoming) -> Response:
        self.handled += 1
        self.last = incoming
        if incoming.body.user == "nobody":
            raise RuntimeError("no such case was thought of")
        return json_answer({"user": incoming.body.user})


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    return path, add_key(path, "shop", [Scope.decide])


@pytest.fixture(scope="module")
def server(key: tuple[Path, str]) -> Iterator[Server]:
    made = Server(key[0])
    made.thread.start()
    while not made.started:
        time.sleep(0.01)
    yield made
    made.should_exit = True
    made.thread.join(10)


@pytest.fixture
def client(server: Server, key: tuple[Path, str]) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key[1]}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", headers=headers, timeout=20) as made:
        yield made


def kind(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text[:300]
    return answer.status_code, answer.json()["type"].rsplit(":", 1)[1]


BOMBS: list[tuple[str, bytes]] = [
    ("lists in lists", b"[" * 30_000 + b"]" * 30_000),
    ("objects in objects", b'{"user":' * 7_000 + b"1" + b"}" * 7_000),
    ("a long number", b'{"user": "u", "slots": ' + b"9" * 60_000 + b"}"),
    ("a huge exponent", b'{"user": "u", "slots": 1e999999999}'),
    ("a long string", b'{"user": "' + b"a" * 60_000 + b'"}'),
    ("many keys", b"{" + b",".join(b'"k%d":1' % n for n in range(5_000)) + b"}"),
    ("the same key often", b"{" + b",".join([b'"user":"u"'] * 5_000) + b',"x":1}'),
    ("a surrogate", b'{"user": "\\ud800"}'),
    ("no UTF-8", b'{"user": "\xff\xfe"}'),
    ("NaN", b'{"user": "u", "slots": NaN}'),
    ("nothing", b""),
    ("null", b"null"),
    ("compressed", gzip.compress(b'{"user": "u"}')),
]


@pytest.mark.parametrize("body", [body for _, body in BOMBS], ids=[name for name, _ in BOMBS])
def test_a_json_bomb_is_a_problem_and_nothing_more(client: httpx.Client, server: Server, body: bytes) -> None:
    before = server.handled
    began = time.monotonic()
    answer = client.post("/v1/decide", content=body)
    assert kind(answer)[0] in (400, 422)
    assert len(answer.content) < 64 * 1024
    assert time.monotonic() - began < 10
    assert server.handled == before
    assert client.post("/v1/decide", json={"user": "u"}).status_code == 200


def test_a_large_body_is_refused_whether_it_says_so_or_not(client: httpx.Client) -> None:
    assert kind(client.post("/v1/decide", content=b"x" * (LIMIT + 1))) == (413, "body-too-large")

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1024

    assert kind(client.post("/v1/decide", content=pieces())) == (413, "body-too-large")


def connect(server: Server, key: tuple[Path, str], length: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    head = f"POST /v1/decide HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key[1]}\r\nContent-Length: {length}\r\n\r\n"
    made.sendall(head.encode())
    return made


def test_a_body_that_drips_is_given_up(server: Server, key: tuple[Path, str], client: httpx.Client) -> None:
    with connect(server, key, 1000) as slow:
        began = time.monotonic()
        slow.settimeout(0.1)
        answer = b""
        while time.monotonic() - began < 15 and b"request-timeout" not in answer:
            try:
                slow.sendall(b"x")
                answer += slow.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                break
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert b"request-timeout" in answer
        assert time.monotonic() - began >= BODY_S * 0.9
    assert client.post("/v1/decide", json={"user": "u"}).status_code == 200


def test_a_body_broken_off_reaches_no_handler(server: Server, key: tuple[Path, str], client: httpx.Client) -> None:
    before = server.handled
    for _ in range(20):
        with connect(server, key, 1000) as half:
            half.sendall(b'{"user": "u"')
    assert client.post("/v1/decide", json={"user": "u"}).status_code == 200
    assert server.handled == before + 1


def test_callers_that_drip_large_bodies_leave_places_to_others(
    server: Server, key: tuple[Path, str], client: httpx.Client
) -> None:
    large = json.dumps({"user": "u", "idempotency_key": "k"}).encode().ljust(20_000)
    with connect(server, key, 60_000) as one, connect(server, key, 60_000) as other:
        for slow in (one, other):
            slow.sendall(b" " * 17_000)
        while server.bodies.arriving < 2:
            time.sleep(0.01)
        answer = client.post("/v1/decide", content=large)
        assert kind(answer) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert client.post("/v1/decide", json={"user": "u"}).status_code == 200
        for slow in (one, other):
            slow.settimeout(20)
            assert b" 408 " in slow.recv(4096).split(b"\r\n")[0]
    assert client.post("/v1/decide", content=large).status_code == 200
    assert (server.bodies.arriving, server.bodies.bytes) == (0, 0)


def test_bodies_that_are_held_take_no_more_than_there_is(server: Server, client: httpx.Client) -> None:
    server.bodies.take(2 * LIMIT - 100)
    try:
        assert kind(client.post("/v1/decide", content=b'{"user": "u"}'.ljust(200))) == (503, "overloaded")
        assert client.post("/v1/decide", json={"user": "u"}).status_code == 200
    finally:
        server.bodies.give_back(2 * LIMIT - 100)
    assert server.bodies.bytes == 0


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\x00" * 5000, b"G" * 100_000])
def test_what_is_no_http_harms_nobody(server: Server, client: httpx.Client, junk: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as other:
        other.sendall(junk)
        other.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while other.recv(4096):
                pass
    assert client.post("/v1/decide", json={"user": "u"}).status_code == 200


def test_many_headers_and_a_large_one_are_refused_or_borne(client: httpx.Client) -> None:
    for headers in ({f"x-{n}": "v" for n in range(2_000)}, {"x-big": "a" * 200_000}):
        with contextlib.suppress(httpx.TransportError):
            assert client.post("/v1/decide", json={"user": "u"}, headers=headers).status_code in (200, 400, 431)
    assert client.post("/v1/decide", json={"user": "u"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer " + "a" * 20_000}, 401),
        ({"Authorization": "Basic c2hvcDpzaG9w"}, 401),
        ({"Authorization": "", "x-api-key": "wrong"}, 401),
    ],
)
def test_a_wrong_key_is_told_nothing(client: httpx.Client, server: Server, headers: dict[str, Any], status: int) -> None:
    before = server.handled
    answer = client.post("/v1/decide", content=b"not even JSON", headers=headers)
    assert kind(answer) == (status, "unauthorized")
    assert "wrong" not in answer.text
    assert server.handled == before


def test_ids_of_calls_come_back_and_others_are_replaced(client: httpx.Client) -> None:
    first, second = (client.post("/v1/decide", json={"user": "u"}) for _ in range(2))
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    told = json.dumps(dict(client.post("/v1/decide", json={"user": "u"}, headers={"x-request-id": "a\tb"}).headers))
    assert "a\\tb" not in told


@pytest.mark.parametrize(("user", "status"), [("u1", 200), ("nobody", 500)])
def test_what_was_sent_is_let_go_with_the_answer(client: httpx.Client, server: Server, user: str, status: int) -> None:
    assert client.post("/v1/decide", json={"user": user}).status_code == status
    assert server.last is not None
    assert (server.last.raw, server.last.body) == (b"", None)


def test_a_failure_beside_the_handler_is_a_problem_too(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the meters broke")

    with monkeypatch.context() as once:
        once.setattr("serve_app.ingress.calls.count", broken)
        assert kind(client.post("/v1/decide", json={"user": "u1"}))[0] == 500
    assert client.post("/v1/decide", json={"user": "u1"}).status_code == 200


def test_spans_are_made_by_the_stack_that_reads_the_callers(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[str] = []
    whole = FastAPI.__call__

    async def stack(self: FastAPI, scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["path"])
        await whole(self, scope, receive, send)

    monkeypatch.setattr(FastAPI, "__call__", stack)
    assert client.post("/v1/decide", json={"user": "u1"}).status_code == 200
    assert passed == []
    monkeypatch.setattr("serve_app.ingress.calls.spans.active", lambda: True)
    assert client.post("/v1/decide", json={"user": "u1"}).status_code == 200
    assert passed == ["/v1/decide"]
