"""Real campaign sends, replayed under a cap of one a week: volumes beside a few lines of pandas that share nothing with the
gates; and no outcome that such a log cannot give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hindcast.importers import completejourney
from hindcast.importers.staging import import_into
from serve_app.ids import hash_id
from tests.command_line import hindcast

pytestmark = pytest.mark.shared_data

FREE = {"ad_consent_required": False, "night_consent_required": False, "ad_label": None}
WEEKS: dict[str, dict[str, Any]] = {
    "rolling": {"rolling_hours": 168},
    "calendar": {"calendar": "week"},
    "month": {"calendar": "month"},
    "fifteen-days": {"rolling_hours": 360},
}
REDEEMED_WITHIN_DAYS = 45


@pytest.fixture(scope="module")
def data(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("completejourney") / "data"
    import_into(data, lambda: completejourney.load(shared_data / "completejourney"))
    return data


@pytest.fixture(scope="module")
def report(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of one run of the command over all the policies."""
    folder = tmp_path_factory.mktemp("weeks")
    asked = []
    for name, window in WEEKS.items():
        policy = {
            "name": name, "other_regions": FREE, "message_classes": {"advertising": {"bypass_threshold": True}},
            "caps": [{"id": "one", "scope": "global", "limit": 1, "window": window}],
        }  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(policy))
        asked += ["--policy", str(folder / f"{name}.json")]
    where = ["--log", str(data), "--out", str(folder), "--attribution-hours", str(REDEEMED_WITHIN_DAYS * 24), "--in-process"]
    done = hindcast("replay", *asked, *where)
    assert done.exit_code == 0, done.text
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def sends(shared_data: Path) -> pd.DataFrame:
    """Household, campaign and start of every send, in order of time and campaign."""
    folder = shared_data / "completejourney"
    sends = pd.read_csv(folder / "campaigns.csv.gz").merge(pd.read_csv(folder / "campaign_descriptions.csv.gz"))
    sends["local"] = pd.to_datetime(sends["start_date"]).dt.tz_localize("America/New_York")
    # Campaigns that begin on one day stand in the order of their ids' texts, as in the log.
    return sends.sort_values(["local", "campaign_id"], key=lambda c: c.astype(str) if c.name == "campaign_id" else c)


def _kept_rolling(sends: pd.DataFrame, hours: int) -> pd.Series:
    window, last = pd.Timedelta(hours=hours), {}
    kept = []
    for household, at in zip(sends["household_id"], sends["local"], strict=True):
        free = household not in last or at - last[household] >= window
        kept.append(free)
        if free:
            last[household] = at
    return pd.Series(kept, index=sends.index)


def _kept_calendar(sends: pd.DataFrame, period: str) -> pd.Series:
    return ~sends.assign(of=sends["local"].dt.tz_localize(None).dt.to_period(period)).duplicated(["household_id", "of"])


def _kept(sends: pd.DataFrame, name: str) -> pd.Series:
    return {
        "rolling": lambda: _kept_rolling(sends, 168),
        "calendar": lambda: _kept_calendar(sends, "W-SUN"),
        "month": lambda: _kept_calendar(sends, "M"),
        "fifteen-days": lambda: _kept_rolling(sends, 360),
    }[name]()


def test_every_real_send_comes_out_again(report: dict[str, Any]) -> None:
    assert report["parity"]["requests"] == report["parity"]["same"] == 6_589
    assert report["parity"]["columns"] == {}


@pytest.mark.parametrize("name", WEEKS)
def test_volumes_are_those_of_a_few_lines_of_pandas(report: dict[str, Any], sends: pd.DataFrame, name: str) -> None:
    kept = _kept(sends, name)
    volume = {one["policy"]: one for one in report["volume"]}
    assert volume["logged"]["sends"] == len(sends) == 6_589
    assert volume[name]["sends"] == kept.sum()
    assert volume[name]["users_reached"] == sends["household_id"].nunique()
    capped = next((one[name] for one in report["reasons"] if one["name"] == "frequency_capped"), 0)
    assert capped == (~kept).sum()
    by_household = sends[kept].groupby("household_id").size().value_counts()
    told = {int(sent.rstrip("+")): users for sent, users in report["sends_per_user"][name].items()}
    assert told == by_household.to_dict()
    day = sends["local"].dt.tz_convert("UTC").dt.strftime("%Y-%m-%d")
    assert report["days"][name] == day[kept].value_counts().to_dict()


