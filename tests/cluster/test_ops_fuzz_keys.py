"""The whole interface behind keys: what anyone sends gets 401 before it is even read, a key without the scope 403, and a key
with it is answered as documented."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from serve_app.ingress.key_file import Scope, add_key
from tests.cluster.server_support import data_copy, generous, in_process

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
OPEN = {"GET /healthz", "GET /readyz"}
UNMEASURED = "GET /metrics"  # this server has no metrics agent: 404
Case = schemathesis.Case


class Guarded:
    """A server behind keys: one key with every scope but admin, one with a scope that no call here asks for alone."""

    def __init__(self, client: httpx.Client, every: str, outbox: str) -> None:
        self.every, self.outbox = ({"Authorization": f"Bearer {key}"} for key in (every, outbox))
        document = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
        self.operations = [found.ok() for found in document.get_all_operations()]


@pytest.fixture(scope="module")
def guarded(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    home = tmp_path_factory.mktemp("guarded")
    file = home / "keys.json"
    every = add_key(file, "every", [one for one in Scope if one is not Scope.admin])
    outbox = add_key(file, "outbox", [Scope.outbox])
    made = generous(data=data_copy(demo_release, home / "data"), topology="fused", security={"keys_file": file})
    with in_process(made) as client:
        yield Guarded(client, every, outbox)


def each(operation: Any, examples: int, check: Callable[[Case], None]) -> None:
    """`check` on cases that the document allows and on some it does not."""
    for mode in schemathesis.GenerationMode:
        with contextlib.suppress(Unsatisfiable):  # nothing wrong can be sent to a call without parameters
            cases = operation.as_strategy(generation_mode=mode)

            @given(case=cases)
            @settings(
                max_examples=examples,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                derandomize=True,
                database=None,
            )
            def every(case: Case) -> None:
                check(case)

            every()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}], ids=["no key", "a wrong key"])
def test_nobody_gets_past_the_door(guarded: Guarded, headers: dict[str, str], subtests: pytest.Subtests) -> None:
    for operation in guarded.operations:

        def check(case: Case, label: str = operation.label) -> None:
            sent = {name: value for name, value in (case.headers or {}).items() if name.lower() != "authorization"}
            case.headers = sent  # type: ignore[assignment]
            answer = case.call(headers=headers, timeout=60)
            allowed = {404, 405, 422} if label in OPEN else set()  # what the framework says of a path or method that is none
            assert answer.status_code in ({200} if label in OPEN else {401, 404, 405}) | allowed, label

        with subtests.test(operation=operation.label):
            each(operation, 3, check)


def test_a_key_opens_its_scopes_only(guarded: Guarded, subtests: pytest.Subtests) -> None:
    refused = set()
    for operation in guarded.operations:
        with subtests.test(operation=operation.label):

            def check(case: Case, label: str = operation.label) -> None:
                case.headers = {}  # type: ignore[assignment]
                answer = case.call(headers=guarded.outbox, timeout=60)
                if answer.status_code == 403:
                    refused.add(label)

            each(operation, 2, check)
    labels = {operation.label for operation in guarded.operations}
    assert refused == {label for label in labels - OPEN if "/outbox/" not in label}


def test_a_good_key_is_answered_as_documented(guarded: Guarded, subtests: pytest.Subtests) -> None:
    for operation in guarded.operations:
        if operation.label == UNMEASURED:
            continue

        def check(case: Case) -> None:
            case.call_and_validate(checks=CHECKS, headers=guarded.every, timeout=60)

        with subtests.test(operation=operation.label):
            each(operation, 8, check)
