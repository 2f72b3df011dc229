"""Every setting of the server: typed, bounded, frozen, its unit in its name.

Read from the environment (``HINDCAST_HTTP__PORT=8100``: two underscores step into a group) and from the arguments of
`hindcast up`. Unknown names are errors. `Settings.checked()` refuses combinations that would be unsafe.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from serve_app.errors import InvalidInput

__all__ = [
    "BatchingSettings",
    "BudgetSettings",
    "DeferralSettings",
    "DeploymentSettings",
    "DeploymentsSettings",
    "HttpSettings",
    "JournalSettings",
    "LedgerSettings",
    "LimitSettings",
    "LogSettings",
    "OutboxSettings",
    "SecuritySettings",
    "SegmentSettings",
    "ServingSettings",
    "Settings",
    "TestingSettings",
    "TracingSettings",
    "is_loopback",
    "load_settings",
]

Milliseconds = Annotated[float, Field(gt=0, le=60_000)]
Port = Annotated[int, Field(ge=1, le=65_535)]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HttpSettings(_Group):
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
    """Time for a request's line and headers to arrive at HAProxy; then 408."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach `host`."""
        return is_loopback(self.host)


class BudgetSettings(_Group):
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


class BatchingSettings(_Group):
    """Micro-batching in the ingress: no added wait when idle, several small batches in flight under load."""

    max_requests: int = Field(16, ge=1, le=1024)
    """Requests in one micro-batch at most."""
    in_flight_chain: int = Field(8, ge=1, le=256)
    """Micro-batches under way at once when stages are deployments of their own."""
    in_flight_fused: int = Field(2, ge=1, le=256)
    """Micro-batches under way at once when stages run in the ingress process."""
    max_queued: int = Field(512, ge=1, le=100_000)
    """Requests waiting for a micro-batch; the next one is refused with 503 and Retry-After."""


class LimitSettings(_Group):
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


class DeploymentSettings(_Group):
    """One Ray Serve deployment."""

    min_replicas: int = Field(1, ge=1, le=10_000)
    """Replicas at least."""
    max_replicas: int = Field(1, ge=1, le=10_000)
    """Replicas at most; more than `min_replicas` switches autoscaling on."""
    target_ongoing: float = Field(4, gt=0, le=10_000)
    """Ongoing calls per replica that autoscaling aims for."""
    upscale_delay_s: float = Field(5, ge=0, le=3600)
    """Time above target before replicas are added."""
    downscale_delay_s: float = Field(60, ge=0, le=86_400)
    """Time below target before replicas are removed."""
    look_back_s: float = Field(10, gt=0, le=3600)
    """Span over which ongoing calls are averaged for autoscaling."""
    drain_s: float = Field(10, ge=0, le=600)
    """Time a replica that is to go may take for the calls it works on (an ingress: at least its draining period)."""
    max_ongoing: int = Field(64, ge=1, le=100_000)
    """Calls a replica works on at once."""
    max_queued: int = Field(256, ge=1, le=100_000)
    """Calls each caller queues for this deployment; more are refused."""
    cpus: float = Field(0.1, ge=0, le=1024)
    """Logical CPUs a replica reserves in Ray's scheduler (it may use more)."""
    threads: int = Field(4, ge=1, le=256)
    """Threads for blocking work in one replica."""


class DeploymentsSettings(_Group):
    """The deployments of the graph."""

    ingress: DeploymentSettings = DeploymentSettings(max_ongoing=2_000, max_queued=2_000, target_ongoing=64, threads=8)
    """HTTP, micro-batching, the journal; with `topology: fused` the stages too."""
    retrieval: DeploymentSettings = DeploymentSettings()
    """Candidate sources and filters."""
    features: DeploymentSettings = DeploymentSettings()
    """Feature tables."""
    ranking: DeploymentSettings = DeploymentSettings()
    """Heads, value, selector."""
    decision: DeploymentSettings = DeploymentSettings()
    """Notification gates and choice."""
    ledger: DeploymentSettings = DeploymentSettings(max_ongoing=2_000, max_queued=10_000, threads=4)
    """Owner of the ledger file, the live changes and promotions; always one replica."""
    worker: DeploymentSettings = DeploymentSettings()
    """Deferrals decided anew, queued messages handed over. One replica is enough; several do no harm."""

    @model_validator(mode="before")
    @classmethod
    def _over_own_defaults(cls, given: Any) -> Any:
        """A deployment of which some numbers are given keeps the others as they stand above, not those of any deployment."""
        if not isinstance(given, dict):
            return given
        out = dict(given)
        for name, value in given.items():
            if isinstance(value, dict) and name in cls.model_fields:
                out[name] = {**cls.model_fields[name].default.model_dump(exclude_unset=True), **value}
        return out


