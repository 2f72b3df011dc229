"""OpenTelemetry spans of the serving path. Nothing is made, nor imported, until a process installs a tracer.

Every timed block (`serve_app.serving.meters.timed`) is a span; Ray Serve carries the context from process to process. A
micro-batch runs under the first of its calls and links to the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["active", "batch_span", "here", "install_tracer", "span", "trace_id"]

_tracers: list[Any] = []


def install_tracer(tracer: Any) -> None:
    """Make spans with `tracer` (an opentelemetry.trace.Tracer; the one installed last)."""
    _tracers[:] = [tracer]


def active() -> bool:
    """Whether spans are made."""
    return bool(_tracers)


@contextmanager
def span(name: str, **attributes: str | int) -> Iterator[None]:
    """A span round the block, child of the one it stands in."""
    if not _tracers:
        yield
        return
    with _tracers[0].start_as_current_span(name, attributes=attributes):
        yield


def here() -> Any:
    """The context of the span under way, for links; None where there is none."""
    if not _tracers:
        return None
    from opentelemetry import trace

    found = trace.get_current_span().get_span_context()
    return found if found.is_valid else None


@contextmanager
def batch_span(contexts: Sequence[Any]) -> Iterator[None]:
    """A span of work done for several calls, whose contexts `here` gave."""
    if not _tracers:
        yield
        return
    from opentelemetry import trace

    known = [one for one in contexts if one is not None]
    under = trace.set_span_in_context(trace.NonRecordingSpan(known[0])) if known else None
    links = [trace.Link(one) for one in known[1:]]
    with _tracers[0].start_as_current_span("batch", under, links=links, attributes={"requests": len(contexts)}):
        yield


def trace_id() -> str:
    """The trace under way, as 32 hex digits; "" where there is none."""
    found = here()
    return "" if found is None else f"{found.trace_id:032x}"
