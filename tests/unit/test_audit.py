"""`hindcast audit` finds every kind of planted defect, and nothing where nothing is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner

from hindcast.commands.audit import audit_command
from serve_app.audit.findings import KINDS, AuditReport
from serve_app.audit.ledger_side import LedgerSide, of_ledger
from serve_app.audit.run import audit
from serve_app.batch import lengths_to_offsets
from serve_app.decide import DecidedBatch
from serve_app.ledger.columns import CommitPlan
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Ledger
from serve_app.ledger.sqlite import SqliteLedger
from serve_app.log.filling import fill
from serve_app.log.journal import Journal
from serve_app.log.upkeep import upkeep
from serve_app.log.writer import LogWriter
from serve_app.policies import store_policy
from serve_app.policy.compile import CompiledPolicy
from serve_app.vocabulary import Action, Delivery, EventType
from tests.unit.decision_support import DAY, HOUR, at, compiled
from tests.unit.ledger_support import entry
from tests.unit.truth_support import asked, decide_on, journal_rows, user_of

NOON = at("2026-03-10T12:00:00")
USERS = [user_of(n) for n in range(8)]
CAP = {"id": "day", "scope": "global", "limit": 1, "window": {"rolling_hours": 24.0}}
FREE = compiled()
CAPPED = compiled(caps=[CAP])
GAP = compiled(min_gap={"minutes": 180.0})
QUIET = compiled(quiet_hours=[{"id": "lunch", "start": "11:00", "end": "13:00"}])
CONSENT = compiled(other_regions={"ad_consent_required": True, "night_consent_required": False, "ad_label": None})
NIGHT = compiled(
    other_regions={
        "ad_consent_required": False, "night_consent_required": True, "night_start": "11:00", "night_end": "13:00",
        "ad_label": None,
    }
)  # fmt: skip
LABEL = compiled(other_regions={"ad_consent_required": False, "night_consent_required": False, "ad_label": "(광고)"})
ALL = (FREE, CAPPED, GAP, QUIET, CONSENT, NIGHT, LABEL)


@dataclass
class Shop:
    """A data folder with a ledger; `serve` decides on the ledger and journals, as a server does."""

    data: Path
    ledger: Ledger = field(default_factory=MemoryLedger)
    outbox: set[tuple[int, int]] | None = field(default_factory=set)
    damage: list[str] = field(default_factory=list)
    served: int = 0

    def __post_init__(self) -> None:
        for policy in ALL:
            store_policy(self.data, policy.document)

    def serve(
        self, policy: CompiledPolicy = FREE, *, said: CompiledPolicy | None = None, now: int = NOON,
        edit: Callable[[dict[str, pa.RecordBatch]], None] | None = None, ledger: Ledger | None = None, keys: bool = False,
        users: list[int] = USERS, **columns: Any,
    ) -> DecidedBatch:  # fmt: skip
        """Decide by `policy`, journal as if `said` had decided; `edit` changes the rows on their way."""
        self.served += 1
        own = [b"K%015d" % n for n in range(len(users))] if keys else None
        batch = asked(users, [policy], now=now, first_request=1000 * self.served, **columns)
        decided = decide_on(ledger or self.ledger, policy, batch, own)
        rows = journal_rows(decided, policy, own)
        if said is not None:
            rows["requests"] = changed(rows["requests"], "policy_revision", [said.revision] * len(users))
        if edit is not None:
            edit(rows)
        with Journal(self.data, "server") as journal:
            journal.append(rows)
        return decided

    def audit(self) -> AuditReport:
        side = of_ledger(self.ledger, self.outbox)
        side.damage, side.taken_at = self.damage, NOON + 30 * DAY
        return audit(self.data, side, now_us=NOON + 30 * DAY, groups=2)


def changed(rows: pa.RecordBatch, name: str, values: Any) -> pa.RecordBatch:
    spec = rows.schema.field(name)
    array = pa.array(values).dictionary_encode() if pa.types.is_dictionary(spec.type) else pa.array(values, spec.type)
    columns = [array if one == name else rows[one] for one in rows.schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


def editing(table: str, name: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[dict[str, pa.RecordBatch]], None]:
    def edit(rows: dict[str, pa.RecordBatch]) -> None:
        rows[table] = changed(rows[table], name, change(rows[table][name].to_pylist()))

    return edit


def without(table: str, rows: slice) -> Callable[[dict[str, pa.RecordBatch]], None]:
    def edit(tables: dict[str, pa.RecordBatch]) -> None:
        tables[table] = tables[table][rows]

    return edit


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_traffic_that_went_well_has_no_findings(shop: Shop) -> None:
    shop.serve(CAPPED)
    shop.serve(CAPPED, now=NOON + HOUR)
    shop.serve(CAPPED, now=NOON + 25 * HOUR, keys=True)
    report = shop.audit()
    assert report.clean, report.document()
    assert report.looked_at["granted sends"] == 2 * len(USERS)
    assert report.looked_at["sends counted by the ledger"] == 2 * len(USERS)
    assert report.looked_at["of them waiting to be copied into the log"] == 2 * len(USERS)
    upkeep(shop.data, shop.ledger, now_us=NOON + 2 * DAY)
    again = shop.audit()
    assert again.clean, again.document()
    assert again.looked_at["of them waiting to be copied into the log"] == 0


def test_a_grant_that_was_acknowledged_but_never_logged(shop: Shop) -> None:
    shop.serve(edit=without("decisions", slice(1, None)))
    shop.ledger.ack_records([one.id for one in shop.ledger.pending_records(100)])
    report = shop.audit()
    assert set(report.counts) == {"grant_not_logged", "request_without_decision"}
    assert report.counts["grant_not_logged"] == 1


def test_a_grant_that_the_ledger_does_not_count(shop: Shop) -> None:
    shop.serve()
    shop.serve(ledger=MemoryLedger(), now=NOON + HOUR)
    assert shop.audit().counts["grant_not_ledgered"] == len(USERS)


def test_a_ledger_that_fell_back(shop: Shop) -> None:
    further = MemoryLedger()
    for hour in range(2):
        shop.serve(ledger=further, now=NOON + hour * HOUR)
    assert set(shop.audit().counts) == {"log_ahead_of_ledger"}


def test_one_version_written_twice(shop: Shop) -> None:
    shop.serve()
    shop.serve(now=NOON + HOUR, edit=editing("decisions", "commit_version", lambda v: [one - 1 for one in v]))
    assert set(shop.audit().counts) == {"version_twice", "version_backwards"}


def test_one_key_committed_twice(shop: Shop) -> None:
    def key(rows: dict[str, pa.RecordBatch]) -> None:
        rows["decisions"] = changed(rows["decisions"], "idempotency_key", [b"same" * 4] * len(rows["decisions"]))

    shop.serve(users=USERS[:1], edit=key)
    shop.serve(users=USERS[:1], edit=key, now=NOON + HOUR)
    assert shop.audit().counts == {"key_twice": 1}


def test_a_key_used_again_after_its_horizon_is_no_finding(shop: Shop) -> None:
    for day in (0, 3):
        shop.serve(keys=True, now=NOON + day * DAY)
        shop.ledger._keys.clear()  # type: ignore[attr-defined]
    assert shop.audit().clean


def test_a_decision_logged_twice(shop: Shop) -> None:
    decided = shop.serve()
    rows = journal_rows(decided, FREE)
    with LogWriter(shop.data) as writer:
        for table, batch in rows.items():
            writer.write(table, batch)
    assert set(shop.audit().counts) == {"decision_twice", "version_twice", "propensities"}


def test_a_decision_without_its_request(shop: Shop) -> None:
    shop.serve(edit=without("requests", slice(1, None)))
    assert "decision_without_request" in shop.audit().counts


def test_candidates_that_were_lost(shop: Shop) -> None:
    shop.serve(edit=without("candidates", slice(0, -1)))
    assert shop.audit().counts["candidates_lost"] == 1


@pytest.mark.parametrize(
    ("said", "kind"),
    [(QUIET, "quiet_hours"), (CONSENT, "no_consent"), (NIGHT, "no_night_consent"), (LABEL, "unlabelled_ad")],
)
def test_sends_that_their_policy_forbids(shop: Shop, said: CompiledPolicy, kind: str) -> None:
    shop.serve(FREE, said=said, labelled=False)
    assert shop.audit().counts == {kind: len(USERS)}


def test_sends_beyond_a_cap_and_too_close_together(shop: Shop) -> None:
    for hour in range(3):
        shop.serve(FREE, said=CAPPED, now=NOON + hour * HOUR)
    assert shop.audit().counts == {"over_cap": 2 * len(USERS)}


def test_sends_too_close_together(shop: Shop) -> None:
    for hour in (0, 2, 6):
        shop.serve(FREE, said=GAP, now=NOON + hour * HOUR)
    assert shop.audit().counts == {"min_gap": len(USERS)}


def test_a_refunded_send_is_not_counted(shop: Shop) -> None:
    decided = shop.serve(CAPPED, users=USERS[:1])
    request = int(decided.batch.requests["request_id"][0])
    shop.ledger.refund(USERS[0], request, 0)
    columns = {"user": np.array(USERS[:1], np.uint64), "event_id": np.ones(1, np.uint64), "ts": [NOON + 1], "slot": [0]}
    columns |= {"type": [int(EventType.delivery_failed)], "decision_request_id": np.array([request], np.uint64)}
    with Journal(shop.data, "server") as journal:
        journal.append({"events": fill("events", 1, columns)})
    shop.serve(CAPPED, users=USERS[:1], now=NOON + HOUR)
    report = shop.audit()
    assert report.looked_at["granted sends"] == 2
    assert report.clean, report.document()


@pytest.mark.parametrize(
    ("name", "value", "kind"), [("opted_out", 63, "opted_out"), ("reachable", 0, "opted_out"), ("expires_at", 5, "expired")]
)
def test_sends_that_the_user_s_state_forbids(shop: Shop, name: str, value: int, kind: str) -> None:
    shop.serve(edit=editing("requests", name, lambda v: [value] * len(v)))
    assert shop.audit().counts == {kind: len(USERS)}


def test_probabilities_that_do_not_sum_to_one(shop: Shop) -> None:
    shop.serve(edit=editing("decisions", "p_none", lambda v: [v[0] + 0.01, *v[1:]]))
    assert shop.audit().counts == {"propensities": 1}


def outbox_of(ledger: Ledger) -> set[tuple[int, int]]:
    return {(one.user, one.request_id) for one in ledger.claim_outbox(NOON, 100, 1)}


def test_the_outbox_and_the_grants_for_it(shop: Shop) -> None:
    shop.serve(delivery=int(Delivery.outbox))
    shop.outbox = outbox_of(shop.ledger)
    assert len(shop.outbox) == len(USERS)
    assert shop.audit().clean
    lost = shop.outbox.pop()
    assert shop.audit().counts == {"grant_without_outbox": 1}
    shop.outbox |= {lost, (USERS[0], 99)}
    assert shop.audit().counts == {"outbox_without_grant": 1}


def test_an_outbox_row_that_was_delivered_may_go(shop: Shop) -> None:
    decided = shop.serve(delivery=int(Delivery.outbox), users=USERS[:1])
    columns = {"user": np.array(USERS[:1], np.uint64), "event_id": np.ones(1, np.uint64), "ts": [NOON + 1], "slot": [0]}
    columns |= {"type": [int(EventType.delivered)], "decision_request_id": decided.batch.requests["request_id"]}
    with Journal(shop.data, "server") as journal:
        journal.append({"events": fill("events", 1, columns)})
    assert shop.audit().clean


def test_a_deferral_that_nobody_ended(shop: Shop) -> None:
    decided = shop.serve(QUIET)
    assert (decided.batch.requests["action"] == Action.defer).all()
    assert shop.audit().clean, "it waits in the ledger"
    shop.ledger.drop_deferral(USERS[0], int(decided.batch.requests["request_id"][0]))
    assert shop.audit().counts == {"deferral_without_end": 1}


def test_a_send_counted_twice_by_the_ledger(shop: Shop) -> None:
    decided = shop.serve(users=USERS[:1])
    request = int(decided.batch.requests["request_id"][0])
    version = int(shop.ledger.read(np.array(USERS[:1], np.uint64)).versions[0])
    again = CommitPlan(
        np.array(USERS[:1], np.uint64), np.array([version]), np.array([NOON]), entry(NOON, request), lengths_to_offsets([1]),
        [], np.array([request], np.uint64),
    )  # fmt: skip
    shop.ledger.commit(again)
    assert shop.audit().counts == {"granted_twice": 1}


def test_a_policy_that_is_not_in_the_folder(shop: Shop) -> None:
    shop.serve(compiled(name="elsewhere"))
    assert shop.audit().counts == {"policy_unknown": len(USERS)}


def test_damage_that_the_ledger_s_own_check_finds(shop: Shop) -> None:
    shop.damage = ["user 1: row fails its checksum"]
    assert shop.audit().counts == {"ledger_damaged": 1}


def test_experiments_and_cells_change_the_rules_that_count(shop: Shop) -> None:
    tight = compiled(
        caps=[{**CAP, "limit": 2}],
        experiments=[
            {
                "id": "e", "salt": "e",
                "arms": [{"id": "a", "percent": 50}, {"id": "b", "percent": 50, "overrides": {"caps.day.limit": 1}}],
            }
        ],
    )  # fmt: skip
    store_policy(shop.data, tight.document)
    for hour in range(2):
        shop.serve(tight, now=NOON + hour * HOUR)
    assert shop.audit().clean
    arms = asked(USERS, [tight], now=NOON).requests["arms"]
    assert 0 < (arms == 2).sum() < len(USERS)
    shop.serve(FREE, said=tight, now=NOON + 2 * HOUR, edit=editing("requests", "arm_bits", lambda v: arms.tolist()))
    assert shop.audit().counts == {"over_cap": len(USERS)}


def test_every_kind_of_finding_is_planted_here() -> None:
    text = Path(__file__).read_text()
    assert [kind for kind in KINDS if f'"{kind}"' not in text] == []


def run(data: Path, *arguments: str) -> Any:
    app = typer.Typer()
    app.command()(audit_command)
    return CliRunner().invoke(app, ["--data", str(data), *arguments])


def test_the_command_works_beside_the_ledger_s_owner_and_says_what_it_found(tmp_path: Path) -> None:
    shop = Shop(tmp_path, SqliteLedger(tmp_path / "ledger/ledger.sqlite", durability="process"))
    shop.serve(CAPPED, keys=True)
    clean = run(tmp_path)
    assert clean.exit_code == 0, clean.output
    assert "nothing found" in clean.output
    shop.serve(FREE, said=CAPPED, now=NOON + HOUR)
    shop.ledger.ack_records([one.id for one in shop.ledger.pending_records(100)])
    found = run(tmp_path, "--json")
    assert found.exit_code == 1
    said = json.loads(found.output)
    assert said["findings"]["over_cap"]["count"] == len(USERS)
    shop.ledger.close()
    assert run(tmp_path, "--json").exit_code == 1


def test_a_folder_without_a_ledger_says_so(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    done = run(tmp_path)
    assert done.exit_code == 0
    assert "no ledger yet" in done.output


def test_the_side_of_a_ledger_lists_its_queues(shop: Shop) -> None:
    shop.serve(QUIET)
    side: LedgerSide = of_ledger(shop.ledger)
    assert len(side.deferrals) == len(side.pending) == len(USERS)
    assert side.outbox is None
    assert audit(shop.data, side, now_us=NOON).notes != []
