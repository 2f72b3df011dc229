"""Where spans go. Ray Serve calls `span_processors` in every process when tracing is switched on (`tracing.to`).

The OpenTelemetry SDK comes with Ray; sending over the network needs its OTLP exporter (extra `tracing`).
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from serve_app.errors import InvalidInput, NotReady
from serve_app.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["check_tracing", "span_processors", "tracing_switches"]

_TO = "HINDCAST_TRACING__TO"
_EXPORTER = "serve_app.running.tracing:span_processors"


def tracing_switches(settings: Settings) -> Mapping[str, str]:
    """What the environment of every node's processes needs; nothing while tracing is off."""
    own = settings.tracing
    if own.to is None:
        return {}
    return {
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": _EXPORTER,
        "RAY_SERVE_TRACING_SAMPLING_RATIO": str(own.share),
        "OTEL_SERVICE_NAME": "hindcast",
        _TO: own.to,
    }


def check_tracing(settings: Settings) -> None:
    """NotReady where spans are to go over the network and the exporter is not installed: not first in a replica's log."""
    to = settings.tracing.to
    if to is None or urlsplit(to).scheme == "file":
        return
    try:
        import opentelemetry.exporter.otlp.proto.http  # noqa: F401
    except ImportError:
        raise NotReady(
            "the OTLP exporter is not installed", field="tracing.to", hint="pip install 'hindcast-platform[tracing]'"
        ) from None


def span_processors() -> list[Any]:
    """Called by Serve in each of its processes."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    to = os.environ.get(_TO, "")
    target = urlsplit(to)
    if target.scheme == "file":
        folder = Path(unquote(target.path))
        folder.mkdir(parents=True, exist_ok=True)
        return [BatchSpanProcessor(_file_exporter(folder / f"{socket.gethostname()}-{os.getpid()}.jsonl"))]
    if target.scheme in ("http", "https"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return [BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{to.rstrip('/')}/v1/traces"))]
    raise InvalidInput(f"{to!r} is no place for spans", field="tracing.to", hint="http://collector:4318 or file:///a/folder")


def _file_exporter(path: Path) -> Any:
    """An exporter that appends one line of JSON a span."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class FileExporter(SpanExporter):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            self._lock = threading.Lock()

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            text = "".join(one.to_json(indent=None) + "\n" for one in spans)
            with self._lock, path.open("a") as stream:
                stream.write(text)
            return SpanExportResult.SUCCESS

    return FileExporter()
