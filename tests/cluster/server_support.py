"""Servers for tests: in this process on a real port, or deployed on the session's Ray."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from serve_app.ingress.server import IngressServer
from serve_app.ledger.opening import open_ledger
from serve_app.policies import promote_policy, read_current_policy, read_policy, store_policy
from serve_app.policy.document import DEFAULT_POLICY, load_policy
from serve_app.release.registry import read_current
from serve_app.running.instance import Instance, await_ready
from serve_app.running.switches import free_port
from serve_app.serving.assemble import bridged, local_stages
from serve_app.serving.board import Board
from serve_app.serving.ledger_client import LedgerClient
from serve_app.serving.library import ALL_ROLES, Library
from serve_app.serving.owner import StateOwner
from serve_app.settings import Settings, load_settings

TOKEN = "operator-of-the-test"
JSON = dict[str, Any]


def data_copy(source: Path, target: Path) -> Path:
    """A data folder of one's own: releases and catalogue of `source`, an empty log, ledger and journal."""
    for part in ("catalogue", "releases"):
        shutil.copytree(source / part, target / part)
    promote_policy(target, store_policy(target, load_policy(DEFAULT_POLICY)), now=1)
    return target


def second_release(data: Path, version: str) -> str:
    """The current release again, under another version."""
    current, _ = read_current(data)
    assert current is not None
    folder = shutil.copytree(data / "releases" / current, data / "releases" / version)
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": version}))
    return version


def generous(**overrides: Any) -> Settings:
    """Settings whose budgets a loaded machine keeps, so that a test of answers never meets a fall-back."""
    slow = dict.fromkeys(
        ("request_ms", "decide_ms", "live_ms", "retrieval_ms", "features_ms", "ranking_ms", "journal_ms"), 30_000
    )
    return load_settings(**{"budgets": slow, **overrides})


@contextmanager
def in_process(settings: Settings) -> Iterator[httpx.Client]:
    """The server without Ray, on a port of its own."""
    server = _InProcess(settings)
    server.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60.0) as client:
            yield client
    finally:
        server.end()


class _InProcess(threading.Thread):
    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.settings, self.port = settings, free_port()
        self.ready, self.failure = threading.Event(), None
        self.uvicorn: uvicorn.Server | None = None

    def start(self) -> None:
        super().start()
        assert self.ready.wait(240), "the server did not start"
        if self.failure is not None:
            raise self.failure

    def end(self) -> None:
        assert self.uvicorn is not None
        self.uvicorn.should_exit = True
        self.join(60)

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self.failure = error
            self.ready.set()
            raise

    async def _serve(self) -> None:
        data = self.settings.data
        (release, _), (policy, _) = read_current(data), read_current_policy(data)
        assert release is not None
        assert policy is not None
        owner = StateOwner(open_ledger(data, durability="process"), Board(release, policy))
        library = Library(data, ALL_ROLES, lambda revision: read_policy(data, revision))
        make = local_stages(self.settings, library, self._ledger(owner))
        self.server = server = IngressServer(self.settings, "test", library, owner, make, admin_token=TOKEN)
        await server.start()
        config = uvicorn.Config(server.app, port=self.port, log_level="error", timeout_graceful_shutdown=5)
        self.uvicorn = uvicorn.Server(config)
        self.uvicorn.install_signal_handlers = lambda: None  # type: ignore[method-assign]
        serving = asyncio.create_task(self.uvicorn.serve())
        while not self.uvicorn.started:
            await asyncio.sleep(0.01)  # uvicorn has nothing else to wait on
        self.ready.set()
        await serving
        await server.stop()
        owner.close()

    def _ledger(self, owner: StateOwner) -> LedgerClient:
        """As the stages see it."""
        return bridged(owner.call, asyncio.get_running_loop(), 30.0)


@contextmanager
def deployed(settings: Settings) -> Iterator[Instance]:
    """The application on the session's Ray; settings.http must be the session's."""
    from ray import serve

    from serve_app.application import APPLICATION, build_application

    serve.run(build_application(settings, admin_token=TOKEN), name=APPLICATION, route_prefix="/")
    try:
        instance = Instance(settings, TOKEN)
        await_ready(instance)
        yield instance
    finally:
        serve.delete(APPLICATION)
