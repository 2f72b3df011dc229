"""The world's log: what a server's log holds, nothing of the truth, sane rates."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from serve_app.catalogue import SCHEMAS, read_catalogue
from serve_app.ids import bucket_of
from serve_app.log.schema import TABLES
from serve_app.vocabulary import Action, EventType, Reason, Surface
from simulators.world.settings import DAY_US
from tests.unit.world_log import SETTINGS, column, log_table, world_data


def _keys(table, *names):
    return list(zip(*(column(table, name).tolist() for name in names), strict=True))


def test_the_catalogue_validates_and_is_whole() -> None:
    catalogue = read_catalogue(world_data() / "catalogue")
    assert len(catalogue.items) == SETTINGS.items
    assert len(catalogue.users) == SETTINGS.users
    assert catalogue.campaigns["segment"].to_pylist() == [None] * SETTINGS.campaigns + ["window-shoppers"]
    assert len(catalogue.reviews) == SETTINGS.items * 3
    assert len(set(catalogue.reviews["text"].to_pylist())) > 100


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_table_has_rows_of_the_log_schema(table: str) -> None:
    rows = log_table(table)
    assert len(rows) > 0
    assert rows.schema.names == TABLES[table].names
    if "user_bucket" in rows.schema.names:
        assert np.array_equal(column(rows, "user_bucket"), bucket_of(column(rows, "user")))


def test_requests_decisions_and_candidates_refer_to_each_other() -> None:
    requests, candidates, decisions = (log_table(name) for name in ("requests", "candidates", "decisions"))
    known = set(_keys(requests, "user", "request_id"))
    assert len(known) == len(requests)
    assert set(_keys(candidates, "user", "request_id")) <= known
    assert set(_keys(decisions, "user", "request_id")) == known
    logged = set(_keys(candidates, "user", "request_id", "idx"))
    chosen = [key for key in _keys(decisions, "user", "request_id", "chosen_idx") if key[2] >= 0]
    assert set(chosen) <= logged


def test_full_candidate_sets_are_whole_requests_at_the_declared_rate() -> None:
    requests, candidates = log_table("requests"), log_table("candidates")
    counts = dict(zip(_keys(requests, "user", "request_id"), column(requests, "candidate_count").tolist(), strict=True))
    seen: dict[tuple[int, int], int] = {}
    for key in _keys(candidates, "user", "request_id"):
        seen[key] = seen.get(key, 0) + 1
    full = column(requests, "full")
    for key, whole in zip(_keys(requests, "user", "request_id"), full.tolist(), strict=True):
        assert not whole or seen.get(key, 0) == counts[key]
    slates = column(requests, "surface") != Surface.notification
    n, rate = int(slates.sum()), SETTINGS.slate_log_rate
    assert abs(full[slates].mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    assert full[~slates].all()


def test_events_answer_decisions_that_were_made() -> None:
    events, decisions = log_table("events"), log_table("decisions")
    attributed = events.filter(events["decision_request_id"].is_valid())
    made = set(_keys(decisions, "user", "request_id", "slot"))
    assert len(attributed) > 100
    assert set(_keys(attributed, "user", "decision_request_id", "slot")) <= made


def test_events_come_late_and_never_before_they_happen() -> None:
    events = log_table("events")
    delay = column(events, "ingested_at") - column(events, "ts")
    assert delay.min() > 0
    assert 0.01 < (delay > 3_600_000_000).mean() < 0.03
    ids = column(events, "event_id")
    assert len(np.unique(ids)) == len(ids)
    watermark = log_table("watermark")
    copies = column(watermark, "duplicates")[column(watermark, "table") == "events"].sum()
    assert 0.002 * len(events) < copies < 0.01 * len(events)


def test_the_watermark_counts_every_row() -> None:
    watermark = log_table("watermark")
    for table in ("requests", "candidates", "decisions", "events"):
        day = column(log_table(table), "ts") // DAY_US
        days, counts = np.unique(day, return_counts=True)
        own = column(watermark, "table") == table
        stated = dict(zip(column(watermark, "day")[own].tolist(), column(watermark, "rows")[own].tolist(), strict=True))
        assert stated == dict(zip(days.tolist(), counts.tolist(), strict=True)), table


def test_rates_are_those_of_a_shop() -> None:
    events, decisions = log_table("events"), log_table("decisions")
    kinds = column(events, "type")
    count = {one: int((kinds == one).sum()) for one in EventType}
    sent = int((column(decisions, "action") == Action.send).sum())
    on_campaign = events["campaign"].is_valid().to_numpy()
    clicks = int(((kinds == EventType.click) & on_campaign).sum())
    assert 0.9 < count[EventType.delivered] / sent <= 1
    assert 0.005 < count[EventType.delivery_failed] / sent < 0.05
    assert 0.02 < clicks / sent < 0.25
    assert 0 < count[EventType.opt_out] / sent < 0.01
    assert count[EventType.conversion] < count[EventType.add_to_cart] < count[EventType.view]
    sessions = len(np.unique(column(events, "session")[events["session"].is_valid().to_numpy()]))
    assert 0.12 < sessions / (SETTINGS.users * SETTINGS.days) < 0.3
    assert 0.01 < count[EventType.conversion] / sessions < 0.15


def test_all_kinds_of_events_happen() -> None:
    kinds = set(column(log_table("events"), "type").tolist())
    wanted = set(EventType) - {EventType.review}
    assert {one.name for one in wanted if int(one) not in kinds} <= {"zone", "opt_in"}


def test_refusals_have_many_reasons() -> None:
    reasons = {Reason(one).name for one in np.unique(column(log_table("decisions"), "reason"))}
    assert {"chosen", "no_consent", "frequency_capped", "below_threshold", "explored_off", "global_holdout"} <= reasons
    assert {"quiet_hours", "no_night_consent"} & reasons


def test_deferred_requests_come_back_with_their_root() -> None:
    requests = log_table("requests")
    ids = dict(zip(_keys(requests, "user", "request_id"), column(requests, "root_id").tolist(), strict=True))
    attempts = column(requests, "attempt").tolist()
    parents = column(requests, "parent_request_id").tolist()
    children = [row for row, parent in enumerate(parents) if parent]
    assert children
    users, roots = column(requests, "user").tolist(), column(requests, "root_id").tolist()
    for row in children:
        assert attempts[row] >= 1
        assert ids[users[row], parents[row]] == roots[row]


def test_nothing_of_the_truth_is_in_log_or_catalogue() -> None:
    latent = set()
    for path in (world_data() / "world").rglob("*.parquet"):
        latent |= set(pq.read_schema(path).names)
    shared = {"user", "item", "campaign", "widget", "request_id", "idx", "margin", "outcomes"}
    shown = {name for schema in (*TABLES.values(), *SCHEMAS.values()) for name in schema.names}
    assert latent - shared
    assert not (latent - shared) & shown
    for row in column(log_table("environment"), "payload"):
        assert set(json.loads(row)) <= {"policy_revision", "item_id", "available"}
    for path in world_data().rglob("*.parquet"):
        if path.relative_to(world_data()).parts[0] != "world":
            assert set(pq.read_schema(path).names) <= shown


def test_the_truth_covers_every_logged_candidate() -> None:
    candidates = log_table("candidates")
    truth = set()
    for folder in ("sends", "slates"):
        table = pq.read_table(world_data() / "world" / folder, columns=["user", "request_id", "idx"], partitioning=None)
        truth |= set(_keys(table, "user", "request_id", "idx"))
    assert set(_keys(candidates, "user", "request_id", "idx")) == truth


def test_logged_scores_are_a_noisy_reading_of_the_truth() -> None:
    requests, candidates = log_table("requests"), log_table("candidates")
    sends = {key for key, s in zip(_keys(requests, "user", "request_id"), column(requests, "surface").tolist(), strict=True)
             if s == Surface.notification}  # fmt: skip
    mine = np.array([key in sends for key in _keys(candidates, "user", "request_id")])
    rows = candidates.filter(mine)
    score = dict(zip(_keys(rows, "user", "request_id", "idx"), column(rows, "heads")[:, 0].tolist(), strict=True))
    truth = pq.read_table(world_data() / "world" / "sends", partitioning=None)
    p = column(truth, "p_click")
    own = np.array([score[key] for key in _keys(truth, "user", "request_id", "idx")])
    correlation = np.corrcoef(np.log(own), np.log(p))[0, 1]
    assert 0.5 < correlation < 0.95
    assert 0.6 < own.mean() / p.mean() < 1.7
