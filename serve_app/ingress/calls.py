"""A table of HTTP calls, and the app it makes: one `Call` says path, body, answer, scope and handler.

Bodies are read with a bound and validated straight from their bytes, so that every failure is the same kind of problem
document, and a call costs no more than its JSON. OpenAPI is made from the same table.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import orjson
from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from serve_app.clock import monotonic_s, now_us
from serve_app.ids import fresh_id
from serve_app.ingress.auth import Caller, KeyRing, Scope
from serve_app.ingress.bodies import Bodies, Body
from serve_app.ingress.call_log import CallLog
from serve_app.ingress.problems import PROBLEM_JSON, Problem, ProblemError, problem_of, respond
from serve_app.ingress.refusing import RefusalPace
from serve_app.serving import spans
from serve_app.serving.meters import count, timed
from serve_app.serving.scope import CallScope, of_call

__all__ = ["Call", "CallsApp", "Incoming", "add_calls", "json_answer", "openapi_of"]

JSON = "application/json"


@dataclass(slots=True)
class Incoming:
    """One call as a handler sees it: who, when, path parameters, raw bytes and the parsed body (None without a model)."""

    caller: Caller
    at_us: int
    params: Mapping[str, str]
    headers: Mapping[str, str]
    raw: bytes = b""
    body: Any = None

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of what was sent: an error may be kept for a while, with all that its frames hold."""
        self.raw, self.body = b"", None


