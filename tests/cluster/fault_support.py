"""A running server in which a test plants faults: in this process (`topology: fused`), or deployed as a chain."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from serve_app.clock import monotonic_s
from serve_app.ingress.batcher import BatcherStats
from serve_app.policies import promote_policy, store_policy
from serve_app.policy.document import parse_policy
from serve_app.running.instance import Instance
from serve_app.serving import faults, meters
from serve_app.serving.assemble import bridged
from serve_app.serving.ledger_client import LedgerClient
from serve_app.serving.owner import StateOwner
from serve_app.settings import EXPENDABLE, Settings, load_settings
from tests.cluster.server_support import TOKEN, _InProcess, deployed

__all__ = ["BUDGETS", "Answer", "Shop", "chain", "fused", "until"]

BUDGETS = {
    "request_ms": 3_500, "decide_ms": 3_000, "decide_batch_ms": 8_000, "live_ms": 1_000, "retrieval_ms": 1_000,
    "features_ms": 800, "ranking_ms": 2_000, "journal_ms": 800, "ledger_ms": 1_000, "commit_ms": 2_000, "stuck_s": 4,
}  # fmt: skip
"""Long for a machine that has other things to do, short for a test that lets each of them pass."""

OPERATOR = {"authorization": f"Bearer {TOKEN}"}
_POLICY = {
    "name": "faults",
    "other_regions": {"ad_consent_required": False, "night_consent_required": False, "ad_label": None},
    "message_classes": {"informational": {"bypass_threshold": True}, "advertising": {"threshold": -10.0}},
    "caps": [{"id": "day", "scope": "global", "limit": 1, "window": {"rolling_hours": 24}}],
    "surfaces": {"notification": {"head_weights": {"p_click": 1.0}}},
}


def until(condition: Callable[[], Any], why: str, timeout_s: float = 60.0) -> Any:
    """What the condition gives once it holds."""
    pause, ends = threading.Event(), monotonic_s() + timeout_s
    while not (found := condition()):
        assert monotonic_s() < ends, why
        pause.wait(0.02)
    return found


@dataclass(frozen=True)
class Answer:
    """One HTTP answer with the time it took."""

    status: int
    body: dict[str, Any]
    headers: httpx.Headers
    seconds: float

    @property
    def kind(self) -> str:
        """Of a problem: the end of its type."""
        return str(self.body["type"]).rsplit(":", 1)[1]


@dataclass
class Shop:
    """A server and its callers. told: answers of one list or decision, by
    request id. users: so many were met."""

    client: httpx.Client
    data: Path
    settings: Settings
    url: str
    inside: FaultyServer | None = None
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    users: int = 0

    @property
    def file(self) -> Path:
        """The file of faults."""
        assert self.settings.testing.faults is not None
        return self.settings.testing.faults

    @contextmanager
    def planted(self, **planted: Mapping[str, Any]) -> Iterator[None]:
        """Faults by point, for so long."""
        self.file.with_suffix(".struck").unlink(missing_ok=True)
        faults.plant(self.file, planted)
        try:
            yield
        finally:
            faults.plant(self.file, {})

    def struck(self, point: str, times: int = 1) -> bool:
        """Whether the fault at `point` has happened so often since it was planted."""
        struck = self.file.with_suffix(".struck")
        return struck.exists() and struck.read_text().split().count(point) >= times

    def ask(self, path: str, body: Any) -> Answer:
        """One POST; what it says of itself is remembered."""
        began = monotonic_s()
        got = self.client.post(path, json=body)
        answer = Answer(got.status_code, got.json(), got.headers, monotonic_s() - began)
        one_row = got.status_code == 200 and path.endswith(("related", "decide")) and not answer.body.get("replayed")
        if one_row:  # of a page, its parts may differ
            self.told[answer.body["request_id"]] = answer.body
        return answer

    def related(self, item: str, **more: Any) -> Answer:
        return self.ask("/v1/recommendations/related", {"item": item, "slots": 10, **more})

    def new_user(self) -> str:
        """Somebody who can be reached and got nothing yet."""
        self.users += 1
        name = f"user-{self.users}"
        put = self.client.put(f"/v1/users/{name}", json={"reachable": ["push"], "zone": "UTC"})
        assert put.status_code == 200, put.text
        return name

    def decide(self, user: str, campaign: str, **more: Any) -> Answer:
        return self.ask("/v1/notifications/decide", {"user": user, "candidates": [{"campaign": campaign}], **more})

    def open(self) -> None:
        """Campaigns to decide on."""
        for name, kind in (("news", "informational"), ("sale", "advertising")):
            body = {"text": name, "message_class": kind, "channels": ["push"]}
            put = self.client.put(f"/v1/campaigns/{name}", json=body)
            assert put.status_code == 200, put.text

    def compact(self) -> None:
        answer = self.client.post("/v1/log/upkeep", headers=OPERATOR)
        assert answer.status_code == 200, answer.text


class Counts:
    """A sink that adds counters up, and keeps what gauges stand at."""

    def __init__(self) -> None:
        self.degraded: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, amount: float, tags: Mapping[str, str]) -> None:
        if name == "hindcast_degraded":
            with self._lock:
                self.degraded[tags["stage"]] += int(amount)

    def observe(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        del name, value, tags

    def set(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        del name, value, tags


class FaultyServer(_InProcess):
    """A server in this process, with budgets for its ledger too."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.counts = Counts()
        self.loop: asyncio.AbstractEventLoop | None = None

    def _ledger(self, owner: StateOwner) -> LedgerClient:
        self.owner, self.loop = owner, asyncio.get_running_loop()
        budgets = self.settings.budgets
        return bridged(owner.call, self.loop, budgets.commit_ms / 1000, budgets.ledger_ms / 1000)

    def lanes(self) -> dict[str, BatcherStats]:
        return {name: batcher.stats for name, batcher in self.server._batchers().items()}

    def tasks(self) -> set[str]:
        """What runs on the event loop."""

        async def look() -> set[str]:
            own = asyncio.current_task()
            return {str(task.get_coro()) for task in asyncio.all_tasks() if task is not own}

        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(look(), self.loop).result(30)

    def left_behind(self) -> str:
        """What is still under way though nobody waits; "" for nothing."""
        server = self.server
        for name, lane in self.lanes().items():
            if lane.in_flight or lane.queued:
                return f"{name}: {lane}"
        for pool in (server._pool, server._fall_backs, self.owner._pool):
            if pool.turns.longest_s():
                return f"a thread of {pool}"
        if server.journal._waiting:
            return f"{len(server.journal._waiting)} appends"
        for store in server.library.stores.values():
            if store.in_use():
                return f"pins of {store.kind}"
        return ""


