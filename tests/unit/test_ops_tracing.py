"""Spans: none unless asked for, one for each timed block, a batch linked to all its calls, sent where the setting says."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve_app.errors import InvalidInput
from serve_app.ingress.batcher import MicroBatcher
from serve_app.running.switches import node_switches
from serve_app.running.tracing import span_processors, tracing_switches
from serve_app.serving import spans
from serve_app.serving.meters import timed
from serve_app.serving.stages import in_pool
from serve_app.settings import load_settings


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracers", [provider.get_tracer("test")])
    yield exporter
    provider.shutdown()


def test_off_by_default_and_one_setting_switches_it_on(tmp_path: Path) -> None:
    assert not spans.active()
    with timed("hindcast_stage_ms", stage="ranking"), spans.span("x"):
        assert spans.here() is None
        assert spans.trace_id() == ""
    assert tracing_switches(load_settings()) == {}
    switches = node_switches(load_settings(tracing={"to": "http://collector:4318", "share": 0.5}), tmp_path)
    assert switches["RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"] == "serve_app.running.tracing:span_processors"
    assert switches["RAY_SERVE_TRACING_SAMPLING_RATIO"] == "0.5"
    assert switches["HINDCAST_TRACING__TO"] == "http://collector:4318"


@pytest.mark.parametrize("to", ["collector:4318", "ftp://x", ""])
def test_a_place_that_is_none_is_refused(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"tracing\.to"):
        load_settings(tracing={"to": to})
    monkeypatch.setenv("HINDCAST_TRACING__TO", to)
    with pytest.raises(InvalidInput, match="no place for spans"):
        span_processors()


async def three_calls(batcher: MicroBatcher[int, int]) -> None:
    """Each in a span of its own: call 0, call 1, call 2."""

    async def call(number: int) -> None:
        with spans.span(f"call {number}"):
            await batcher.submit(number, key=0, leave_by_s=asyncio.get_running_loop().time() + 30)

    await asyncio.gather(*(call(number) for number in range(3)))


async def test_timed_blocks_are_spans_and_a_batch_links_to_all_its_calls(made: InMemorySpanExporter) -> None:
    async def run(batch: Sequence[int]) -> list[int]:
        def work() -> None:
            with timed("hindcast_stage_ms", stage="ranking"):
                pass

        await in_pool(None, work)  # type: ignore[arg-type]
        return list(batch)

    batcher: MicroBatcher[int, int] = MicroBatcher(run, max_requests=8, lanes=1, max_queued=10)

    await three_calls(batcher)
    found = {one.name: one for one in made.get_finished_spans()}
    batch, ranking = found["batch"], found["ranking"]
    assert batch.parent is not None
    assert batch.parent.span_id == found["call 0"].context.span_id
    assert {link.context.span_id for link in batch.links} == {found[f"call {n}"].context.span_id for n in (1, 2)}
    assert ranking.parent is not None
    assert ranking.parent.span_id == batch.context.span_id
    assert ranking.context.trace_id == found["call 0"].context.trace_id


async def test_batches_of_a_queue_belong_to_their_own_first_call(made: InMemorySpanExporter) -> None:
    async def run(batch: Sequence[int]) -> list[int]:
        await asyncio.sleep(0)
        return list(batch)

    batcher: MicroBatcher[int, int] = MicroBatcher(run, max_requests=1, lanes=1, max_queued=10)

    await three_calls(batcher)
    finished = made.get_finished_spans()
    calls = {one.context.span_id for one in finished if one.name.startswith("call")}
    assert {one.parent and one.parent.span_id for one in finished if one.name == "batch"} == calls


def export(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One span through what Serve calls in each process."""
    monkeypatch.setenv("HINDCAST_TRACING__TO", to)
    provider = TracerProvider()
    for processor in span_processors():
        provider.add_span_processor(processor)
    with provider.get_tracer("t").start_as_current_span("ranking"):
        pass
    provider.shutdown()


def test_spans_go_to_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(f"file://{tmp_path}/spans", monkeypatch)
    (file,) = (tmp_path / "spans").glob(f"*-{os.getpid()}.jsonl")
    (line,) = file.read_text().splitlines()
    assert json.loads(line)["name"] == "ranking"


def test_spans_go_to_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `tracing` is not installed")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    taken: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        export(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    finally:
        server.shutdown()
        server.server_close()
    ((path, body),) = taken
    assert path == "/v1/traces"
    request = ExportTraceServiceRequest.FromString(body)
    assert request.resource_spans[0].scope_spans[0].spans[0].name == "ranking"


def test_serve_takes_the_exporter() -> None:
    from ray.serve._private.tracing_utils import _validate_tracing_exporter

    _validate_tracing_exporter(span_processors)
