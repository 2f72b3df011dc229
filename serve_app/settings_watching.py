"""Settings of what the server says of itself, and of faults that tests plant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from serve_app.settings_base import Group

__all__ = ["EXPENDABLE", "LogSettings", "TestingSettings", "TracingSettings"]

EXPENDABLE = "EXPENDABLE"
"""A file of this name in a data folder says that the folder was made for a test and nobody's messages depend on it."""


class LogSettings(Group):
    """Lines about the server's own work (not the log of decisions), on standard error of each process."""

    format: Literal["json", "text"] = "json"
    """`json`: one object a line, with the ids of the calls and requests it is about. `text`: for people."""
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lines below it are left out."""
    calls: Literal["none", "failed", "all"] = "failed"
    """Which HTTP calls get a line of their own: none, those answered 429 or 5xx, or all (about 20 us each).
    Serve's own access log is off; `logging_config: {enable_access_log: true, log_level: INFO}` of a deployment in a Serve
    file turns it on."""


class TracingSettings(Group):
    """OpenTelemetry spans of a request's way through the processes. Off by default."""

    to: Annotated[str, Field(pattern=r"^(https?|file)://.+", max_length=500)] | None = None
    """Where spans go: `http://collector:4318` (OTLP; needs the extra `tracing`), or `file:///a/folder` (JSON lines). None:
    no spans."""
    share: float = Field(0.01, ge=0, le=1)
    """Share of calls that are traced, where the caller's own `traceparent` does not say."""


class TestingSettings(Group):
    """Faults a test plants. Refused unless the data folder holds a file named EXPENDABLE and the server is on loopback."""

    __test__ = False  # not a class of tests

    clock_skew_ms: tuple[Annotated[int, Field(ge=-60_000, le=60_000)], ...] = ()
    """How far the clocks of replicas run ahead: replica number k of each deployment takes entry k modulo their number."""
    faults: Path | None = None
    """File of faults, which each process reads again when it changes: see serve_app/serving/faults.py."""
    capacity_per_s: float | None = Field(None, gt=0, le=1e6)
    """Lists and single decisions each ingress makes in a second at most, so that a small machine can offer it many times
    what it can do. Those beyond wait, as they would for a processor."""
