"""A whole server with keys and traces on: closed to strangers, patient with nobody, watched, and silent on secrets."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from hindcast.watching import read_metrics
from serve_app.ingress.key_file import Scope as KeyScope
from serve_app.ingress.key_file import add_key, remove_key
from serve_app.running.switches import free_port
from tests.cluster.server_support import data_copy
from tests.cluster.test_server_command import environment
from tests.unit.test_ops_dashboard import exported

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
IDLE = int(os.environ.get("IDLE_CONNECTIONS", "2000"))
HEADER_S = 3


@dataclass
class Running:
    """A server that `hindcast up` started. folder: its private files."""

    url: str
    port: int
    data: Path
    keys: Path
    key: str
    spans: Path
    folder: Path
    screen: Path
    processes: list[psutil.Process]

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60.0)

    @property
    def token(self) -> str:
        return str(json.loads((self.data / "run" / "server.json").read_text())["admin_token"])


@pytest.fixture(scope="module")
def server(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`hindcast up` in chain topology, with keys, open to others, all calls traced and told, little patience for headers."""
    home = tmp_path_factory.mktemp("closed")
    data, keys, spans, port = data_copy(demo_release, home / "data"), home / "keys.json", home / "spans", free_port()
    key = add_key(keys, "shop", [KeyScope.read, KeyScope.decide])
    own = environment(
        HINDCAST_SECURITY__KEYS_FILE=str(keys),
        HINDCAST_HTTP__HOST="0.0.0.0",
        HINDCAST_TRACING__TO=f"file://{spans}",
        HINDCAST_TRACING__SHARE="1",
        HINDCAST_LOGS__CALLS="all",
        HINDCAST_HTTP__HEADER_TIMEOUT_S=str(HEADER_S),
        HINDCAST_BUDGETS__REQUEST_MS="30000",
    )
    command = [sys.executable, "-m", "hindcast", "up", "--data", str(data), "--port", str(port), "--topology", "chain"]
    screen = home / "screen.txt"
    with screen.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=own)
        try:
            limit = time.monotonic() + 300
            while "Ctrl-C stops everything" not in screen.read_text():
                assert process.poll() is None, screen.read_text()
                assert time.monotonic() < limit, screen.read_text()
                time.sleep(0.2)  # between two looks at its screen
            started = psutil.Process(process.pid).children(recursive=True)
            yield Running(f"http://127.0.0.1:{port}", port, data, keys, key, spans, folder_of(started), screen, started)
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(90)
            process.kill()


