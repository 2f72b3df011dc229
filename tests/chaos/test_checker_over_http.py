"""The same clients and the same checker on a server whose ledger reads, then writes, without comparing: it must be caught.

The control run, on the ledger as it is, has no findings; so what is found lies in the ledger and not in the checker.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serve_app.ledger.opening import open_ledger
from tests.chaos.exactness_checker import findings
from tests.chaos.fire_clients import Clients
from tests.chaos.fire_evidence import gather
from tests.chaos.fire_server import CAMPAIGNS, HOT, OTHERS, people_and_campaigns, prepare_data
from tests.cluster.server_support import data_copy, generous, in_process
from tests.unit.exactness_support import RacyLedger

pytestmark = pytest.mark.chaos
DECISIONS = 6_000


def findings_of_a_run(data: Path) -> list[str]:
    prepare_data(data)
    with in_process(generous(data=data)) as http:
        url = str(http.base_url)
        people = people_and_campaigns(url)
        clients = Clients(url, HOT, OTHERS, list(CAMPAIGNS), connections=16, target=DECISIONS, seed=3)
        clients.finish()
        asyncio.run(clients.run())
    assert clients.book.strange == []
    ledger = open_ledger(data)
    evidence = gather(data, ledger, people, clients.book)
    ledger.close()
    return findings(evidence)


@pytest.fixture
def data(demo_release: Path, tmp_path: Path) -> Path:
    return data_copy(demo_release, tmp_path / "data")


def test_a_server_on_a_racy_ledger_is_caught(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def racy(*arguments: Any, **keywords: Any) -> RacyLedger:
        return RacyLedger(open_ledger(*arguments, **keywords))

    monkeypatch.setattr("tests.cluster.server_support.open_ledger", racy)
    found = findings_of_a_run(data)
    assert any("was passed" in finding for finding in found)
    assert any("was decided on version" in finding for finding in found)


def test_the_same_load_on_the_ledger_as_it_is_has_no_findings(data: Path) -> None:
    assert findings_of_a_run(data) == []
