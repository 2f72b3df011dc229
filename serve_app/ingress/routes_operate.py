"""Calls of operators: health, readiness, metrics, promotions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response

from serve_app.clock import now_us
from serve_app.errors import HindcastError, NotReady
from serve_app.ingress.auth import Scope
from serve_app.ingress.calls import Call, Incoming, json_answer
from serve_app.ingress.metrics_page import MetricsPage
from serve_app.ingress.problems import ProblemError
from serve_app.ingress.schemas import Strict
from serve_app.log.surroundings import environment_rows, promotion, switches
from serve_app.log.upkeep import upkeep, upkeep_answer
from serve_app.policies import read_policy
from serve_app.serving.assemble import bridged
from serve_app.serving.board import Kind
from serve_app.serving.journalling import JournalHost
from serve_app.serving.library import Library
from serve_app.settings import Settings

__all__ = ["OperateRoutes"]

_UPKEEP_CALL_S = 120.0


class VersionIn(Strict):
    """Which version of a release, or revision of a policy."""

    version: str = Field(min_length=1, max_length=100)


class Done(BaseModel):
    """What was carried out."""

    version: str
    done: str


class Health(BaseModel):
    """The process answers."""

    status: str


class Ready(BaseModel):
    """What is served."""

    status: str
    release: str
    policy: str
    topology: str


class Replica(BaseModel):
    """One replica as it last reported."""

    replica: str
    role: str
    pid: int
    releases: list[str]
    policies: list[str]


class Replicas(BaseModel):
    """The living replicas."""

    replicas: list[Replica]


class Upkept(BaseModel):
    """What one run of the log's upkeep did."""

    rows: dict[str, int]
    duplicates: dict[str, int]
    frames: int
    damaged: int
    torn: int
    records_copied: int
    records_known: int
    records_waiting: int
    records_unreadable: int
    rows_forgotten: int
    journal_bytes_overwritten: int
    snapshot_users: int | None


class OperateRoutes:
    """Handlers of operations."""

    def __init__(
        self,
        owner: Any,
        library: Library,
        settings: Settings,
        metrics: Callable[[], Sequence[str]] | None,
        journal: JournalHost,
    ) -> None:
        self._journal = journal
        self._owner, self._library, self._settings = owner, library, settings
        self._metrics = MetricsPage(metrics) if metrics else None

    def calls(self) -> list[Call]:
        """The calls of this module."""
        table = [
            Call("GET", "/healthz", "Whether this process answers", self._healthz, None, None, Health, tag="operations"),
            Call("GET", "/readyz", "Whether requests can be served", self._readyz, None, None, Ready, tag="operations"),
            Call("GET", "/v1/replicas", "Replicas and the versions they hold", self._replicas, Scope.admin, None, Replicas,
                 tag="operations"),
            Call("POST", "/v1/log/upkeep", "Keep the log up now: compact, copy records, forget, snapshot", self._upkeep,
                 Scope.admin, None, Upkept, tag="operations"),
            Call("GET", "/metrics", "Prometheus metrics of all replicas", self._metrics_text, Scope.read, tag="operations"),
        ]  # fmt: skip
        phases: list[tuple[Kind, str]] = [("release", "releases"), ("policy", "policies")]
        return table + [
            Call("POST", f"/v1/{path}/{phase}", f"Promotion of a {kind}: {phase}", self._phase(kind, phase),
                 Scope.admin, VersionIn, Done, 4096, "operations")
            for kind, path in phases
            for phase in ("prepare", "commit")
        ]  # fmt: skip

    async def _healthz(self, incoming: Incoming) -> Response:
        del incoming
        return json_answer({"status": "ok"})

    async def _readyz(self, incoming: Incoming) -> Response:
        del incoming
        release, policy = self._library.releases.current, self._library.policies.current
        try:
            await self._owner.call("catalogue_head")
        except HindcastError as error:
            raise NotReady(f"the ledger does not answer: {error.message}", field="ledger") from error
        return json_answer({"status": "ready", "release": release, "policy": policy, "topology": self._settings.topology})

    async def _replicas(self, incoming: Incoming) -> Response:
        del incoming
        reports = await self._owner.replicas()
        return json_answer(
            {
                "replicas": [
                    {
                        "replica": one.replica,
                        "role": one.role,
                        "pid": one.pid,
                        "releases": sorted(one.loaded["release"]),
                        "policies": sorted(one.loaded["policy"]),
                    }
                    for one in sorted(reports, key=lambda report: report.replica)
                ]
            }
        )

    async def _upkeep(self, incoming: Incoming) -> Response:
        del incoming
        ledger = bridged(self._owner.call, asyncio.get_running_loop(), _UPKEEP_CALL_S)
        result = await asyncio.to_thread(lambda: upkeep(self._settings.data, ledger, now_us=now_us()))
        return json_answer(upkeep_answer(result))

    async def _metrics_text(self, incoming: Incoming) -> Response:
        del incoming
        if self._metrics is None:
            raise ProblemError(404, "no-metrics", "this server was started without a metrics agent")
        return Response(await self._metrics.text(), media_type="text/plain; version=0.0.4")

    def _tell(self, kind: Kind, version: str, before: str) -> None:
        """Log what came into force. The promotion stands whether or not the log could be written in time."""
        happened = [promotion(now_us(), kind, version, before)]
        if kind == "policy":
            thrown, known = (read_policy(self._settings.data, one).kill_switches for one in (version, before))
            if thrown != known:
                happened.append(switches(now_us(), version, thrown.model_dump(mode="json")))
        self._journal.write({"environment": environment_rows(happened)})

    def _phase(self, kind: Kind, phase: str) -> Any:
        async def handler(incoming: Incoming) -> Response:
            version = incoming.body.version
            if phase == "prepare":
                await self._owner.prepare(kind, version)
            else:
                before = (self._library.releases if kind == "release" else self._library.policies).current
                await self._owner.commit_version(kind, version)
                await asyncio.to_thread(lambda: self._tell(kind, version, before))
            return json_answer({"version": version, "done": phase})

        return handler