def test_the_policies_tell_different_stories(report: dict[str, Any], sends: pd.DataFrame) -> None:
    """Or the exact volumes above would be those of a replay that ignores what it is given."""
    withheld = {name: int((~_kept(sends, name)).sum()) for name in WEEKS}
    assert withheld["rolling"] == 37
    assert len(set(withheld.values())) >= 3
    assert withheld["calendar"] < withheld["rolling"] < withheld["fifteen-days"] < withheld["month"]


def test_redemptions_count_for_the_send_they_answer(report: dict[str, Any], sends: pd.DataFrame, shared_data: Path) -> None:
    redeemed = pd.read_csv(shared_data / "completejourney" / "coupon_redemptions.csv.gz").merge(
        sends, on=["household_id", "campaign_id"]
    )
    at = (pd.to_datetime(redeemed["redemption_date"]) + pd.Timedelta(hours=12)).dt.tz_localize("America/New_York")
    redeemed = redeemed[at - redeemed["local"] < pd.Timedelta(days=REDEEMED_WITHIN_DAYS)]
    transactions = pd.read_csv(shared_data / "completejourney" / "transactions_sample.csv.gz")["transaction_timestamp"]
    last = max(at.max(), pd.to_datetime(transactions).dt.tz_localize("UTC").max(), sends["local"].max())
    end = last.tz_convert("UTC").floor("D") + pd.Timedelta(days=1)
    whole = sends["local"] + pd.Timedelta(days=REDEEMED_WITHIN_DAYS) <= end
    counted = redeemed["local"] + pd.Timedelta(days=REDEEMED_WITHIN_DAYS) <= end
    users = sends[whole]["household_id"].nunique()
    told = [
        one["logged"]
        for one in report["outcomes"]
        if (one["policy"], one["metric"], one["per"], one["estimator"]) == ("calendar", "conversions", "user", "ips")
    ]
    assert told == [pytest.approx(counted.sum() / users, rel=1e-12)]


def test_no_outcome_of_withholding_is_told_where_nothing_was_ever_withheld(report: dict[str, Any]) -> None:
    """The naive reading of these data is that more messages bring more redemptions; who gets many was chosen, not drawn."""
    changed = [name for name in WEEKS if name != "calendar"]
    for name in changed:
        told = [one for one in report["outcomes"] if one["policy"] == name]
        assert told
        for one in told:
            assert one["standing"] == "refused", one
            assert "difference" not in one
            assert any("could not be logged" in why for why in one["reasons"]), one["reasons"]


def test_a_guardrail_on_such_outcomes_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "rails.yaml").write_text("conversion_rate: {max_decrease: {relative: 0.5}}\n")
    policy = {
        "name": "rolling", "other_regions": FREE, "message_classes": {"advertising": {"bypass_threshold": True}},
        "caps": [{"id": "one", "scope": "global", "limit": 1, "window": {"rolling_hours": 168}}],
    }  # fmt: skip
    (tmp_path / "rolling.json").write_text(json.dumps(policy))
    where = ["--log", str(data), "--out", str(tmp_path), "--policy", str(tmp_path / "rolling.json"), "--in-process"]
    done = hindcast("replay", *where, "--guardrails", str(tmp_path / "rails.yaml"))
    assert done.exit_code == 12, done.text


def test_the_campaigns_withheld_most_are_named(report: dict[str, Any], sends: pd.DataFrame) -> None:
    kept = _kept(sends, "fifteen-days")
    lost = sends[~kept].groupby("campaign_id").size().sort_values(ascending=False)
    rows = {one["name"]: one["logged"] - one["fifteen-days"] for one in report["by"]["campaign"]}
    worst = int(lost.index[0])
    named = next(
        n for name, n in rows.items() if name in (str(worst), f"{hash_id(str(worst)):016x}") or f" {worst} " in name
    )
    assert named == lost.iloc[0]
    assert np.sum(list(rows.values())) <= (~kept).sum()