class JournalSettings(_Group):
    """The durable journal that every answer waits for."""

    durability: Literal["process", "disk"] = "process"
    """`process` survives `kill -9` of the writer; `disk` also fsyncs (group commit) and survives power loss."""
    segment_bytes: int = Field(64 * 1024 * 1024, ge=64 * 1024, le=4 * 1024 * 1024 * 1024)
    """Size at which a journal file is closed and the next one begun."""
    upkeep_s: float = Field(300, ge=0, le=86_400)
    """Pause between runs that compact the journal, copy decision records into the log, forget erased users and take the
    daily snapshot; 0: never (then run `hindcast log compact`). Erased users are off the disk after two runs."""
    log_rate: float = Field(1.0, ge=0, le=1)
    """Share of recommendation requests whose whole candidate set is logged (decisions always log all)."""


class LedgerSettings(_Group):
    """Where per-user send history and state live."""

    backend: Literal["sqlite", "redis"] = "sqlite"
    """`sqlite`: one file owned by one process of this host. `redis`: a server shared by several hosts."""
    redis_url: str | None = Field(None, max_length=500)
    """Address of Redis, needed with `backend: redis`."""
    durability: Literal["process", "disk"] = "disk"
    """`disk`: a grant survives power loss. `process`: it survives the death of the writer only."""
    max_attempts: int = Field(32, ge=1, le=1000)
    """Times a decision is made anew after losing its compare-and-set, before it answers 503."""


class DeferralSettings(_Group):
    """How deferred decisions come back when their time has come."""

    enabled: bool = True
    """Whether the worker decides them; otherwise they wait in the ledger."""
    batch: int = Field(500, ge=1, le=10_000)
    """Deferrals decided together."""
    per_s: float = Field(2_000, gt=0, le=1_000_000)
    """Deferrals decided in a second at most, so that a night's end leaves room for requests."""
    poll_ms: Milliseconds = 1_000
    """Time between two looks at the ledger when nothing was due."""


class OutboxSettings(_Group):
    """How messages of campaigns with `delivery: outbox`, and of deferrals, are handed over."""

    webhook_url: HttpUrl | None = None
    """Where the worker POSTs each message. None: nobody sends by itself; own senders claim with POST /v1/outbox/claim."""
    webhook_timeout_ms: Milliseconds = 5_000
    """Time for one message."""
    concurrency: int = Field(32, ge=1, le=1_000)
    """Messages under way at once."""
    poll_ms: Milliseconds = 500
    """Time between two looks at the ledger when the outbox was empty."""
    secret_header: str = Field("Authorization", min_length=1, max_length=100, pattern=r"^[A-Za-z0-9-]+$")
    """Header that carries the secret."""
    secret: SecretStr | None = None
    """What the receiver knows the worker by, sent as it stands (for instance `Bearer ...`)."""
    secret_file: Path | None = None
    """File that holds the secret instead."""
    max_attempts: int = Field(8, ge=1, le=100)
    """Attempts before a message is dead: kept, counted, shown at GET /v1/outbox/dead."""
    backoff_s: float = Field(5, gt=0, le=3_600)
    """Rest after the first failure; doubled after each further one."""
    backoff_most_s: float = Field(3_600, gt=0, le=86_400)
    """Longest rest."""
    max_age_h: float = Field(24, gt=0, le=24 * 31)
    """A message is not handed over later than this after its grant, even where nothing else says when it expires."""


class SecuritySettings(_Group):
    """Who may call."""

    keys_file: Path | None = None
    """JSON file of hashed API keys with scopes (`hindcast keys new`); read again when it changes. None: no key needed
    (loopback only)."""


class LogSettings(_Group):
    """Lines about the server's own work (not the log of decisions), on standard error of each process."""

    format: Literal["json", "text"] = "json"
    """`json`: one object a line, with the ids of the calls and requests it is about. `text`: for people."""
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lines below it are left out."""
    calls: Literal["none", "failed", "all"] = "failed"
    """Which HTTP calls get a line of their own: none, those answered 429 or 5xx, or all (about 20 us each)."""


class TracingSettings(_Group):
    """OpenTelemetry spans of a request's way through the processes. Off by default."""

    to: Annotated[str, Field(pattern=r"^(https?|file)://.+", max_length=500)] | None = None
    """Where spans go: `http://collector:4318` (OTLP; needs the extra `tracing`), or `file:///a/folder` (JSON lines). None:
    no spans."""
    share: float = Field(0.01, ge=0, le=1)
    """Share of calls that are traced, where the caller's own `traceparent` does not say."""


class SegmentSettings(_Group):
    """Membership of the policy's segments."""

    refresh_minutes: float = Field(60, ge=0, le=7 * 24 * 60)
    """Age at which the worker has membership computed anew, in a process of its own; 0: never by itself."""


