"""Traces: written, read by several workers, refused where they are none."""

from __future__ import annotations

import gzip

import orjson
import pytest

from loadtests.scenarios.errors import LoadError
from loadtests.scenarios.step import Answer
from loadtests.scenarios.trace import read_head, read_trace, routes_of, step_of, write_trace

PATHS = ("/v1/users/{id}", "/v1/recommendations/related", "/v1/events", "/v1/users/me")
ROUTES = routes_of({"paths": {path: {"post": {}} for path in PATHS}})


def lines(count: int) -> list[dict]:
    return [
        {"at": n / 10, "method": "POST", "path": "/v1/recommendations/related", "user": f"u{n % 7}", "body": {"item": "a"}}
        for n in range(count)
    ]


def test_workers_share_a_trace_and_keep_each_users_order(tmp_path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    write_trace(path, lines(50), {"requests": 50, "seconds": 4.9})
    assert read_head(path)["seconds"] == 4.9
    parts = [list(read_trace(path, worker=w, workers=3)) for w in range(3)]
    assert sorted(one["at"] for part in parts for one in part) == [n / 10 for n in range(50)]
    owners = [{one["user"] for one in part} for part in parts]
    assert not owners[0] & owners[1]
    assert not owners[1] & owners[2]
    assert all([one["at"] for one in part] == sorted(one["at"] for one in part) for part in parts)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello", "is no trace"),
        (gzip.compress(b'{"a": 1}\n', mtime=0), "hindcast_trace"),
        (gzip.compress(b'{"hindcast_trace": 1, "seconds": 1}\n{"at": "x", "path": "/a"}\n', mtime=0), "line 2"),
        (gzip.compress(b'{"hindcast_trace": 1, "seconds": 1}\n{"at": 1, "path": "http://elsewhere"}\n', mtime=0), "slash"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, content, words) -> None:
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=words):
        list(read_trace(path))


def test_fixed_paths_come_before_templates() -> None:
    assert step_of({"path": "/v1/users/me", "at": 0}, ROUTES, "run").route == "POST /v1/users/me"
    assert step_of({"path": "/v1/users/a/b", "at": 0}, ROUTES, "run").route == "POST /v1/users/{id}"
    with pytest.raises(LoadError, match="/v2"):
        step_of({"path": "/v2", "at": 0}, ROUTES, "run")


def test_events_happen_now_and_are_this_runs_own() -> None:
    event = {"id": "e1", "time": "2020-01-01T00:00:00Z", "subject": "u"}
    step = step_of({"path": "/v1/events", "at": 0, "body": [event]}, ROUTES, "run-7")
    (sent,) = orjson.loads(step.body or b"")
    assert sent["id"] == "run-7-e1"
    assert sent["time"] > "2026"


def told(accepted: int, duplicates: int, refused: int) -> Answer:
    counts = {"accepted": accepted, "duplicates": duplicates, "refused": refused}
    return Answer(200, {**counts, "errors": [{"field": "event"}] * refused})


def test_replayed_events_are_all_taken() -> None:
    events = [{"id": f"e{n}", "type": "view", "data": {"item": "a"}} for n in range(3)]
    step = step_of({"path": "/v1/events", "at": 0, "body": events}, ROUTES, "run")
    assert step.check is not None
    assert list(step.check(told(2, 1, 0))) == []
    for wrong in (told(0, 0, 3), told(2, 0, 1), told(2, 0, 0)):
        (fault,) = step.check(wrong)
        assert fault.startswith("3 events told, accepted")


def test_replayed_events_may_lack_what_the_log_does_not_name() -> None:
    events = [
        {"id": "e1", "type": "delivered", "data": {"campaign": "c"}},
        {"id": "e2", "type": "view", "data": {}},
        {"id": "e3", "type": "click", "data": {}},
    ]
    step = step_of({"path": "/v1/events", "at": 0, "body": events}, ROUTES, "run")
    assert step.check is not None
    assert list(step.check(told(1, 0, 2))) == []
    assert list(step.check(told(0, 0, 3))) != []


def test_replayed_lists_are_checked_too() -> None:
    body = {"item": "a", "exclude": ["b"], "slots": 3}
    step = step_of({"path": "/v1/recommendations/related", "at": 0, "body": body}, ROUTES, "run")
    assert step.check is not None
    assert list(step.check(Answer(200, {"items": [{"id": "c", "slot": 0}]}))) == []
    assert list(step.check(Answer(200, {"items": [{"id": "a", "slot": 0}]}))) != []
