"""A trace: requests with the times they came at, one JSON object a line, gzip.

First line ``{"hindcast_trace": 1, "requests": n, "seconds": s, ...}``, then ``{"at": seconds since the first, "method":
"POST", "path": "/v1/...", "user": "...", "body": {...}}`` in the order of `at`. Anything that writes lines can make one.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from loadtests.scenarios.errors import LoadError
from loadtests.scenarios.lists import faults_of_list, faults_of_page
from loadtests.scenarios.plan import Plan, Scenario, phases_of
from loadtests.scenarios.sends import faults_of_batch, faults_of_decision
from loadtests.scenarios.step import Answer, Step

__all__ = ["TRACE_FORMAT", "plan_seconds", "read_head", "read_trace", "routes_of", "step_of", "write_trace"]

TRACE_FORMAT = 1
# What an event of a type must name, else the server refuses it.
_NEEDED = {
    **dict.fromkeys(("delivered", "delivery_failed"), "decision_id"),
    **dict.fromkeys(("view", "add_to_cart", "conversion"), "item"),
}


def write_trace(path: Path, requests: Iterable[Mapping[str, Any]], head: Mapping[str, Any]) -> None:
    """Write it whole. head: `requests`, `seconds`, and whatever says where it is from."""
    with gzip.open(path, "wb", compresslevel=5) as out:
        out.write(orjson.dumps({"hindcast_trace": TRACE_FORMAT, **head}) + b"\n")
        for one in requests:
            out.write(orjson.dumps(one) + b"\n")


def read_head(path: Path) -> dict[str, Any]:
    """The first line. LoadError where it is no trace."""
    try:
        with gzip.open(path, "rb") as lines:
            head = orjson.loads(lines.readline())
    except FileNotFoundError:
        raise LoadError(f"{path}: no such file; make one with `hindcast load trace`") from None
    except (OSError, EOFError, zlib.error, json.JSONDecodeError) as error:
        raise LoadError(f"{path}: is no trace: {error}") from None
    if not isinstance(head, dict) or head.get("hindcast_trace") != TRACE_FORMAT:
        raise LoadError(f'{path}: is no trace of format {TRACE_FORMAT}: its first line lacks "hindcast_trace"')
    return head


def read_trace(path: Path, *, worker: int = 0, workers: int = 1) -> Iterator[dict[str, Any]]:
    """The requests of one of several workers: a user's all go to one of them, in order."""
    read_head(path)
    with gzip.open(path, "rb") as lines:
        next(lines)
        for number, line in enumerate(lines, 2):
            try:
                one = orjson.loads(line)
                path_, at, user = str(one["path"]), float(one["at"]), str(one.get("user", ""))
            except (ValueError, KeyError, TypeError) as error:
                raise LoadError(f"{path}: line {number}: {error!r}") from None
            if not path_.startswith("/"):
                raise LoadError(f"{path}: line {number}: path {path_!r} does not begin with a slash")
            if zlib.crc32(user.encode()) % workers == worker:
                yield {**one, "at": at}


def plan_seconds(plan: Plan) -> float:
    """How long a plan's requests leave for."""
    if plan.scenario is Scenario.replay:
        assert plan.trace is not None
        return float(read_head(plan.trace)["seconds"]) / plan.speed
    return phases_of(plan)[-1].end_s


def routes_of(document: Mapping[str, Any]) -> list[tuple[str, re.Pattern[str], str]]:
    """(method, pattern of the path, route) of every call of an OpenAPI document; fixed paths come before templates."""
    found = []
    for template, operations in document["paths"].items():
        pattern = re.compile("^" + re.sub(r"\\\{\w+\\\}", ".+", re.escape(template)) + "$")
        found += [(method.upper(), pattern, f"{method.upper()} {template}") for method in operations]
    return sorted(found, key=lambda one: one[2].count("{"))


def step_of(one: Mapping[str, Any], routes: Iterable[tuple[str, re.Pattern[str], str]], run: str) -> Step:
    """A request of a trace as a step of now. Events happen now and have ids of this run: the same ids would be known."""
    method, path, body = str(one.get("method", "POST")), str(one["path"]), one.get("body")
    route = next((name for verb, pattern, name in routes if verb == method and pattern.match(path)), None)
    if route is None:
        raise LoadError(f"the trace calls {method} {path}, which the server's /openapi.json does not have")
    if path == "/v1/events" and isinstance(body, list):
        now = datetime.now(UTC).isoformat()
        body = [{**event, "id": f"{run}-{event['id']}"[-200:], "time": now} for event in body]
    return Step(route, path, None if body is None else orjson.dumps(body), _check(path, body))


def _check(path: str, body: Any) -> Any:
    if path == "/v1/recommendations/related":
        excluded = [*body.get("exclude", ()), body["item"]]
        return lambda got: _list(got, "items", body.get("slots", 10), excluded)
    if path == "/v1/recommendations/gateway":
        return lambda got: faults_of_page(
            got.content, widgets=body.get("widgets") or 50, slots=body.get("slots") or 100, excluded=body.get("exclude", ())
        )
    if path == "/v1/widgets/rank":
        return lambda got: _list(got, "widgets", body.get("slots", 10), ())
    if path == "/v1/reviews/rank":
        return lambda got: _list(got, "reviews", body.get("slots", 10), ())
    if path == "/v1/notifications/decide":
        return lambda got: faults_of_decision(body, got.content, got.content["decided_at"], {})
    if path == "/v1/notifications/decide-batch":
        return lambda got: faults_of_batch(body["rows"], got.content, {})
    if path == "/v1/events":
        return lambda got: _faults_of_events(body if isinstance(body, list) else [body], got.content)
    return None


def _faults_of_events(told: Sequence[Mapping[str, Any]], got: Mapping[str, Any]) -> list[str]:
    """All are taken, but for those that lack what their type needs: a trace made of the log names no decisions, and items
    only where the log still knows them."""
    needed = ((_NEEDED.get(event.get("type", "")), event.get("data") or {}) for event in told)
    lacking = sum(name is not None and data.get(name) is None for name, data in needed)
    if got["refused"] <= lacking and got["accepted"] + got["duplicates"] + got["refused"] == len(told):
        return []
    counts = f"accepted {got['accepted']}, duplicates {got['duplicates']}, refused {got['refused']}"
    return [f"{len(told)} events told, {counts}: {got['errors'][:2]}"]


def _list(answer: Answer, name: str, slots: int, excluded: Iterable[str]) -> list[str]:
    return faults_of_list(answer.content[name], slots=slots, excluded=set(excluded))