class ServingSettings(_Group):
    """What is asked of the stages."""

    page_widgets: int = Field(6, ge=1, le=50)
    """Widgets on a gateway page when the request does not say."""
    page_items: int = Field(8, ge=1, le=100)
    """Items in a widget of a gateway page when the request does not say."""


EXPENDABLE = "EXPENDABLE"
"""A file of this name in a data folder says that the folder was made for a test and nobody's messages depend on it."""


class TestingSettings(_Group):
    """Faults a test plants. Refused unless the data folder holds a file named EXPENDABLE and the server is on loopback."""

    __test__ = False  # not a class of tests

    clock_skew_ms: tuple[Annotated[int, Field(ge=-60_000, le=60_000)], ...] = ()
    """How far the clocks of replicas run ahead: replica number k of each deployment takes entry k modulo their number."""


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        env_prefix="HINDCAST_", env_nested_delimiter="__", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    data: Path = Path("data")
    """The data folder: catalogue, log, releases, policies, ledger (see ARCHITECTURE.md)."""
    topology: Literal["chain", "fused"] = "chain"
    """`chain`: each stage its own autoscaled deployment. `fused`: the same classes inside the ingress replica."""
    http: HttpSettings = HttpSettings()
    budgets: BudgetSettings = BudgetSettings()
    batching: BatchingSettings = BatchingSettings()
    limits: LimitSettings = LimitSettings()
    deployments: DeploymentsSettings = DeploymentsSettings()
    journal: JournalSettings = JournalSettings()
    ledger: LedgerSettings = LedgerSettings()
    deferrals: DeferralSettings = DeferralSettings()
    outbox: OutboxSettings = OutboxSettings()
    security: SecuritySettings = SecuritySettings()
    logs: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
    segments: SegmentSettings = SegmentSettings()
    serving: ServingSettings = ServingSettings()
    testing: TestingSettings = TestingSettings()

    def checked(self) -> Self:
        """Raise InvalidInput where settings contradict each other or would open the server to strangers."""
        if not self.http.loopback and self.security.keys_file is None:
            raise InvalidInput(
                f"binding {self.http.host} without API keys would let anyone on the network call the server",
                field="http.host",
                hint="bind 127.0.0.1, or set security.keys_file",
            )
        if self.ledger.backend == "redis" and not self.ledger.redis_url:
            raise InvalidInput("the redis ledger needs an address", field="ledger.redis_url", hint="redis://host:6379/0")
        for name in DeploymentsSettings.model_fields:
            one: DeploymentSettings = getattr(self.deployments, name)
            if one.min_replicas > one.max_replicas:
                raise InvalidInput(
                    "min_replicas is larger than max_replicas", field=f"deployments.{name}", hint="raise max_replicas"
                )
        if self.deployments.ledger.max_replicas != 1:
            raise InvalidInput("one process owns the ledger", field="deployments.ledger.max_replicas", hint="set it to 1")
        self._check_outbox()
        self._check_testing()
        return self

    def _check_outbox(self) -> None:
        own = self.outbox
        if own.secret is not None and own.secret_file is not None:
            raise InvalidInput("give either secret or secret_file", field="outbox.secret", hint="remove one of them")
        if own.webhook_url is None:
            if own.secret is not None or own.secret_file is not None:
                raise InvalidInput("a secret without an address", field="outbox.webhook_url", hint="say where to send")
        elif own.webhook_url.scheme == "http" and not HttpSettings(host=own.webhook_url.host or "").loopback:
            raise InvalidInput(
                "messages and the secret would cross the network in the clear", field="outbox.webhook_url", hint="use https"
            )

    def _check_testing(self) -> None:
        if not self.testing.clock_skew_ms:
            return
        if not self.http.loopback or not (self.data / EXPENDABLE).is_file():
            raise InvalidInput(
                "clocks are skewed for tests only: on loopback, and on a data folder that is marked as expendable",
                field="testing.clock_skew_ms",
                hint="unset HINDCAST_TESTING__CLOCK_SKEW_MS",
            )


_OWN_VARIABLES = {"HINDCAST_SHARED_DATA", "HINDCAST_DEMO_RELEASE"}  # of the tests, not of the server


def _unknown_variables() -> list[str]:
    known = {f"HINDCAST_{name.upper()}" for name in Settings.model_fields} | _OWN_VARIABLES
    return sorted(name for name in os.environ if name.startswith("HINDCAST_") and name.split("__")[0].upper() not in known)


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with `overrides` (nested dicts) on top. InvalidInput names the setting and the fix."""
    if unknown := _unknown_variables():
        raise InvalidInput("no such setting", field=unknown[0], hint="see serve_app/settings.py for the names")
    try:
        return Settings(**overrides).checked()
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(
            first["msg"], field=".".join(str(part) for part in first["loc"]), hint="see serve_app/settings.py for its bounds"
        ) from error
