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
    tmp_path: Path, decisions: dict[str, Any], events: dict[str, Any], held_out: int = 0, p: float = 1.0
) -> Outcomes:
    rows = len(decisions["user"])
    asked = {
        "user": decisions["user"],
        "request_id": decisions["request_id"],
        "ts": np.full(rows, AT),
        "decided_at": np.full(rows, AT),
        "surface": np.full(rows, Surface.notification, np.int8),
        "holdouts": assignments(np.array([9], np.uint64), np.full((rows, 1), held_out, np.int16), np.array([p])),
    }
    with LogWriter(tmp_path) as writer:
        writer.write("requests", fill("requests", rows, asked))
        writer.write("decisions", fill("decisions", rows, {"ts": np.full(rows, AT), **decisions}))
        count = len(events["user"])
        if count:
            ids = np.arange(1, count + 1).astype(np.uint64)
            writer.write("events", fill("events", count, {"event_id": ids, "ingested_at": events["ts"], **events}))
    folder = tmp_path / "step"
    folder.mkdir()
    collect_outcomes(tmp_path, folder, LocalRunner())
    return Outcomes.load(folder / "outcomes")


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


@pytest.mark.parametrize(("held_out", "p", "p_sent"), [(0, 0.95, 0.95), (1, 0.05, 0.95), (0, 1.0, 1.0)])
def test_the_chance_of_being_sent_is_the_designs(tmp_path: Path, held_out: int, p: float, p_sent: float) -> None:
    found = collect(tmp_path, sends([1]), happened(EventType.view, 1, 0, None), held_out, p)
    assert found.p_sent.tolist() == [pytest.approx(p_sent)]


def test_suppressed_decisions_count_only_as_a_trials_first_ghost(tmp_path: Path) -> None:
    decided = sends([1, 2, 3])
    decided["granted"] = np.array([True, False, False])
    decided["action"] = np.array([Action.send, Action.suppress, Action.suppress], np.int8)
    decided["ghost_first"] = np.array([True, True, False])
    found = collect(tmp_path, decided, happened(EventType.view, 1, 0, None))
    assert found.user.tolist() == [1, 2]
    assert found.sent.tolist() == [True, False]
    assert found.trial.tolist() == [True, True]


def test_an_empty_log_has_no_outcomes(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    folder.mkdir()
    collect_outcomes(tmp_path, folder, LocalRunner())
    assert len(Outcomes.load(folder / "outcomes")) == 0
