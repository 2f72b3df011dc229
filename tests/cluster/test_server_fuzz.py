"""Whatever the OpenAPI document allows, and much that it does not, is answered without a 5xx and as documented."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.cluster.server_support import data_copy, generous, in_process

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def client(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    data = data_copy(demo_release, tmp_path_factory.mktemp("fuzz") / "data")
    with in_process(generous(data=data, topology="fused")) as made:
        yield made


@pytest.fixture(scope="module")
def api(client: httpx.Client) -> schemathesis.schemas.BaseSchema:
    # Promotions and metrics need a token and an agent, which this server has not: they are tested elsewhere.
    return schemathesis.openapi.from_url(f"{client.base_url}/openapi.json").exclude(
        path_regex=r"^/(metrics|v1/(releases|policies|replicas))"
    )


def test_no_call_ends_in_a_server_error(api: schemathesis.schemas.BaseSchema, subtests: pytest.Subtests) -> None:
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) >= 14
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            with subtests.test(operation=operation.label, mode=mode.value):
                _fuzz(operation, mode)


def _fuzz(operation: Any, mode: schemathesis.GenerationMode) -> None:
    try:
        cases = operation.as_strategy(generation_mode=mode)
    except Unsatisfiable:
        return  # nothing wrong can be sent to a call without parameters

    @given(case=cases)
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    def every(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=60)

    with contextlib.suppress(Unsatisfiable):
        every()
