"""The importers on the whole public data sets."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pytest

from hindcast.importers import completejourney, online_retail, sessions
from hindcast.importers.staging import import_into
from serve_app.catalogue import read_catalogue
from serve_app.log.check import check_log
from serve_app.log.reader import read_log
from serve_app.vocabulary import Action, EventType

pytestmark = pytest.mark.shared_data


def test_the_whole_shop_imports_and_every_row_is_accounted_for(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "online_retail_uci"
    data = tmp_path / "data"
    report = import_into(data, lambda: online_retail.load(source))
    assert report.rows_in == 541_909
    assert sum(report.kept.values()) + sum(report.refused.values()) == report.rows_in
    assert 500_000 < sum(report.kept.values()) < 530_000
    assert check_log(data).problems == []
    events = read_log(data, "events", columns=["user", "ts", "amount", "quantity", "session", "type"])
    assert len(events) == sum(report.kept.values())
    assert pc.min(events["quantity"]).as_py() > 0
    assert pc.min(events["amount"]).as_py() >= 0
    catalogue = read_catalogue(data / "catalogue")
    # Zones for everyone but those whose country is no country.
    assert 0 < sum(one == "" for one in catalogue.users["zone"].to_pylist()) < 20
    assert "" not in catalogue.items["title"].to_pylist()
    assert not set(catalogue.items["item_id"].to_pylist()) & {"POST", "D", "M", "DOT", "BANK CHARGES", "AMAZONFEE"}
    # The shop is open from six to nine in the evening, London time, in winter and summer.
    hours = (events["ts"].to_numpy() // 3_600_000_000) % 24
    assert hours.min() >= 5
    assert hours.max() <= 20


def test_campaign_sends_and_redemptions_are_linked(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "completejourney"
    data = tmp_path / "data"
    report = import_into(data, lambda: completejourney.load(source))
    assert report.kept["send"] == 6_589
    assert report.kept["redemption"] == 2_102
    assert check_log(data).problems == []
    decisions = read_log(data, "decisions")
    assert len(decisions) == 6_589
    assert set(decisions["action"].to_pylist()) == {Action.send}
    assert (decisions["p_action"].to_numpy() == 1.0).all()
    assert decisions["forced"].to_numpy().all(), "nothing is known of how they were chosen"
    events = read_log(data, "events")
    redeemed = events.filter(pc.and_(pc.equal(events["type"], EventType.conversion), pc.is_valid(events["campaign"])))
    answered = redeemed["decision_request_id"].drop_null().to_pylist()
    assert len(answered) == len(redeemed) == 2_102
    sent = dict(zip(decisions["request_id"].to_pylist(), decisions["ts"].to_pylist(), strict=True))
    assert all(sent[one] < at for one, at in zip(answered, redeemed["ts"].to_pylist(), strict=True))
    assert len(read_catalogue(data / "catalogue").campaigns) == 27


def test_sessions_keep_their_clicks_in_order(shared_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    report = import_into(data, lambda: sessions.load(shared_data / "diginetica"))
    assert report.kept == {"session": 186_670}
    assert report.synthetic_clock
    events = read_log(data, "events", columns=["session", "position", "ts"])
    assert pc.count_distinct(events["session"]).as_py() == 186_670
    ordered = events.to_pandas().sort_values(["session", "ts"])
    steps = ordered.groupby("session")["position"].diff().dropna()
    assert (steps == 1).all()
    assert len(read_catalogue(data / "catalogue").items) == 43_097
