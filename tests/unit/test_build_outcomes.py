"""Outcomes: which events count for a decision, and what a holdout's trial says of sending."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.log.rows import assignments, fill
from serve_app.log.writer import LogWriter
from serve_app.release.build.outcomes import ATTRIBUTION_US, Outcomes, collect_outcomes
from serve_app.release.build.runner import LocalRunner
from serve_app.vocabulary import Action, EventType, Surface

AT = 1_760_000_000_000_000
HOUR = 3_600_000_000


def collect(
    tmp_path: Path,
    decisions: dict[str, Any],
    events: dict[str, Any],
    held_out: int = 0,
    p: float = 1.0,
    ghosts: dict[str, Any] | None = None,
) -> Outcomes:
    both = [decisions] + ([ghosts] if ghosts else [])
    user, request_id = (np.concatenate([one[name] for one in both]) for name in ("user", "request_id"))
    rows = len(user)
    asked = {
        "user": user,
        "request_id": request_id,
        "ts": np.full(rows, AT),
        "decided_at": np.full(rows, AT),
        "surface": np.full(rows, Surface.notification, np.int8),
        "holdouts": assignments(np.array([9], np.uint64), np.full((rows, 1), held_out, np.int16), np.array([p])),
    }
    with LogWriter(tmp_path) as writer:
        writer.write("requests", fill("requests", rows, asked))
        done = len(decisions["user"])
        writer.write("decisions", fill("decisions", done, {"ts": np.full(done, AT), **decisions}))
        if ghosts:
            silenced = len(ghosts["user"])
            writer.write("candidates", fill("candidates", silenced, {"ts": np.full(silenced, AT), **ghosts}))
        count = len(events["user"])
        if count:
            ids = np.arange(1, count + 1).astype(np.uint64)
            writer.write("events", fill("events", count, {"event_id": ids, "ingested_at": events["ts"], **events}))
    folder = tmp_path / "step"
    folder.mkdir()
    collect_outcomes(tmp_path, folder, LocalRunner())
    return Outcomes.load(folder / "outcomes")


def silenced(users: list[int], **columns: Any) -> dict[str, Any]:
    count = len(users)
    return {
        "user": np.array(users, np.uint64),
        "request_id": np.arange(200, 200 + count).astype(np.uint64),
        "slot": np.full(count, -1, np.int32),
        "action": np.full(count, Action.suppress, np.int8),
        "campaign": np.full(count, 7, np.uint64),
        "ghost": np.ones(count, np.bool_),
        "ghost_first": np.ones(count, np.bool_),
        **columns,
    }


def sends(users: list[int], **columns: Any) -> dict[str, Any]:
    count = len(users)
    return {
        "user": np.array(users, np.uint64),
        "request_id": np.arange(100, 100 + count).astype(np.uint64),
        "surface": np.full(count, Surface.notification, np.int8),
        "slot": np.zeros(count, np.int32),
        "action": np.full(count, Action.send, np.int8),
        "granted": np.ones(count, np.bool_),
        **columns,
    }


def happened(kind: EventType, user: int, after_us: int, request: int | None) -> dict[str, Any]:
    return {
        "user": np.array([user], np.uint64),
        "ts": np.array([AT + after_us]),
        "type": np.array([kind], np.int8),
        "decision_request_id": None if request is None else np.array([request], np.uint64),
        "slot": None if request is None else np.zeros(1, np.int32),
    }


@pytest.mark.parametrize(
    ("kind", "after_us", "request_id", "clicked"),
    [
        (EventType.click, HOUR, 100, True),
        (EventType.click, ATTRIBUTION_US, 100, True),
        (EventType.click, ATTRIBUTION_US + 1, 100, False),
        (EventType.click, HOUR, 101, False),
        (EventType.click, HOUR, None, False),
        (EventType.view, HOUR, 100, False),
    ],
)
def test_a_click_counts_for_the_decision_it_names_within_the_window(
    tmp_path: Path, kind: EventType, after_us: int, request_id: int | None, clicked: bool
) -> None:
    found = collect(tmp_path, sends([1]), happened(kind, 1, after_us, request_id))
    assert found.clicked.tolist() == [clicked]


def test_another_users_event_with_the_same_request_id_does_not_count(tmp_path: Path) -> None:
    found = collect(tmp_path, sends([1]), happened(EventType.click, 2, HOUR, 100))
    assert found.clicked.tolist() == [False]


@pytest.mark.parametrize(("after_us", "bought"), [(-1, False), (0, False), (1, True), (ATTRIBUTION_US + 1, False)])
def test_a_purchase_is_a_user_outcome_whatever_led_there(tmp_path: Path, after_us: int, bought: bool) -> None:
    found = collect(tmp_path, sends([1]), happened(EventType.conversion, 1, after_us, None))
    assert (found.bought.tolist(), found.converted.tolist()) == ([bought], [False])


def test_the_chance_of_being_sent_is_the_designs_in_both_arms(tmp_path: Path) -> None:
    sent = collect(tmp_path / "sent", sends([1]), happened(EventType.view, 1, 0, None), held_out=0, p=0.95)
    nothing = sends([2], action=np.full(1, Action.suppress, np.int8), granted=np.zeros(1, np.bool_))
    view = happened(EventType.view, 1, 0, None)
    held = collect(tmp_path / "held", nothing, view, held_out=1, p=0.05, ghosts=silenced([1]))
    assert [*sent.p_sent, *held.p_sent] == [pytest.approx(0.95)] * 2
    assert [*sent.sent, *held.sent] == [True, False]


def test_a_holdout_that_lets_a_held_out_user_have_the_campaign_does_not_cover_it(tmp_path: Path) -> None:
    sent = sends([1], campaign=np.array([8], np.uint64))
    ghosts = silenced([2, 3], campaign=np.array([7, 8], np.uint64))
    found = collect(tmp_path, sent, happened(EventType.view, 1, 0, None), held_out=1, p=0.2, ghosts=ghosts)
    of_campaign = dict(zip(found.campaign.tolist(), found.p_sent.tolist(), strict=True))
    assert of_campaign == {8: 1.0, 7: pytest.approx(0.8)}


def test_the_held_out_arm_knows_its_message_and_only_first_ghosts_count(tmp_path: Path) -> None:
    decided = sends([1, 2], granted=np.array([True, False]), ghost_first=np.array([True, False]))
    decided["action"] = np.array([Action.send, Action.suppress], np.int8)
    ghosts = silenced([2, 3], ghost_first=np.array([True, False]))
    found = collect(tmp_path, decided, happened(EventType.view, 1, 0, None), ghosts=ghosts)
    assert found.user.tolist() == [1, 2]
    assert found.campaign.tolist() == [0, 7]
    assert found.sent.tolist() == [True, False]
    assert found.trial.tolist() == [True, True]


def test_an_empty_log_has_no_outcomes(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    folder.mkdir()
    collect_outcomes(tmp_path, folder, LocalRunner())
    assert len(Outcomes.load(folder / "outcomes")) == 0
