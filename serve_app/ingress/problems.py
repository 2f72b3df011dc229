"""Errors as RFC 9457 problem documents: what went wrong, in which field, and what to do about it.

Every error that leaves the server takes this form, those of the framework (404, 405, unreadable JSON, 500) included.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from serve_app.errors import (
    DamagedArtifact,
    HindcastError,
    InvalidInput,
    LedgerUnavailable,
    NotReady,
    OutcomeUnknown,
    UnknownIdentifier,
    plain_words,
)

__all__ = ["PROBLEM_JSON", "FieldProblem", "Problem", "ProblemError", "install_problem_handlers", "problem_of", "respond"]

PROBLEM_JSON = "application/problem+json"
_LOG = logging.getLogger("hindcast.ingress")


class FieldProblem(BaseModel):
    """One wrong field."""

    field: str = Field(description="where, as a dotted path; `body` for the whole")
    detail: str = Field(description="what is wrong with it")


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(
        description="stable identifier of the kind of problem", examples=["urn:hindcast:problem:invalid-field"]
    )
    title: str = Field(description="the kind of problem in a few words")
    status: int = Field(description="HTTP status")
    detail: str = Field(description="what went wrong here")
    field: str | None = Field(None, description="the first wrong field")
    hint: str | None = Field(None, description="what to do")
    errors: list[FieldProblem] | None = Field(None, description="all wrong fields")


class ProblemError(Exception):
    """An error with its problem document. `headers` go out with it (Retry-After, Allow)."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        field: str | None = None,
        hint: str | None = None,
        errors: list[FieldProblem] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail)
        title = kind.replace("-", " ").capitalize()
        self.problem = Problem(
            type=f"urn:hindcast:problem:{kind}",
            title=title,
            status=status,
            detail=detail,
            field=field,
            hint=hint,
            errors=errors,
        )
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}


def respond(error: ProblemError) -> Response:
    """The response that carries the problem."""
    body = orjson.dumps(error.problem.model_dump(exclude_none=True))
    return Response(body, error.problem.status, error.headers, PROBLEM_JSON)


def problem_of(error: Exception) -> ProblemError:
    """Any exception as a problem; unforeseen ones become a 500 that tells the caller nothing of the inside."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, ValidationError):
        return _of_validation(
            [dict(one) for one in error.errors(include_url=False, include_input=False, include_context=False)]
        )
    if isinstance(error, HindcastError):
        return _of_hindcast(error)
    _LOG.error("unexpected error", exc_info=error)
    return ProblemError(500, "internal-error", "the server failed on this request; its log says why")


_KINDS: tuple[tuple[type[HindcastError], int, str, int | None], ...] = (
    (UnknownIdentifier, 404, "unknown-id", None),
    (InvalidInput, 422, "invalid-field", None),
    (LedgerUnavailable, 503, "ledger-unavailable", 1),
    (OutcomeUnknown, 503, "outcome-unknown", 1),
    (NotReady, 503, "not-ready", 1),
    (DamagedArtifact, 409, "damaged-artifact", None),
)


def _of_hindcast(error: HindcastError) -> ProblemError:
    for kind, status, name, retry in _KINDS:
        if isinstance(error, kind):
            return ProblemError(status, name, error.message, field=error.field, hint=error.hint, retry_after_s=retry)
    return ProblemError(500, "internal-error", error.message, field=error.field, hint=error.hint)


_HINTS = {
    "extra_forbidden": "remove it, or check its spelling; /docs lists the fields",
    "missing": "add it",
    "json_invalid": "send one JSON object with Content-Type application/json",
    "too_long": "send fewer, or several requests",
}


def _of_validation(errors: Sequence[dict[str, Any]]) -> ProblemError:
    found = [FieldProblem(field=_path(one["loc"]), detail=plain_words(str(one["msg"]))) for one in errors]
    kind = str(errors[0]["type"])
    malformed = kind == "json_invalid"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return ProblemError(
        400 if malformed else 422,
        "malformed-json" if malformed else "invalid-field",
        f"{found[0].field}: {found[0].detail}{more}",
        field=found[0].field,
        hint=_HINTS.get(kind, "correct the value; /docs says what is allowed"),
        errors=found[:100],
    )


def _path(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location) or "body"


_FRAMEWORK = {
    404: ("not-found", "see /docs for the calls there are"),
    405: ("method-not-allowed", "see the Allow header for the methods there are"),
}


def _of_http(error: HTTPException) -> ProblemError:
    kind, hint = _FRAMEWORK.get(error.status_code, (HTTPStatus(error.status_code).phrase.lower().replace(" ", "-"), None))
    made = ProblemError(error.status_code, kind, str(error.detail), hint=hint)
    made.headers = dict(error.headers or {})
    return made


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""

    async def on_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return respond(_of_http(error))

    async def on_validation(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return respond(_of_validation([{**one, "loc": one["loc"][1:]} for one in error.errors()]))

    async def on_any(_: Request, error: Exception) -> Response:
        return respond(problem_of(error))

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    for kind in (ProblemError, HindcastError, ValidationError, Exception):
        app.add_exception_handler(kind, on_any)
