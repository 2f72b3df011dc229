"""Every test of the contract runs on every backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.ledger.protocol import Ledger
from tests.unit.ledger_support import Backend, memory_backend, redis_backend, redis_cluster_backend, sqlite_backend


@pytest.fixture(scope="package")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with redis_backend(tmp_path_factory.mktemp("redis")) as backend:
        yield backend


@pytest.fixture(scope="package")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with redis_cluster_backend(tmp_path_factory.mktemp("cluster")) as backend:
        yield backend


@pytest.fixture(params=["memory", "sqlite", "redis", "redis-cluster"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return memory_backend()
    if request.param == "sqlite":
        return sqlite_backend(tmp_path)
    shared: Backend = request.getfixturevalue("redis_server" if request.param == "redis" else "redis_cluster")
    shared.empty()
    return shared


@pytest.fixture
def ledger(backend: Backend) -> Iterator[Ledger]:
    opened = backend.open()
    yield opened
    opened.close()