Handler = Callable[[Incoming], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Call:
    """One HTTP call. params: path parameter -> description. media: content types besides JSON the handler reads itself."""

    method: str
    path: str
    summary: str
    handler: Handler
    scope: Scope | None
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    body_bytes: int = 0
    tag: str = "recommendations"
    params: Mapping[str, str] = field(default_factory=dict)
    media: Sequence[str] = ()
    raw: bool = False
    """The handler parses the bytes itself (several media types); `body` then only documents the JSON form."""
    gate: Callable[[], None] | None = None
    """Raises what the call is refused with whatever its body says, before it is read: such a refusal costs little."""
    notes: str = ""
    """What the models do not say, for the documentation: of other media types, of headers."""


def json_answer(content: Any, status: int = 200) -> Response:
    """JSON by orjson; numpy values are understood."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type=JSON)


def _check_params(params: Mapping[str, str]) -> None:
    for name, value in params.items():
        if not 1 <= len(value) <= 200:
            raise ProblemError(422, "invalid-field", "an id has 1 to 200 characters", field=name)


async def _pass(gate: Callable[[], None], refusals: RefusalPace) -> None:
    try:
        gate()
    except ProblemError:
        await refusals.wait()
        raise


def _endpoint(call: Call, keys: KeyRing, bodies: Bodies, tell: CallLog, refusals: RefusalPace) -> Endpoint:
    template = _template(call.path)

    async def endpoint(request: Request) -> Response:
        with of_call(_call_id(request)) as scope:
            began = monotonic_s()
            try:
                with timed("hindcast_request_ms", path=template):
                    answer = await attempt(request, scope)
            except asyncio.CancelledError:  # the client left
                count("hindcast_requests", path=template, status="499")
                tell(call.method, template, 499, monotonic_s() - began, scope)
                raise
            count("hindcast_requests", path=template, status=str(answer.status_code))
            if "x-request-id" not in request.headers:  # otherwise Serve has put it into the answer
                answer.headers["x-request-id"] = scope.call
            tell(call.method, template, answer.status_code, monotonic_s() - began, scope)
        return answer

    async def attempt(request: Request, scope: CallScope) -> Response:
        try:
            at_us = now_us()
            caller = keys.authorize(request.headers, call.scope, at_us) if call.scope else Caller("anyone", frozenset())
            scope.caller = caller.name
            if call.gate is not None:
                await _pass(call.gate, refusals)
            _check_params(request.path_params)
            with Body(bodies) as sent, Incoming(caller, at_us, request.path_params, request.headers) as incoming:
                if call.body_bytes:
                    incoming.raw = await sent.read(request, call.body_bytes)
                if call.body is not None and not call.raw:
                    incoming.body = call.body.model_validate_json(incoming.raw)
                return await call.handler(incoming)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001 - every failure leaves as a problem document; 500s are logged there
            return respond(problem_of(error))

    return endpoint


class CallsApp(FastAPI):
    """Calls whose path is one text are found by one look-up, before the stack that matches every route's expression and
    handles errors which calls do not raise: that costs a small call a tenth of its time. All others go that way."""

    straight: Mapping[tuple[str, str], Endpoint] = MappingProxyType({})

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """ASGI."""
        plain = scope["type"] == "http" and not scope.get("root_path") and not spans.active()  # the stack reads traceparent
        endpoint = self.straight.get((scope["method"], scope["path"])) if plain else None
        if endpoint is None:
            await super().__call__(scope, receive, send)
            return
        try:
            answer = await endpoint(Request(scope, receive, send))
        except Exception as error:  # noqa: BLE001 - as the stack does: every failure is a problem document
            answer = respond(problem_of(error))
        await answer(scope, receive, send)


_CALL_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def _call_id(request: Request) -> str:
    """The caller's own id of the call, where it is plain; else a new one. Goes out with the answer and into log lines."""
    given = request.headers.get("x-request-id", "")
    return given if _CALL_ID.fullmatch(given) else f"{fresh_id():016x}"


def _template(path: str) -> str:
    """A route's path without the forms of its parameters: `{id:path}`, an id that may hold slashes, is `{id}`."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def add_calls(
    app: CallsApp, calls: Sequence[Call], keys: KeyRing, *, bodies: Bodies, tell: CallLog, refusals: RefusalPace
) -> None:
    """Route the calls. Paths that share a form answer 405 for methods nobody has. tell: hears of every call. refusals: when
    those refused before their body is read hear of it."""
    endpoints = {(call.method, call.path): _endpoint(call, keys, bodies, tell, refusals) for call in calls}
    for (method, path), endpoint in endpoints.items():
        app.add_route(path, endpoint, methods=[method], include_in_schema=False)
    app.straight = {key: endpoint for key, endpoint in endpoints.items() if "{" not in key[1]}


def openapi_of(calls: Sequence[Call], *, version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a table of calls."""
    models = {model for call in calls for model in (call.body, call.answer) if model is not None} | {Problem}
    named, definitions = models_json_schema(
        sorted(((model, "validation") for model in models), key=lambda pair: pair[0].__name__),
        ref_template="#/components/schemas/{model}",
    )
    references: dict[Any, Any] = {model: schema for (model, _), schema in named.items()}
    paths: dict[str, dict[str, Any]] = {}
    for call in calls:
        paths.setdefault(_template(call.path), {})[call.method.lower()] = _operation(call, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Hindcast",
            "version": version,
            "description": "Recommendations and notification send decisions. Errors are problem documents (RFC 9457).",
        },
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(call: Call, references: Mapping[Any, Any]) -> dict[str, Any]:
    problem = {"content": {PROBLEM_JSON: {"schema": references[Problem]}}}
    answer: dict[str, Any] = {"description": "The answer"}
    if call.answer is not None:
        answer["content"] = {JSON: {"schema": references[call.answer]}}
    operation: dict[str, Any] = {
        "summary": call.summary,
        "operationId": re.sub(r"\W+", "_", f"{call.method.lower()}{_template(call.path)}").strip("_"),
        "tags": [call.tag],
        "responses": {
            ("204" if call.answer is None and call.method == "DELETE" else "200"): answer,
            "4XX": {"description": "The request is wrong; the problem says where and how to mend it", **problem},
            "5XX": {"description": "The server cannot answer now; see Retry-After", **problem},
        },
        "security": [{}, {"key": []}] if call.scope else [],
    }
    needed = f"Needs a key with the scope `{call.scope.value}`, where keys are in force." if call.scope else ""
    if said := " ".join(text for text in (call.notes, needed) if text):
        operation["description"] = said
    if call.params:
        operation["parameters"] = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": text,
                "schema": {"type": "string", "minLength": 1, "maxLength": 200},
            }
            for name, text in call.params.items()
        ]
    if call.body is not None:
        content: dict[str, Any] = {JSON: {"schema": references[call.body]}}
        content |= {media: {"schema": {"type": "string", "format": "binary"}} for media in call.media}
        operation["requestBody"] = {"required": True, "content": content}
    return operation
