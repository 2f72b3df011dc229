"""Ten thousand connections, slow callers, half-sent bodies and bombs against a whole server: others are answered all the
while, each offender gets a problem document or is cut off in time, and nothing of them is left behind."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from loadtests.chaos_victims import Victims
from loadtests.decide_server import served
from serve_app.ingress.problems import PROBLEM_JSON
from tests.cluster.server_support import data_copy
from tests.unit.test_ops_hostile import BOMBS

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]
HEADER_S, BODY_S, CLIENT_S = 40, 4, 60
IDLE, RESERVE = 10_000, 3_000
ASK = {"user": "u0000001", "widgets": 2, "slots": 3}
GATEWAY, DECIDE = "/v1/recommendations/gateway", "/v1/notifications/decide"


@dataclass(frozen=True)
class Running:
    """A server, and what to look at for traces of its callers."""

    port: int
    victims: Victims

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30.0)

    def connect(self, sent: bytes = b"") -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        made.sendall(sent)
        return made

    def connections(self) -> int:
        """Those HAProxy holds at this moment; after a reload the old process keeps what it had."""
        held = 0
        for pid in self.victims.find("HAProxy"):
            with contextlib.suppress(psutil.NoSuchProcess):
                here = psutil.Process(pid).net_connections(kind="tcp")
                held += sum(one.laddr.port == self.port and one.status == psutil.CONN_ESTABLISHED for one in here)
        return held

    def files(self) -> dict[str, int]:
        """Open files and threads of what faces callers."""
        out = {}
        for kind in ("HAProxy", "ingress"):
            process = psutil.Process(self.victims.find(kind)[-1])
            out[f"{kind} files"], out[f"{kind} threads"] = process.num_fds(), process.num_threads()
        return out


@pytest.fixture(scope="module")
def server(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`hindcast up`, patient enough with headers for all connections to be opened before the first is closed."""
    data = data_copy(demo_release, tmp_path_factory.mktemp("connections") / "data")
    own = {
        "HINDCAST_HTTP__HEADER_TIMEOUT_S": str(HEADER_S),
        "HINDCAST_HTTP__CLIENT_TIMEOUT_S": str(CLIENT_S),
        "HINDCAST_LIMITS__BODY_S": str(BODY_S),
        "HINDCAST_BUDGETS__REQUEST_MS": "30000",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)  # switches of the session's own Ray
        with served(data, own, "fused") as made:
            running = Running(made.port, Victims.of(made.process))
            settled(running)
            yield running


def settled(server: Running, for_s: float = 5.0) -> None:
    """Wait until HAProxy has not been reloaded for a while, as it is once or twice while a server starts: whoever it is
    about to accept at that moment is lost."""
    was, since = server.victims.find("HAProxy"), time.monotonic()
    limit = since + 60
    while time.monotonic() - since < for_s:
        assert time.monotonic() < limit, "HAProxy is reloaded all the time"
        if (now := server.victims.find("HAProxy")) != was:
            was, since = now, time.monotonic()
        time.sleep(0.2)


@pytest.fixture
def clean(server: Running) -> Iterator[Running]:
    """The server, which after the test holds no more than before it."""
    before = server.files()
    yield server
    eventually(lambda: server.connections() <= 2)
    eventually(
        lambda: all(now <= before[name] + 8 for name, now in server.files().items()), lambda: (before, server.files())
    )
    with server.client() as client:
        assert client.post(GATEWAY, json=ASK).status_code == 200


