"""Settings of what comes in over HTTP: where, how long, how many, how much, from whom."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pydantic import Field

from serve_app.settings_base import Group, Milliseconds, Port

__all__ = [
    "BatchingSettings",
    "BudgetSettings",
    "HttpSettings",
    "LimitSettings",
    "QualitySettings",
    "SecuritySettings",
    "ServingSettings",
    "is_loopback",
]


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HttpSettings(Group):
    """Where the server listens."""

    host: str = "127.0.0.1"
    """Address to bind. Anything but loopback needs API keys (`security.keys_file`)."""
    port: Port = 8000
    """Port of the HTTP API."""
    haproxy: bool = True
    """Put HAProxy (shipped with Ray) before the ingress replicas; otherwise Ray Serve's own Python proxy."""
    haproxy_threads: int = Field(1, ge=1, le=64)
    """Threads of HAProxy."""
    max_connections: int = Field(12_000, ge=16, le=1_000_000)
    """Connections HAProxy holds open at once."""
    client_timeout_s: int = Field(60, ge=1, le=3600)
    """Idle time after which HAProxy closes a client's connection."""
    header_timeout_s: int = Field(10, ge=1, le=600)
    """Time for a request's line, headers and (up to 16 KB) body to arrive at HAProxy; then 408."""

    under_way_per_ingress: int = Field(48, ge=1, le=100_000)
    """Requests HAProxy sends to one ingress at once. More wait in HAProxy."""
    queue_ms: int = Field(100, ge=1, le=60_000)
    """Time a request waits in HAProxy for an ingress; then 503 with Retry-After, which costs the ingress nothing."""

    @property
    def places_of_one_surface(self) -> int:
        """Requests of one surface that an ingress holds while none of them is answered: of those HAProxy sends, others get
        as many."""
        return max(1, self.under_way_per_ingress // 2)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach `host`."""
        return is_loopback(self.host)

    @property
    def inner_host(self) -> str:
        """Where Serve binds on a machine of its own: behind HAProxy, which reaches it there and alone is open to others."""
        return "127.0.0.1" if self.haproxy else self.host

    @property
    def opened(self) -> str | None:
        """What HAProxy binds beside that; None: nothing else."""
        return self.host if self.haproxy and self.host not in ("127.0.0.1", "localhost") else None


class BudgetSettings(Group):
    """How long each part of a request may take before its fall-back answers instead."""

    request_ms: Milliseconds = 1_000
    """Whole recommendation request, from admission to answer."""
    decide_ms: Milliseconds = 5_000
    """Whole notification decision; a decision has no fall-back, it fails closed."""
    decide_batch_ms: Milliseconds = 60_000
    """Whole `decide-batch` call."""
    ledger_ms: Milliseconds = 2_000
    """Asking the ledger, before a decision is made, for users and for what changed; beyond it the ledger counts as down."""
    commit_ms: Milliseconds = 10_000
    """Waiting for a write of the ledger; beyond it its outcome is unknown. It is never cancelled."""
    live_ms: Milliseconds = 200
    """Reading recent events and catalogue changes."""
    retrieval_ms: Milliseconds = 400
    """Retrieval; fall-back: popular items."""
    features_ms: Milliseconds = 200
    """Features; fall-back: declared defaults."""
    ranking_ms: Milliseconds = 500
    """Ranking including its features; fall-back: retrieval order."""
    journal_ms: Milliseconds = 250
    """Journal append; recommendations then answer `degraded: ["log"]`, send decisions 503."""
    stuck_s: float = Field(30, ge=1, le=3_600)
    """A thread that works on one thing for longer is stuck: its replica fails its health check and is replaced. Longer than
    `commit_ms`."""


class BatchingSettings(Group):
    """Micro-batching in the ingress: no added wait when idle, several small batches in flight under load."""

    max_requests: int = Field(32, ge=1, le=1024)
    """Requests in one micro-batch at most."""
    in_flight_chain: int | None = Field(None, ge=1, le=256)
    """Micro-batches under way at once when stages are deployments of their own; null: as many as the ingress's machine has
    cores, at least two. More of them would only be smaller, and a micro-batch costs something by itself."""
    in_flight_fused: int | None = Field(None, ge=1, le=256)
    """Micro-batches under way at once when stages run in the ingress process; null: two, or one where there are at least as
    many ingresses (`deployments.ingress.min_replicas`) as its machine has cores."""
    max_queued: int = Field(512, ge=1, le=100_000)
    """Requests of one surface waiting for a micro-batch; the next one is refused with 503 and Retry-After."""
    refusals_per_s: float = Field(200, gt=0, le=1_000_000)
    """Calls a second that an ingress refuses at once. Beyond that refusals leave at this pace, none later than a tenth
    of a request's budget, so that callers who ask again at once do not take the processor from those who are served."""
    wait_share: float = Field(0.4, gt=0, le=1)
    """Share of its budget that a request may wait for a micro-batch; one that would wait longer, as fast as requests are
    answered now, is refused at once."""
    run_share: float = Field(0.25, gt=0, le=1)
    """Share of a request's budget within which micro-batches should be done. Where they take longer, fewer requests are
    under way at once, so that those that are do not all come too late."""


class QualitySettings(Group):
    """Overload narrows what is ranked before anything is refused: the width of a list's candidates follows a factor that
    rises by steps while answers are in time and falls by a share while they are late, down to the policy's `min_width`."""

    enabled: bool = True
    """Whether width follows the load; otherwise it is always the policy's."""
    target_share: float = Field(0.25, gt=0, le=1)
    """Share of a request's budget after which its answer counts as late. The wait for a micro-batch counts."""
    late_share: float = Field(0.1, gt=0, lt=1)
    """An interval in which more than this share of the requests were late, or any was refused, lowers the factor."""
    interval_ms: Milliseconds = 250
    """Time between two changes of the factor."""
    increase: float = Field(0.05, gt=0, le=1)
    """Added to the factor after an interval in time."""
    decrease: float = Field(0.7, gt=0, lt=1)
    """Times the factor after an interval that was late."""


class LimitSettings(Group):
    """Bounds on what a caller may send."""

    body_bytes: int = Field(512 * 1024, ge=1024, le=64 * 1024 * 1024)
    """Largest body of a call on one user."""
    batch_body_bytes: int = Field(64 * 1024 * 1024, ge=1024, le=1024 * 1024 * 1024)
    """Largest body of `decide-batch`."""
    event_body_bytes: int = Field(8 * 1024 * 1024, ge=1024, le=1024 * 1024 * 1024)
    """Largest body of `events`."""
    body_s: float = Field(30, gt=0, le=3600)
    """Time for a whole body to arrive; then 408."""
    recents_kept: int = Field(100, ge=1, le=10_000)
    """Recent items kept per user; older ones are forgotten."""
    live_users: int = Field(1_000_000, ge=1, le=1_000_000_000)
    """Users whose recent items are held in memory; least recently active ones leave first."""
    event_ids_kept: int = Field(5_000_000, ge=1000, le=10_000_000_000)
    """Event ids remembered for de-duplication."""
    decide_batch_rows_per_chunk: int = Field(2_000, ge=1, le=100_000)
    """Rows of `decide-batch` that run through the chain together."""


class SecuritySettings(Group):
    """Who may call."""

    keys_file: Path | None = None
    """JSON file of hashed API keys with scopes (`hindcast keys new`); read again when it changes. None: no key needed
    (loopback only)."""


class ServingSettings(Group):
    """What is asked of the stages."""

    page_widgets: int = Field(6, ge=1, le=50)
    """Widgets on a gateway page when the request does not say."""
    page_items: int = Field(8, ge=1, le=100)
    """Items in a widget of a gateway page when the request does not say."""
