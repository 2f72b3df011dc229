"""`hindcast load` against real servers: right ones, one that lies, one that pauses."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from loadtests.scenarios.audience import audience_of_folder
from tests.cluster.server_support import data_copy, generous, in_process

LAX = "format: 1\ngenerator: {lateness_p99_ms: 100000, unsent: 0}\nall: {error_rate: 0.0}\n"


@pytest.fixture(scope="module")
def data(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the world's users in its ledger."""
    folder = tmp_path_factory.mktemp("load") / "data"
    folder.mkdir()
    data_copy(demo_release, folder)
    (folder / "log").symlink_to(demo_release / "log")
    subprocess.run([sys.executable, "-m", "hindcast", "ledger", "seed", "--data", str(folder)], check=True, timeout=120)
    (folder / "log").unlink()
    return folder


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[httpx.Client]:
    with in_process(generous(data=data)) as client:
        yield client


def load(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hindcast", "load", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture
def lax(tmp_path: Path) -> Path:
    path = tmp_path / "lax.yaml"
    path.write_text(LAX)
    return path


def report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


@pytest.mark.parametrize(
    "how",
    [
        ("--rate", 25),
        pytest.param(("--users", 8, "--think", "0.2s"), marks=pytest.mark.long),
        pytest.param(("--rate", 25, "--processes", 2), marks=pytest.mark.long),
    ],
)
def test_a_right_server_passes_with_every_answer_verified(server, data, lax, tmp_path, how) -> None:
    done = load("baseline", *how, "--duration", "5s", "--host", str(server.base_url), "--data", data, "--slo", lax,
                "--out", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = report(tmp_path)
    whole = told["rows"][0]
    assert whole["requests"] > 40
    assert told["violations"]["total"] == 0
    assert told["checks"]["schema"] == whole["requests"]
    assert told["checks"]["sends counted against caps"] > 0
    assert told["generator"]["workers_missing"] == 0


def test_a_log_is_replayed_as_a_trace(server, data, demo_release, lax, tmp_path) -> None:
    trace = tmp_path / "trace.jsonl.gz"
    made = load("trace", "--data", demo_release, "--out", trace, "--most", 300)
    assert made.returncode == 0, made.stderr
    assert "/v1/notifications/decide" in made.stdout
    assert "/v1/events" in made.stdout
    where = ("--host", str(server.base_url), "--data", data)
    done = load("replay", "--trace", trace, "--speed", 5000, *where, "--slo", lax, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = report(tmp_path)
    assert told["rows"][0]["requests"] >= 300  # and questions about sends that may have been too many
    assert told["violations"]["total"] == 0
    assert told["checks"]["sends counted against caps"] > 0


def test_nobody_there_is_one_clear_line(tmp_path) -> None:
    done = load("baseline", "--rate", 5, "--host", "http://127.0.0.1:9", "--out", tmp_path, "--data", tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("hindcast: host: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("baseline", "--rate", 5, "--users", 3), "rate"),
        (("baseline", "--duration", "5x"), "duration"),
        (("replay", "--trace", "/nonexistent"), "no such file"),
        (("baseline", "--slo", "/nonexistent"), "no such file"),
    ],
)
def test_what_cannot_run_is_one_clear_line(server, data, tmp_path, arguments, words) -> None:
    done = load(*arguments, "--host", str(server.base_url), "--data", data, "--out", tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("hindcast: ")
    assert words in line


class _Fake(BaseHTTPRequestHandler):
    """Answers like the server whose OpenAPI it has; subclasses say to what."""

    protocol_version = "HTTP/1.1"
    openapi = b""

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.say(200, self.openapi if self.path == "/openapi.json" else b'{"release": "r", "policy": "p"}')

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def answer(self, body: dict) -> None:
        raise NotImplementedError

    def widgets(self) -> None:
        whole = {"request_id": "a", "release": "r", "policy": "p", "decided_at": "2026-01-01T00:00:00Z", "cold_start": False}
        self.say(200, json.dumps({**whole, "degraded": [], "widgets": []}).encode())

    def say(self, status: int, raw: bytes, media: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@contextmanager
def faking(kind: type[_Fake], openapi: bytes) -> Iterator[str]:
    faker = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (kind,), {"openapi": openapi}))
    thread = threading.Thread(target=faker.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{faker.server_port}"
    finally:
        faker.shutdown()
        faker.server_close()
        thread.join(10)


def trace_of(path: Path, rate: int, seconds: int, call: str, body: dict) -> Path:
    from loadtests.scenarios.trace import write_trace

    count = rate * seconds
    requests = ({"at": n / rate, "path": call, "user": "u", "body": body} for n in range(count))
    write_trace(path, requests, {"requests": count, "seconds": seconds})
    return path


class _Lies(_Fake):
    """Shows what was excluded, refuses in plain text."""

    refusals = 0

    def answer(self, body: dict) -> None:
        if body["slots"] == 1:
            return self.say(503, b"too busy", "text/plain")
        place = {"id": "banned", "slot": 0, "decision_id": "d"}
        whole = {"request_id": "a", "release": "r", "policy": "p", "decided_at": "x", "cold_start": False, "degraded": []}
        return self.say(200, json.dumps({**whole, "items": [place], "explain": None}).encode())


def test_wrong_answers_and_bare_refusals_fail_the_run_with_their_request(server, lax, tmp_path) -> None:
    with faking(_Lies, server.get("/openapi.json").content) as url:
        for slots, words in ((5, "excluded"), (1, "without JSON")):
            body = {"item": "i", "slots": slots, "exclude": ["banned"]}
            trace = trace_of(tmp_path / "t.gz", 10, 2, "/v1/recommendations/related", body)
            done = load("replay", "--trace", trace, "--host", url, "--slo", lax, "--out", tmp_path)
            assert done.returncode == 10, done.stdout + done.stderr
            told = report(tmp_path)
            assert told["violations"]["total"] >= 20
            assert words in told["violations"]["kept"][0]["what"]
            assert '"banned"' in told["violations"]["kept"][0]["request"]


class _Pauses(_Fake):
    """One thing at a time; the fortieth takes a second."""

    served = 0
    lock = threading.Lock()

    def answer(self, body: dict) -> None:
        del body
        with _Pauses.lock:
            _Pauses.served += 1
            if _Pauses.served == 40:
                time.sleep(1)  # the pause is what is under test
        self.widgets()


@pytest.mark.long
def test_a_pause_is_felt_by_every_request_that_was_due_in_it(server, lax, tmp_path) -> None:
    """A generator that waits for each answer would have met one slow request of two hundred: half a percent."""
    with faking(_Pauses, server.get("/openapi.json").content) as url:
        trace = trace_of(tmp_path / "t.gz", 40, 5, "/v1/widgets/rank", {"slots": 5})
        done = load("replay", "--trace", trace, "--host", url, "--slo", lax, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    row = report(tmp_path)["rows"][0]
    assert row["requests"] == 200
    assert row["p90_ms"] > 300  # a fifth of all requests were due while it paused
    assert row["max_ms"] >= 1000


def test_the_audience_knows_the_policys_caps(server, data) -> None:
    facts = server.get("/readyz").json()
    made = audience_of_folder(data, release=facts["release"], policy=facts["policy"])
    assert made.rules is not None
    day = next(one for one in made.rules.caps if one.id == "global-day")
    assert (day.limit, day.limits, day.rolling_s) == (3, {0: 3, 1: 1, 2: 5}, 86_400)
    assert "transactional" not in day.classes
