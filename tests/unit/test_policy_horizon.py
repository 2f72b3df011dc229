"""A policy that looks back further than history is kept: said when checked and promoted, kept longer from then on, and said
in the answers it concerns."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hindcast import cli
from serve_app.decide import decide
from serve_app.ledger.columns import LedgerView
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import LedgerSettings, UserChanges
from serve_app.policy.document import parse_policy
from serve_app.policy.remarks import history_remark, remarks
from serve_app.serving.board import Board
from serve_app.serving.owner import StateOwner
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import StageBit
from tests.unit.decision_support import DAY, HOUR, at, batch_of, candidate, compiled, request

NOW = at("2026-03-10T12:00:00")


def cap(days: float, **more: Any) -> dict[str, Any]:
    return {"id": "c", "scope": "global", "limit": 9, "window": {"rolling_hours": 24 * days}, **more}


def test_a_window_within_what_is_kept_needs_no_word() -> None:
    assert remarks(parse_policy({"name": "a", "caps": [cap(40)]})) == []
    assert remarks(parse_policy({"name": "a", "caps": [cap(1) | {"window": {"calendar": "month"}}]})) == []


def test_a_longer_window_says_what_it_cannot_know_and_where_it_stands() -> None:
    document = parse_policy({"name": "a", "caps": [cap(1, id="b"), cap(60)]})
    (remark,) = remarks(document)
    assert remark.field == "caps.1.window"
    assert "looks back 60 days, and histories reach back 40: of older sends it cannot know" in remark.message
    assert history_remark(document, 60 * 24) is None


def test_an_arm_or_a_cell_that_lengthens_a_window_counts() -> None:
    arms = [{"id": "a", "percent": 50}, {"id": "b", "percent": 50, "overrides": {"caps.c.window.rolling_hours": 24 * 50}}]
    document = parse_policy({"name": "a", "caps": [cap(1)], "experiments": [{"id": "e", "salt": "e", "arms": arms}]})
    assert document.longest_window_hours == 24 * 50
    assert document.own_window_hours == 24
    assert [one.message[:18] for one in remarks(document)] == ["looks back 50 days"]


def test_check_and_promote_say_it_and_a_later_policy_no_longer_needs_to(tmp_path: Path) -> None:
    cli._register()
    runner, data = CliRunner(), ["--data", str(tmp_path / "data")]
    file = tmp_path / "long.yaml"
    text = "name: a\ncaps:\n  - id: c\n    scope: global\n    limit: 9\n    window: {rolling_hours: 1440}\n"
    file.write_text(text)
    checked = runner.invoke(cli.app, ["policy", "check", str(file)])
    assert checked.exit_code == 0
    assert "remark: long.yaml line 6: caps.0.window: looks back 60 days" in checked.output
    assert runner.invoke(cli.app, ["policy", "check", "--strict", str(file)]).exit_code == 1
    promoted = runner.invoke(cli.app, ["policy", "promote", str(file), *data])
    assert "looks back 60 days, and histories reach back 40" in promoted.output
    file.write_text(text.replace("limit: 9", "limit: 8"))
    assert "looks back" not in runner.invoke(cli.app, ["policy", "promote", str(file), *data]).output


class Obeyed(Board):
    """A board all of whose replicas loaded what is asked for."""

    async def prepare(self, kind: Any, version: str, timeout_s: float = 0.0) -> None:
        pass


def test_the_state_owner_keeps_histories_as_long_as_the_policies_wanted_look_back() -> None:
    ledger = MemoryLedger(LedgerSettings(history_horizon_us=10 * DAY))
    windows = {"old": 20 * DAY, "new": 60 * DAY}
    owner = StateOwner(ledger, Obeyed("r", "old"), window_us=windows.__getitem__)
    kept: list[int] = []
    ledger.set_history_horizon = kept.append  # type: ignore[method-assign]
    owner.keep_histories()
    asyncio.run(owner.prepare("policy", "new"))
    assert kept == [21 * DAY, 61 * DAY]
    owner.close()


@pytest.mark.parametrize(("since", "says"), [(NOW - DAY, []), (NOW - DAY + 1, ["decision"]), (NOW - HOUR, ["decision"])])
def test_an_answer_on_a_history_that_is_too_short_says_so(since: int, says: list[str]) -> None:
    class Short(MemoryLedger):
        def read(self, users: Any) -> LedgerView:
            view = super().read(users)
            view.known_since[:] = since
            return view

    ledger = Short()
    ledger.put_user(5, UserChanges(reachable=63, zone="Asia/Seoul", region="US"))
    policies = (compiled(caps=[cap(1)]), compiled(caps=[cap(90)]))
    asked = [request([candidate()], decided_at=NOW, policy=0)]
    out = decide(ledger, Decision(), batch_of(asked), Context(policies))
    bits = int(np.bitwise_or.reduce(out.batch.requests["degraded"]))
    assert [bit.name for bit in StageBit if bits & bit] == says