def _settings(data: Path, topology: str, **more: Any) -> Settings:
    (data / EXPENDABLE).touch()
    promote_policy(data, store_policy(data, parse_policy(_POLICY)), now=2)
    testing = {"faults": data / "faults.json"}
    return load_settings(data=data, topology=topology, budgets=BUDGETS, testing=testing, quality={"enabled": False}, **more)


@contextmanager
def fused(data: Path) -> Iterator[Shop]:
    """In this process, with few threads."""
    settings = _settings(data, "fused", deployments={"ingress": {"threads": 3}})
    server, before = FaultyServer(settings), list(meters._sinks)
    faults.install(settings.testing.faults)
    meters.install(server.counts)
    try:
        server.start()
        url = f"http://127.0.0.1:{server.port}"
        with httpx.Client(base_url=url, timeout=60.0) as client:
            shop = Shop(client, data, settings, url, server)
            shop.open()
            yield shop
    finally:
        faults.install(None)
        server.end()
        meters._sinks[:] = before


@contextmanager
def chain(data: Path, port: int) -> Iterator[tuple[Shop, Instance]]:
    """Deployed on the session's Ray, two micro-batches at once."""
    settings = _settings(data, "chain", http={"port": port}, batching={"in_flight_chain": 2})
    with deployed(settings) as instance, httpx.Client(base_url=instance.url, timeout=60.0) as client:
        shop = Shop(client, data, settings, instance.url)
        shop.open()
        yield shop, instance