@pytest.fixture
def many_files() -> Iterator[int]:
    """As many connections as this process and a server like it may open; IDLE of them where the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE + RESERVE
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    yield min(IDLE, allowed - RESERVE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def eventually(what: Callable[[], bool], why: Callable[[], object] = lambda: "", limit_s: float = 60.0) -> None:
    limit = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < limit, f"it does not come true: {why()}"
        time.sleep(0.2)


def head(path: str, length: int) -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        "",
        "",
    )
    return "\r\n".join(lines).encode()


def said_until_closed(one: socket.socket) -> bytes:
    out = b""
    with contextlib.suppress(ConnectionError):
        while piece := one.recv(65536):
            out += piece
    return out


def problem_in(raw: bytes) -> tuple[int, str]:
    """Status and media type of an answer as it came."""
    lines = raw.split(b"\r\n\r\n")[0].decode().lower().split("\r\n")
    media = next((line.split(": ")[1] for line in lines if line.startswith("content-type: ")), "")
    return int(lines[0].split(" ")[1]), media


def test_ten_thousand_idle_connections_hold_nobody_up(clean: Running, many_files: int) -> None:
    """Some never said a word, some are in the middle of their headers, some were answered and stay."""
    slow, whole = (
        b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
        b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    )
    said = (*[b""] * 7, *[slow] * 2, whole)
    assert many_files >= 2_000, "this machine allows too few files for the test to say anything"
    began, held = time.monotonic(), []
    try:
        held += [clean.connect(said[number % len(said)]) for number in range(many_files)]
        eventually(lambda: clean.connections() >= many_files, HEADER_S)
        opened, slowest = time.monotonic() - began, 0.0
        with clean.client() as client:
            for number in range(60):
                sent = time.monotonic()
                path, body = (GATEWAY, ASK) if number % 2 else (DECIDE, {"user": f"u{number:07d}"})
                answer = client.post(path, json=body, headers={"Connection": "close"})
                slowest = max(slowest, time.monotonic() - sent)
                assert answer.status_code == 200, answer.text
            assert clean.connections() >= 0.999 * many_files, "they were not there while others were answered"
        outcomes = until_all_closed(held, CLIENT_S + 20)
        closed = time.monotonic() - began
        print(f"\n{many_files} connections opened in {opened:.1f} s; 60 requests beside them, the slowest "
              f"{slowest * 1e3:.0f} ms; all closed {closed:.1f} s after the first, told {dict(outcomes)}")  # fmt: skip
    finally:
        for one in held:
            one.close()
    assert outcomes.total() == many_files


def until_all_closed(held: list[socket.socket], limit_s: float) -> Counter[str]:
    """The status that each was sent before the server closed it."""
    limit, told = time.monotonic() + limit_s, dict.fromkeys(range(len(held)), b"")
    outcomes: Counter[str] = Counter()
    with selectors.DefaultSelector() as selector:
        for number, one in enumerate(held):
            one.setblocking(False)
            selector.register(one, selectors.EVENT_READ, number)
        while selector.get_map():
            assert time.monotonic() < limit, f"{len(selector.get_map())} connections are still open"
            for key, _ in selector.select(1.0):
                piece = b""
                with contextlib.suppress(ConnectionError):
                    piece = key.fileobj.recv(4096)  # type: ignore[union-attr]
                told[key.data] += piece
                if not piece:
                    selector.unregister(key.fileobj)
                    outcomes[told[key.data][9:12].decode() or "nothing"] += 1
    return outcomes


def test_bodies_that_drip_get_a_problem_document_in_time(clean: Running) -> None:
    held = [clean.connect(head(DECIDE, 1000)) for _ in range(100)]
    answers = [b""] * len(held)
    limit = time.monotonic() + HEADER_S + 20
    while not all(b"request-timeout" in answer for answer in answers):
        assert time.monotonic() < limit, Counter(answers)
        for number, one in enumerate(held):
            one.settimeout(0.002)
            with contextlib.suppress(TimeoutError, ConnectionError):
                one.sendall(b" ")
                answers[number] += one.recv(4096)
    for one in held:
        one.close()
    assert {problem_in(answer) for answer in answers} == {(408, PROBLEM_JSON)}


def test_half_sent_bodies_and_those_who_hang_up_leave_nothing(clean: Running) -> None:
    for number in range(300):
        with clean.connect(head(DECIDE, 1000) + b'{"user": "u') as half:
            if number % 2:
                half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
    for _ in range(50):  # whole, but nobody waits for the answer
        body = b'{"user": "u0000001"}'
        with clean.connect(head(DECIDE, len(body)) + body):
            pass
    waiting = clean.connect(head(DECIDE, 1000) + b'{"user": "u')
    assert problem_in(said_until_a_body(waiting)) == (408, PROBLEM_JSON)
    waiting.close()


def said_until_a_body(one: socket.socket) -> bytes:
    one.settimeout(HEADER_S + 20)
    out = b""
    while b"}" not in out:
        piece = one.recv(65536)
        assert piece, out
        out += piece
    return out


@pytest.mark.parametrize(
    "headers",
    [b"X-Big: " + b"a" * 200_000, b"".join(b"X-%d: v\r\n" % n for n in range(5_000)), b"X-" + b"a" * 30_000 + b": v"],
    ids=["a long value", "many", "a long name"],
)
def test_header_bombs_are_refused_and_cut_off(clean: Running, headers: bytes) -> None:
    """HAProxy refuses them before any rule is asked, in its own words."""
    raw = b""
    with clean.connect() as bomb, contextlib.suppress(ConnectionError):
        bomb.settimeout(HEADER_S)
        bomb.sendall(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + headers + b"\r\n\r\n")
        raw = said_until_closed(bomb)
    assert not raw or problem_in(raw)[0] in (400, 431), raw[:200]


@pytest.mark.parametrize("body", [body for _, body in BOMBS], ids=[name for name, _ in BOMBS])
def test_json_bombs_get_a_problem_document(server: Running, body: bytes) -> None:
    with server.client() as client:
        answer = client.post(DECIDE, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422)
        assert answer.headers["content-type"] == PROBLEM_JSON
        assert len(answer.content) < 64 * 1024
        assert client.post(GATEWAY, json=ASK).status_code == 200
