"""`hindcast explain`: from the ledger's file, from the log, for sends, ghosts, deferrals, and what sent nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hindcast.commands.explain import explain_command
from serve_app.audit.finding import explain_decision
from serve_app.audit.kept import decision_in_log
from serve_app.audit.names import FolderNames
from serve_app.errors import InvalidInput, UnknownIdentifier
from serve_app.ids import decision_id_text
from serve_app.ingress.schemas_notify import StoredDecision
from serve_app.ingress.stored import told
from serve_app.ledger.sqlite import SqliteLedger
from serve_app.ledger.sqlite_glance import glance_record
from serve_app.log.compaction import compact
from serve_app.log.erasure import erase_user
from serve_app.log.journal import Journal
from serve_app.policies import store_policy
from serve_app.policy.compile import CompiledPolicy
from serve_app.vocabulary import Action
from tests.unit.decision_support import at, compiled
from tests.unit.truth_support import asked, decide_on, journal_rows, user_of

NOON = at("2026-03-10T12:00:00")
USERS = [user_of(n) for n in range(40)]


@pytest.fixture(scope="module")
def policy() -> CompiledPolicy:
    return compiled(
        caps=[{"id": "day", "scope": "global", "limit": 1, "window": {"rolling_hours": 24.0}}],
        holdouts=[{"id": "quiet-group", "scope": "global", "percent": 30, "salt": "g"}],
        experiments=[{"id": "wording", "salt": "e", "arms": [{"id": "a", "percent": 25}, {"id": "b", "percent": 75}]}],
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, policy: CompiledPolicy) -> Path:
    """Two decisions a user: the first sends or leaves a ghost, the second is capped and is in the log alone."""
    folder = tmp_path_factory.mktemp("explained")
    store_policy(folder, policy.document)
    ledger = SqliteLedger(folder / "ledger/ledger.sqlite", durability="process")
    for first in (1000, 2000):
        decided = decide_on(ledger, policy, asked(USERS, [policy], now=NOON + first, first_request=first))
        with Journal(folder, "w") as journal:
            journal.append(journal_rows(decided, policy))
        if first == 1000:
            compact(folder, now_us=1)
    ledger.close()
    return folder


def ids(first: int) -> list[str]:
    return [decision_id_text(user, first + n, 0) for n, user in enumerate(USERS)]


def test_a_committed_decision_is_found_in_the_ledger_and_says_the_same_as_the_log(data: Path) -> None:
    kinds = set()
    for one, user in zip(ids(1000), USERS, strict=True):
        said = explain_decision(data, one)
        StoredDecision.model_validate(said)
        assert said["source"] == "ledger"
        kinds.add(said["action"])
        found = decision_in_log(data, user, int(said["request_id"], 16))
        assert found is not None
        logged = told(found, FolderNames(data), "log")
        assert {**logged, "source": "ledger"} == said
    assert kinds == {"send", "suppress"}


def test_what_sent_nothing_is_found_in_the_log(data: Path) -> None:
    capped = [explain_decision(data, one) for one in ids(2000)]
    capped = [one for one in capped if one["reason"] == "frequency_capped"]
    assert len(capped) > 10
    for said in capped:
        StoredDecision.model_validate(said)
        assert said["source"] == "log"
        assert said["commit_version"] is None
        (gate,) = [gate for gate in said["candidates"][0]["gates"] if gate["gate"] == "caps"]
        assert (gate["outcome"], gate["used"], gate["limit"]) == ("suppress", 1.0, 1.0)
        assert gate["next_free_at"] is not None
        assert len(said["candidates"][0]["gates"]) > 8, "every other gate says its word too"
        (drawn,) = said["experiments"]
        assert (drawn["experiment"], drawn["arm_id"]) == ("wording", "ab"[drawn["arm"]])


def test_a_ghost_names_its_holdout(data: Path) -> None:
    ghosts = [one for one in (explain_decision(data, i) for i in ids(1000)) if one["reason"] == "global_holdout"]
    assert len(ghosts) > 3
    for said in ghosts:
        assert said["holdouts"] == [{"holdout": "quiet-group", "held_out": True, "propensity": 0.3}]
        assert [c["holdout"] for c in said["candidates"] if c["ghost"]] == ["quiet-group"]


def run(data: Path, *arguments: str) -> str:
    app = typer.Typer()
    app.command()(explain_command)
    done = CliRunner().invoke(app, ["--data", str(data), *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def test_people_read_every_gate_with_use_limit_and_next_free_time(data: Path) -> None:
    capped = [(i, said) for i in ids(2000) if (said := explain_decision(data, i))["reason"] == "frequency_capped"]
    one = next(i for i, said in capped if said["experiments"][0]["arm"] == 1)
    text = run(data, one)
    for part in (
        "suppress (frequency_capped)",
        "found in the log",
        "wording: arm b",
        "quiet-group",
        "caps",
        "p_click",
        "next free",
    ):
        assert part in text
    assert json.loads(run(data, "--json", one))["decision_id"] == one


@pytest.mark.parametrize(("decision_id", "kind"), [("d" + "0" * 36, UnknownIdentifier), ("nonsense", InvalidInput)])
def test_an_id_nobody_knows_is_a_clear_error(data: Path, decision_id: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=decision_id[:9]):
        explain_decision(data, decision_id)


def test_the_ledger_s_file_is_read_while_its_owner_works(tmp_path: Path, policy: CompiledPolicy) -> None:
    path = tmp_path / "ledger/ledger.sqlite"
    ledger = SqliteLedger(path, durability="process")
    decided = decide_on(ledger, policy, asked(USERS[:5], [policy], now=NOON))
    sent = decided.batch.requests["action"] == Action.send
    for user, request, version in zip(
        decided.batch.requests["user"][sent], decided.batch.requests["request_id"][sent], decided.versions[sent], strict=True
    ):
        found = glance_record(path, int(user), int(request))
        assert found is not None
        assert found == (ledger.find_decision(int(user), int(request)), version)
    assert glance_record(path, USERS[0], 1) is None
    ledger.close()


def test_an_erased_user_s_decisions_are_unknown(tmp_path: Path, policy: CompiledPolicy) -> None:
    ledger = SqliteLedger(tmp_path / "ledger/ledger.sqlite", durability="process")
    decided = decide_on(ledger, policy, asked(USERS[:5], [policy], now=NOON))
    with Journal(tmp_path, "w") as journal:
        journal.append(journal_rows(decided, policy))
    compact(tmp_path, now_us=1)
    ledger.delete_user(USERS[2])
    erase_user(tmp_path, USERS[2], NOON)
    ledger.close()
    with pytest.raises(UnknownIdentifier):
        explain_decision(tmp_path, decision_id_text(USERS[2], 1002, 0))
    assert explain_decision(tmp_path, decision_id_text(USERS[1], 1001, 0))["decided_at"]
