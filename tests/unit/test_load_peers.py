"""The benchmark beside others: its client counts what came back, its table says what was measured."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hdrh.histogram import HdrHistogram

from loadtests.bench_width import widened
from loadtests.hammer import hammer
from loadtests.peers.ann import scored
from loadtests.peers.report import summed, write_peers


class Server(BaseHTTPRequestHandler):
    """Every fourth request is refused; bodies that say so get chunks."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body.get("break_off"):
            self.close_connection = True
            return
        self.send_response(body["status"])
        if body.get("close"):
            self.send_header("Connection", "close")
        if body.get("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nhello\r\n0\r\n\r\n")
        else:
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.mark.parametrize("body", [{"status": 200}, {"status": 200, "chunked": True}])
def test_the_client_counts_answers_and_times_them(port, body) -> None:
    found = asyncio.run(hammer(port, "/x", [body], 3, 0.3))
    assert found["good"] > 3
    assert found["failed"] == 0
    latency = HdrHistogram.decode(base64.b64decode(found["latency"]))
    assert latency.get_total_count() == found["good"]


def test_the_client_connects_anew_where_a_server_says_that_it_closes(port) -> None:
    found = asyncio.run(hammer(port, "/x", [{"status": 200, "close": True}], 2, 0.3))
    assert found["good"] > 2
    assert found["failed"] == 0


def test_a_request_that_a_server_breaks_off_has_failed_and_the_client_goes_on(port) -> None:
    found = asyncio.run(hammer(port, "/x", [{"break_off": True}, {"status": 200}], 1, 0.3))
    assert found["failed"] > 1
    assert found["good"] > 1


def test_the_client_tells_refusals_from_answers(port) -> None:
    found = asyncio.run(hammer(port, "/x", [{"status": 503}], 2, 0.2))
    assert found["good"] == 0
    assert found["failed"] > 2


def run(name: str, connections: int, micros: int, good: int) -> dict:
    latency = HdrHistogram(1, 600_000_000, 3)
    for _ in range(good):
        latency.record_value(micros)
    return {"name": name, "route": "related", "connections": connections, "good": good, "failed": 0, "seconds": 2.0,
            "cpu_seconds": 1.0, "latency": base64.b64encode(latency.encode()).decode()}  # fmt: skip


def test_rounds_add_up() -> None:
    (figures,) = summed([run("chain", 32, 1_000, 100), run("chain", 32, 3_000, 100)]).values()
    assert figures["per_s"] == 50
    assert figures["p50_ms"] == pytest.approx(1, rel=0.01)
    assert figures["p99_ms"] == pytest.approx(3, rel=0.01)


def test_the_table_says_which_targets_are_kept(tmp_path) -> None:
    runs = [run("naive", 32, 60_000, 10), run("chain", 32, 5_000, 120), run("full", 32, 5_000, 130)]
    report = {
        "hardware": {"cpu": "x"},
        "items": 5,
        "rounds": 1,
        "seconds": 2.0,
        "runs": runs,
        "left_out": {"bento": "absent"},
    }
    text = write_peers(report, {"naive": "Naive", "chain": "Ours", "full": "Full"}, tmp_path)
    told = {one["what"]: one["kept"] for one in json.loads((tmp_path / "peers.json").read_text())["targets"]}
    assert told["chain / naive Ray Serve chain, throughput"]
    assert told["chain / naive Ray Serve chain, p99"]
    assert not told["chain / FastAPI with log, auth, validation"]
    assert "**missed**" in text
    assert "Left out: bento: absent" in text
    assert (tmp_path / "peers-related.svg").read_text().startswith("<svg")


def test_recall_is_the_share_of_true_neighbours() -> None:
    import numpy as np

    queries, truth = np.zeros((2, 3), np.float32), np.array([[1, 2], [3, 4]])
    answers = iter([np.array([2, 1]), np.array([3, 9])])
    assert scored(lambda _: next(answers), queries, truth)["recall"] == 0.75


def test_a_policy_can_be_widened_for_the_bench() -> None:
    related = widened(300).surfaces.related
    assert (related.width, related.min_width) == (300, 300)