def folder_of(processes: list[psutil.Process]) -> Path:
    """The server's private folder: its HAProxy reads a configuration in it."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for word in process.cmdline():
                if word.endswith("haproxy.cfg"):
                    return next(path for path in Path(word).parents if path.name.startswith("hindcast-"))
    raise AssertionError("no HAProxy runs")


def eventually(what: Any, limit_s: float = 60.0) -> Any:
    """What `what` gives as soon as it is true."""
    limit = time.monotonic() + limit_s
    while True:
        found = what()
        if found or time.monotonic() > limit:
            assert found
            return found
        time.sleep(0.2)


ASK = {"user": "u0000001", "widgets": 2, "slots": 3}


def test_a_key_opens_what_it_is_for_and_no_stranger_gets_in(server: Running) -> None:
    with server.client() as shop, server.client("wrong") as stranger:
        assert shop.post("/v1/recommendations/gateway", json=ASK).status_code == 200
        assert shop.post("/v1/events", json=[]).status_code == 403
        assert shop.get("/v1/replicas").status_code == 403
        for path in ("/metrics", "/v1/replicas", "/v1/decisions/x"):
            assert stranger.get(path).status_code == 401
        assert stranger.post("/v1/recommendations/gateway", json=ASK).status_code == 401
        assert stranger.get("/readyz").status_code == 200


def test_keys_are_made_and_revoked_while_it_runs(server: Running) -> None:
    key = add_key(server.keys, "guest", [KeyScope.read], per_s=0.01, burst=3)
    with server.client(key) as guest:
        eventually(lambda: guest.post("/v1/recommendations/gateway", json=ASK).status_code == 200)
        codes = [guest.post("/v1/recommendations/gateway", json=ASK) for _ in range(4)]
        assert codes[-1].status_code == 429
        assert int(codes[-1].headers["retry-after"]) >= 1
        remove_key(server.keys, "guest")
        eventually(lambda: guest.post("/v1/recommendations/gateway", json=ASK).status_code == 401)


def test_nothing_but_the_port_of_http_is_open_to_others(server: Running) -> None:
    found = {}
    for process in server.processes:
        with contextlib.suppress(psutil.Error):
            for one in process.net_connections(kind="tcp"):
                if one.status == psutil.CONN_LISTEN:
                    found[one.laddr.port] = (one.laddr.ip, process.name())
    assert found[server.port] == ("0.0.0.0", "haproxy")
    others = {ip for port, (ip, _) in found.items() if port != server.port}
    assert others <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, found


def test_headers_that_serve_would_read_before_us_do_no_harm(server: Running) -> None:
    """Serve reads them as UTF-8, and would give a request of ours a time of its own."""
    decoded = ("x-request-id", "traceparent", "tracestate", "serve_multiplexed_model_id", "x-session-id", "x_session_id")
    strange = {**dict.fromkeys(decoded, b"\xff"), "x-request-disconnect-disabled": b"\xff"}
    with server.client() as shop:
        for name, value in {**strange, "x-request-timeout-seconds": b"0.0001"}.items():
            answer = shop.post("/v1/recommendations/gateway", json=ASK, headers=[(name.encode(), value)])
            assert answer.status_code == 200, name
            assert len(answer.headers["x-request-id"]) > 8
        named = shop.post("/v1/recommendations/gateway", json=ASK, headers={"x-request-id": "mine-1"})
        assert named.headers["x-request-id"] == "mine-1"


def test_the_admin_socket_is_for_this_user_alone(server: Running) -> None:
    sockets = [path for path in server.folder.rglob("*.sock") if path.is_socket()]
    assert any(path.name == "admin.sock" for path in sockets)
    assert server.folder.stat().st_mode & 0o077 == 0
    for path in sockets:
        if path.name == "admin.sock":
            assert path.stat().st_mode & 0o077 == 0


def test_idle_connections_are_borne_and_let_go(server: Running) -> None:
    held: list[socket.socket] = []
    with server.client() as shop:
        try:
            held.extend(socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(IDLE))
            assert shop.post("/v1/recommendations/gateway", json=ASK).status_code == 200
            for one in held[: IDLE // 2]:
                with contextlib.suppress(OSError):
                    one.sendall(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            assert shop.post("/v1/recommendations/gateway", json=ASK).status_code == 200
            for one in held:
                one.settimeout(HEADER_S * 4 + 20)
                with contextlib.suppress(ConnectionResetError):
                    while one.recv(4096):
                        pass
        finally:
            for one in held:
                one.close()
        assert shop.post("/v1/recommendations/gateway", json=ASK).status_code == 200


def test_large_headers_and_bodies_are_refused(server: Running) -> None:
    with server.client() as shop:
        assert shop.get("/readyz", headers={"x-big": "a" * 60_000}).status_code in (400, 431)
        large = shop.post("/v1/notifications/decide", content=b"x" * (1024 * 1024))
        assert (large.status_code, large.json()["type"]) == (413, "urn:hindcast:problem:body-too-large")
        bomb = shop.post("/v1/notifications/decide", content=b"[" * 100_000)
        assert bomb.status_code in (400, 422)
        assert shop.post("/v1/recommendations/gateway", json=ASK).status_code == 200


def test_every_metric_shown_is_one_the_dashboard_may_ask_for(server: Running) -> None:
    with server.client() as shop:
        shop.post("/v1/notifications/decide", json={"user": "u0000001"})

        def names() -> set[str]:
            text = shop.get("/metrics").text
            return {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line.startswith("ray_hindcast_")}

        wanted = {"ray_hindcast_gate_outcomes_total", "ray_hindcast_log_lag_s", "ray_hindcast_request_ms_bucket"}
        eventually(lambda: wanted <= names())
        assert names() <= set(exported())

        def roles() -> dict[str, float]:
            found = read_metrics(shop.get("/metrics").text, 0.0).values.items()
            return {dict(labels)["role"]: value for (name, labels, _), value in found if name == "replicas"}

        eventually(lambda: roles().get("ingress") == roles().get("ranking") == 1)


def test_top_shows_a_frame(server: Running) -> None:
    command = [sys.executable, "-m", "hindcast", "top", "--data", str(server.data), "--once", "--window", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment(COLUMNS="200"))
    assert done.returncode == 0, done.stderr
    assert "replicas ingress" in done.stdout
    assert "/v1/recommendations/gateway" in done.stdout


def spans_of(server: Running) -> list[dict[str, Any]]:
    found = []
    for path in server.spans.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # being written
                found.append({**json.loads(line), "file": path.name})
    return found


def test_a_trace_follows_a_request_through_the_processes(server: Running) -> None:
    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with server.client() as shop:
        answer = shop.post("/v1/recommendations/gateway", json=ASK, headers={"traceparent": f"00-{trace}-{caller}-01"})
        assert answer.status_code == 200

    def whole() -> list[dict[str, Any]]:
        own = [one for one in spans_of(server) if one["context"]["trace_id"] == f"0x{trace}"]
        names = {one["name"] for one in own}
        stages = {"/v1/recommendations/gateway", "batch", "retrieval", "ranking", "features"}
        processes = {one["file"] for one in own}  # ingress, retrieval, ranking, features
        return own if stages <= names and len(processes) >= 4 else []

    own = eventually(whole)
    ids = {one["context"]["span_id"] for one in own}
    above = {(one["name"], one["parent_id"]) for one in own if one["parent_id"] not in ids}
    assert {parent for _, parent in above} == {f"0x{caller}"}, above


def test_lines_name_calls_and_no_file_holds_a_secret(server: Running) -> None:
    with server.client() as shop:
        answer = shop.post("/v1/recommendations/gateway", json=ASK, headers={"x-request-id": "call-of-the-test"})
        assert answer.headers.get_list("x-request-id") == ["call-of-the-test"]
    logs = server.folder / "ray" / "session_latest" / "logs"

    def line() -> dict[str, Any]:
        for path in logs.glob("worker-*.err"):
            for text in path.read_text(errors="replace").splitlines():
                if "call-of-the-test" in text and text.startswith("{"):
                    return dict(json.loads(text))
        return {}

    told = eventually(line)
    assert told["calls"] == ["call-of-the-test"]
    assert told["request_ids"] == [answer.json()["request_id"]]
    assert (told["path"], told["status"], told["caller"]) == ("/v1/recommendations/gateway", 200, "shop")
    shutil.copy(server.screen, logs / "screen.txt")
    for path in (path for path in logs.rglob("*") if path.is_file()):
        text = path.read_bytes()
        for secret in (server.key, server.token):
            assert secret.encode() not in text, path
