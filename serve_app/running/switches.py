"""Ray's switches, set in the environment before Ray starts. What the operator has set already is left alone.

HAProxy takes HTTP off Python (`running/haproxy.py` says how it is closed to strangers); its files lie in a folder that
only this user can open.
"""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

from serve_app.errors import InvalidInput
from serve_app.running.haproxy import Bounds, haproxy_script
from serve_app.running.tracing import tracing_switches
from serve_app.settings import Settings
from serve_app.settings_requests import HttpSettings

__all__ = ["check_folder", "free_port", "node_switches", "set_switches"]


def free_port() -> int:
    """A port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_LONGEST_FOLDER = 29  # HAProxy's sockets lie below it in a folder of 56 letters, and their paths end at 97


def check_folder(folder: Path) -> None:
    """InvalidInput where the paths of HAProxy's sockets would be too long."""
    if len(str(folder)) > _LONGEST_FOLDER:
        raise InvalidInput(
            f"a path of more than {_LONGEST_FOLDER} letters leaves no room for the names of sockets",
            field=str(folder),
            hint="choose a shorter one: TMPDIR for hindcast up, --folder for hindcast node-env",
        )


def node_switches(settings: Settings, folder: Path, opened: tuple[str, int] | None = None) -> dict[str, str]:
    """The switches of one node whose private files lie in `folder`: Ray reads them before its daemons start. opened: host
    and port that HAProxy is to open where Serve is told to keep to loopback."""
    chosen = {
        # One event loop a replica, gRPC between deployments, buffered logs.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Nothing of this server calls home or shows up in other drivers' logs.
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Ray runs workers at niceness 15, as for batch jobs: whatever else the machine does would go before our answers.
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # The controller looks at everything so often, for 3 to 4 ms a time (by default every 0.1 s). A killed HAProxy is
        # back after some ten looks.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    }
    chosen |= _allocation()
    chosen |= tracing_switches(settings)
    return chosen | _haproxy(settings, folder, opened) if settings.http.haproxy else chosen


def _allocation() -> dict[str, str]:
    """glibc's allocator (mallopt(3)). Memory of a micro-batch's matrices is kept for the next, up to 32 MB an arena: by
    default much of it goes back to the system each time and is fetched again page by page, 100 faults a gateway page. Two
    arenas, not eight a core: the threads of a replica take turns anyway, and each arena keeps the holes of its own threads,
    which grew for as long as a server ran. Arrow's memory comes from there too: its own allocator keeps what a thread freed
    until that thread asks again, and the worker's upkeep (hundreds of MB every few minutes) cannot give it back."""
    return {
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
        "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
        "MALLOC_TOP_PAD_": str(1 << 20),
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }


_OPENING = {"RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_HAPROXY_BINARY_PATH"}


def set_switches(settings: Settings, folder: Path) -> dict[str, str]:
    """Set the switches in this process's environment; returns those that were set. InvalidInput where one that is set
    already contradicts the settings."""
    http = settings.http
    opened = None if http.opened is None else (http.opened, http.port)
    chosen = node_switches(settings, folder, opened)
    if opened is not None and (given := _OPENING & os.environ.keys()):
        raise InvalidInput(
            "is set already, so that HAProxy would not be open at http.host",
            field=min(given),
            hint="unset it: hindcast up sets what it needs",
        )
    made = {name: value for name, value in chosen.items() if name not in os.environ}
    os.environ.update(made)
    return made


def _haproxy(settings: Settings, folder: Path, opened: tuple[str, int] | None) -> dict[str, str]:
    stats, metrics = free_port(), free_port()
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(settings.http.haproxy_threads),
        "RAY_SERVE_HAPROXY_MAXCONN": str(min(settings.http.max_connections, _connections_allowed())),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(settings.http.client_timeout_s),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        # A dead ingress refuses connections, which is seen at once; one that is only busy must not be taken out for two slow
        # answers to a check, which leaves nobody to ask.
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": "5",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy_script(folder, stats, metrics, _bounds(settings.http), opened)),
    }


def _bounds(http: HttpSettings) -> Bounds:
    return Bounds(http.header_timeout_s, http.client_timeout_s, http.under_way_per_ingress, http.queue_ms)


_BESIDES = 1024
_BUSY = 4096
"""Requests under way at once for which files are kept: what one ingress takes by default, and some."""


def _connections_allowed() -> int:
    """By the limit on files: HAProxy needs one for a connection, another while a request of it is under way, and some
    besides. Where fewer files are left than requests are under way, some of these are answered 503."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return 1_000_000
    files = hard - _BESIDES
    return max(64, files // 2, files - _BUSY)
