"""A replica, HAProxy, its manager and the controller die one after the other under load: a client that tries again sees none
of it, every answer is well-formed, and log and ledger are whole. `make chaos-bench` kills every kind and measures."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from loadtests.bench_chaos import Plan, run
from loadtests.chaos_figures import Targets
from loadtests.chaos_load import Patience, Shop
from loadtests.chaos_victims import KINDS, NOTHING, REPLICAS, kinds_of
from serve_app.catalogue import read_catalogue
from serve_app.elasticity import APPLICATION, DEPLOYMENTS
from tests.chaos.fire_server import CAMPAIGNS, HOT, OTHERS, people_and_campaigns, prepare_data
from tests.cluster.server_support import data_copy

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.chaos, pytest.mark.timeout(600)]

TARGETS = Targets(recovery_s=30.0)
"""Ten seconds are the bench's to hold, on a machine that does nothing else."""
KILLED = ("ranking", "HAProxy", "HAProxy's manager", "controller", "ranking")


@pytest.fixture
def data(demo_release: Path, tmp_path: Path) -> Path:
    folder = data_copy(demo_release, tmp_path / "data")
    prepare_data(folder)
    return folder


def test_a_client_that_tries_again_sees_nothing_of_what_dies(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)  # switches of the session's own Ray

    def shop(url: str) -> Shop:
        people_and_campaigns(url)
        items = read_catalogue(data / "catalogue").items["item_id"].to_pylist()
        return Shop(items, HOT + OTHERS, list(CAMPAIGNS))

    outcome = run(data, Plan("chain", KILLED, shop, rate=10.0, patience=Patience(gives_up_s=40.0)), Console())
    print([one.told() for one in outcome.figures], outcome.books)
    assert outcome.books.decisions > 100
    assert outcome.books.grants > 20
    assert outcome.missed(TARGETS) == []


def test_every_deployment_is_a_kind_that_the_bench_kills() -> None:
    assert set(REPLICAS.values()) == set(DEPLOYMENTS)
    for name in DEPLOYMENTS:
        assert any(re.search(pattern, f"ray::ServeReplica:{APPLICATION}:{name}.call") for pattern in KINDS.values())
    assert set(kinds_of("chain")) == {NOTHING, *KINDS}
    assert set(kinds_of("fused")) < {NOTHING, *KINDS}
