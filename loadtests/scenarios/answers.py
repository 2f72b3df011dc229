"""Is an answer what the server's own OpenAPI document says it is? And is every refusal a problem document?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema_rs

from loadtests.scenarios.errors import LoadError
from loadtests.scenarios.step import REFUSED, Answer

__all__ = ["PROBLEM", "Contract"]

PROBLEM = "application/problem+json"


class Contract:
    """The answers an OpenAPI 3.1 document promises, by method and path template."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        if "paths" not in document or "components" not in document:
            raise LoadError("/openapi.json is no OpenAPI document")
        self._document = document
        self._made: dict[tuple[str, str], Any] = {}

    def faults(self, route: str, answer: Answer) -> list[str]:
        """What is wrong with the form of an answer; its status is not judged."""
        if answer.status == 0:
            return []
        if answer.status == 204:
            return []
        if answer.content is None:
            return [f"status {answer.status} without JSON: {answer.raw[:120]!r}"]
        out = self._of_problem(answer) if not answer.good else []
        validator = self._validator(route, "2XX" if answer.good else f"{answer.status // 100}XX")
        if validator is None:
            return [*out, f"no answer of status {answer.status} is promised for {route}"]
        if not validator.is_valid(answer.content):
            first = next(validator.iter_errors(answer.content))
            where = "/".join(map(str, first.instance_path))
            out.append(f"schema: {where or 'the whole'}: {str(first.message)[:300]}")
        return out

    @staticmethod
    def _of_problem(answer: Answer) -> list[str]:
        out = []
        if not answer.media.startswith(PROBLEM):
            out.append(f"status {answer.status} as {answer.media or 'nothing'}, not as a problem document")
        elif isinstance(answer.content, dict) and answer.content.get("status") != answer.status:
            out.append(f"the problem document says status {answer.content.get('status')}, HTTP says {answer.status}")
        if answer.status in REFUSED and answer.retry_after is None:
            out.append(f"status {answer.status} without Retry-After")
        return out

    def _validator(self, route: str, kind: str) -> Any:
        key = (route, kind)
        if key not in self._made:
            self._made[key] = self._make(route, kind)
        return self._made[key]

    def _make(self, route: str, kind: str) -> Any:
        method, path = route.split(" ", 1)
        operation = self._document["paths"].get(path, {}).get(method.lower())
        if operation is None:
            raise LoadError(f"the server has no call {route}; is it this version's?")
        said = operation["responses"].get("200" if kind == "2XX" else kind)
        content = (said or {}).get("content", {})
        form = next((one["schema"] for one in content.values()), None)
        if form is None:
            return None
        whole = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "components": self._document["components"],
            "allOf": [form],
        }
        return jsonschema_rs.validator_for(whole)
