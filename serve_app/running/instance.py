"""A server on this machine: a private Ray with the application in it, and the file that tells others where it is."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from serve_app.errors import NotReady
from serve_app.policies import promote_policy, read_current_policy, store_policy
from serve_app.policy.document import DEFAULT_POLICY, load_policy
from serve_app.release.manifest import write_text_atomically
from serve_app.running.checks import check_machine, folder_lock
from serve_app.running.limits import request_limit_s
from serve_app.running.switches import check_folder, free_port, set_switches
from serve_app.running.tracing import check_tracing
from serve_app.settings import Settings

__all__ = ["Instance", "await_ready", "end_leftovers", "private_ray", "run_file", "running", "start_serve"]

Progress = Callable[[str], None]
_READY_TIMEOUT_S = 180.0
_OBJECT_STORE_BYTES = 256 * 2**20


class Instance:
    """What a caller needs of a running server."""

    def __init__(self, settings: Settings, token: str) -> None:
        self.settings = settings
        self.token = token
        inner = settings.http.inner_host
        host = "127.0.0.1" if inner in ("0.0.0.0", "localhost") else inner
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{settings.http.port}"

    def get(self, path: str) -> dict[str, Any]:
        """One GET with the operator's token."""
        answer = httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {self.token}"}, timeout=10.0)
        answer.raise_for_status()
        content: dict[str, Any] = answer.json()
        return content


def run_file(data: Path) -> Path:
    """Where a running server says how to reach it."""
    return data / "run" / "server.json"


@contextmanager
def running(settings: Settings, progress: Progress = lambda _: None) -> Iterator[Instance]:
    """Start a server and stop all of it at the end, whatever happens."""
    check_machine(settings)
    check_tracing(settings)
    with folder_lock(settings.data):
        _ensure_policy(settings.data)
        folder = Path(tempfile.mkdtemp(prefix="hindcast-"))  # short: socket paths end at 107 characters
        try:
            check_folder(folder)
            yield from _serve(settings, folder, progress)
        except Exception:
            _keep_logs(folder, settings.data)
            raise
        finally:
            run_file(settings.data).unlink(missing_ok=True)
            end_leftovers(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _ensure_policy(data: Path) -> None:
    """Put the default policy in force where none was ever promoted."""
    revision, _ = read_current_policy(data)
    if revision is None:
        promote_policy(data, store_policy(data, load_policy(DEFAULT_POLICY)), now=time.time_ns() // 1000)


def _serve(settings: Settings, folder: Path, progress: Progress) -> Iterator[Instance]:
    metrics_port = free_port()
    set_switches(settings, folder)
    instance = Instance(settings, secrets.token_urlsafe(24))
    progress("starting Ray")
    with private_ray(folder, metrics_port):
        from ray import serve

        from serve_app.application import APPLICATION, build_application

        progress("starting Ray Serve")
        try:
            start_serve(settings)
        except RuntimeError as error:
            last = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
            raise NotReady(f"Ray Serve did not start: {last.strip()[:300]}", field="server") from error
        progress(f"loading the release into {settings.topology} replicas")
        application = build_application(settings, admin_token=instance.token)
        try:
            serve.run(application, name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise NotReady(_why(serve.status(), str(error)), field="server") from error
        progress("waiting for the first answer")
        await_ready(instance)
        _write_run_file(instance)
        try:
            yield instance
        finally:
            progress("stopping")
            serve.shutdown()


def start_serve(settings: Settings) -> None:
    """Start Serve's controller and proxy at the settings' address."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": settings.http.inner_host,
            "port": settings.http.port,
            "request_timeout_s": request_limit_s(settings),
        },
    )


def _why(status: Any, fallback: str) -> str:
    """The last line of what a deployment that did not start has to say."""
    for application in status.applications.values():
        for name, deployment in application.deployments.items():
            if deployment.message and "FAILED" in str(deployment.status):
                lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
                said = next((line for line in reversed(lines) if "Error" in line or "serve_app." in line), lines[-1])
                return f"deployment {name} did not start: {said[:500]}"
    return fallback


@contextmanager
def private_ray(folder: Path, metrics_port: int) -> Iterator[None]:
    """A Ray of our own: own folder, no dashboard, quiet, every port of its daemons on loopback."""
    import ray
    from ray._private import services

    if ray.is_initialized():
        raise NotReady("this process is connected to a Ray already", field="ray", hint="start the server from a fresh one")
    # Ray insists on an address that other nodes could reach. On one machine nobody else is meant to.
    services.resolve_ip_for_localhost = lambda host: host
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        num_cpus=max(16, os.cpu_count() or 1),
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=str(folder / "ray"),
        _node_ip_address="127.0.0.1",
        _metrics_export_port=metrics_port,
    )
    for number, handler in handlers.items():
        signal.signal(number, handler)  # Ray has put its own in place, which aborts the process
    try:
        yield
    finally:
        ray.shutdown()


def await_ready(instance: Instance) -> None:
    """Wait until requests can be served; NotReady says what stood in the way."""
    limit = time.monotonic() + _READY_TIMEOUT_S
    last = "no answer"
    while time.monotonic() < limit:
        try:
            answer = httpx.get(f"{instance.url}/readyz", timeout=5.0)
            if answer.status_code == 200:
                return
            last = answer.text[:300]
        except httpx.HTTPError as error:
            last = type(error).__name__
        time.sleep(0.1)
    raise NotReady(f"the server did not get ready in {_READY_TIMEOUT_S:g} s: {last}", field="server")


def _write_run_file(instance: Instance) -> None:
    path = run_file(instance.settings.data)
    described = {
        "admin_url": instance.url,
        "admin_token": instance.token,
        "pid": os.getpid(),
        "started_at": psutil.Process().create_time(),
        "topology": instance.settings.topology,
    }
    write_text_atomically(path, json.dumps(described, indent=1))
    path.chmod(0o600)


def _keep_logs(folder: Path, data: Path) -> None:
    """Save what the replicas said before the private folder goes."""
    kept = data / "run" / "failed-start"
    shutil.rmtree(kept, ignore_errors=True)
    with suppress(OSError):
        shutil.copytree(folder / "ray" / "session_latest" / "logs" / "serve", kept)


def end_leftovers(folder: Path) -> None:
    """End processes of this server that outlived Ray (HAProxy, when its manager was killed): those that name our folder."""
    mine = [one for one in psutil.process_iter(["cmdline"]) if one.pid != os.getpid() and _names(one, folder)]
    for process in mine:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(mine, timeout=3)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()


def _names(process: psutil.Process, folder: Path) -> bool:
    return any(str(folder) in part for part in process.info["cmdline"] or ())
