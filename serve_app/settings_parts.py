"""Settings of the parts behind the ingress: deployments, journal, ledger, and work nobody waits for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, HttpUrl, SecretStr, field_validator, model_validator

from serve_app.errors import InvalidInput
from serve_app.settings_base import Group, Milliseconds

__all__ = [
    "DeferralSettings",
    "DeploymentSettings",
    "DeploymentsSettings",
    "JournalSettings",
    "LedgerSettings",
    "OutboxSettings",
    "SegmentSettings",
]


class DeploymentSettings(Group):
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


class DeploymentsSettings(Group):
    """The deployments of the graph."""

    ingress: DeploymentSettings = DeploymentSettings(max_ongoing=4_000, max_queued=4_000, target_ongoing=24, threads=8)
    """HTTP, micro-batching, the journal; with `topology: fused` the stages too. `max_ongoing` is more than micro-batchers
    hold and run, of five surfaces (`batching.max_queued`): whoever is refused is refused by them, in our words."""
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


class JournalSettings(Group):
    """The durable journal that every answer waits for."""

    durability: Literal["process", "disk"] = "process"
    """`process` survives `kill -9` of the writer; `disk` also fsyncs (group commit) and survives power loss."""
    segment_bytes: int = Field(16 * 1024 * 1024, ge=64 * 1024, le=4 * 1024 * 1024 * 1024)
    """Size at which a journal file is closed and the next one begun."""
    upkeep_s: float = Field(300, ge=0, le=86_400)
    """Pause between runs that compact the journal, copy decision records into the log, forget erased users and take the
    daily snapshot; 0: never (then run `hindcast log compact`). Erased users are off the disk after two runs."""
    log_rate: float = Field(1.0, ge=0, le=1)
    """Share of recommendation requests whose whole candidate set is logged (decisions always log all)."""


class LedgerSettings(Group):
    """Where per-user send history and state live."""

    backend: Literal["sqlite", "redis"] = "sqlite"
    """`sqlite`: one file owned by one process of this host. `redis`: a server shared by several hosts."""
    redis_url: str | None = Field(None, max_length=500)
    """Address of Redis, needed with `backend: redis`."""
    durability: Literal["process", "disk"] = "disk"
    """`disk`: a grant survives power loss. `process`: it survives the death of the writer only."""
    max_attempts: int = Field(32, ge=1, le=1000)
    """Times a decision is made anew after losing its compare-and-set, before it answers 503."""


class DeferralSettings(Group):
    """How deferred decisions come back when their time has come."""

    enabled: bool = True
    """Whether the worker decides them; otherwise they wait in the ledger."""
    batch: int = Field(500, ge=1, le=10_000)
    """Deferrals decided together."""
    per_s: float = Field(2_000, gt=0, le=1_000_000)
    """Deferrals decided in a second at most, so that a night's end leaves room for requests."""
    poll_ms: Milliseconds = 1_000
    """Time between two looks at the ledger when nothing was due."""


class OutboxSettings(Group):
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

    @field_validator("secret")
    @classmethod
    def _one_line(cls, given: SecretStr | None) -> SecretStr | None:
        """Mounted secrets often end with a new line, which no header can carry."""
        return None if given is None else SecretStr(_header_value(given.get_secret_value()))

    def read_secret(self) -> str:
        """The secret, from its file where it has one; "" without. InvalidInput for a file that cannot be read or that holds
        none."""
        if self.secret is not None:
            return self.secret.get_secret_value()
        if self.secret_file is None:
            return ""
        try:
            return _header_value(self.secret_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"cannot be read: {error}", field="outbox.secret_file", hint="name a readable file") from None
        except ValueError as error:
            raise InvalidInput(str(error), field="outbox.secret_file", hint="put the secret alone into the file") from None


def _header_value(text: str) -> str:
    value = text.strip()
    if not value or not value.isascii() or not value.isprintable():
        raise ValueError("must be one line of printable ASCII")
    return value


class SegmentSettings(Group):
    """Membership of the policy's segments."""

    refresh_minutes: float = Field(60, ge=0, le=7 * 24 * 60)
    """Age at which the worker has membership computed anew, in a process of its own; 0: never by itself."""
