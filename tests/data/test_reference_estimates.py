"""The reference values on the Open Bandit sample, from its rows, to 1e-9; and verdicts there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulators.estimators import (
    DM,
    DR,
    IPS,
    SNDR,
    SNIPS,
    DRos,
    Estimated,
    Per,
    Qini,
    Rows,
    Suite,
    SwitchDR,
    Trial,
    checked_rows,
    score_edges,
)

pytestmark = pytest.mark.shared_data

CASES = ("random->bts all", "bts->random all", "random->bts men", "bts->random men")
NAMES = {
    "ipw": "ips", "snipw": "snips", "dm": "dm", "dr": "dr", "sndr": "sndr", "switch-dr (lambda=10)": "switch-dr",
    "dr-os (lambda=10)": "dros",
}  # fmt: skip


def rows_of(shared_data: Path, case: str) -> Rows:
    pair, campaign = case.split()
    behaviour, target = pair.split("->")
    table = pd.read_csv(shared_data / "obd" / "derived" / f"rows_{behaviour}_to_{target}_{campaign}.csv.gz")
    columns = {name: table[name].to_numpy(np.float64) for name in table.columns}
    return checked_rows(
        np.arange(len(table)), columns["pscore"], columns["target_prob"], columns["reward"],
        q_logged=columns["q_logged"], q_target=columns["q_target"],
    )  # fmt: skip


def suite_of(shared_data: Path, case: str) -> Suite:
    names = (["target"], ["click"])
    grid = (10.0,)
    suite = Suite([IPS(*names), SNIPS(*names), DM(*names), DR(*names), SNDR(*names), SwitchDR(*names, grid=grid),
                   DRos(*names, grid=grid)])  # fmt: skip
    suite.update(rows_of(shared_data, case))
    return suite


@pytest.mark.parametrize("case", CASES)
def test_every_named_estimator_gives_the_reference_value(shared_data: Path, case: str) -> None:
    reference = json.loads((shared_data / "obd" / "derived" / "reference_values.json").read_text())[case]
    suite = suite_of(shared_data, case)
    assert set(reference["values"]) == set(NAMES)
    for name, value in reference["values"].items():
        assert suite[NAMES[name]].point("target", "click", Per.decision).value == pytest.approx(value, abs=1e-9, rel=0)
    found = suite.weights_of("ips", "target")
    assert found.ess_rows == pytest.approx(reference["ess"], rel=1e-9)
    assert found.ess_users == pytest.approx(reference["ess"], rel=1e-9)
    assert found.largest_weight == pytest.approx(reference["max_weight"], rel=1e-9)


def test_small_effective_samples_are_called_weak(shared_data: Path) -> None:
    found = [one for one in suite_of(shared_data, "bts->random all").estimates() if one.subject.versus is None]
    assert all(isinstance(one, Estimated) and one.verdict.standing == "weak" for one in found)
    assert "effective sample size 340" in " ".join(found[0].verdict.reasons)


ARMS = ("No E-Mail", "Mens E-Mail", "Womens E-Mail")
EFFECTS = {  # effect, low, high: difference of means, unpooled variance, z
    ("Mens E-Mail", "visit"): (0.07659, 0.06995, 0.08323),
    ("Mens E-Mail", "conversion"): (0.006805, 0.005000, 0.008610),
    ("Mens E-Mail", "spend"): (0.7698, 0.4851, 1.0545),
    ("Womens E-Mail", "visit"): (0.04523, 0.03889, 0.05157),
}


@pytest.fixture(scope="module")
def hillstrom(shared_data: Path) -> pd.DataFrame:
    return pd.read_csv(shared_data / "hillstrom" / "hillstrom.csv.gz")


def test_hillstroms_effects_and_intervals_are_reproduced(hillstrom: pd.DataFrame) -> None:
    outcomes = ["visit", "conversion", "spend"]
    trial = Trial(ARMS, outcomes, ["history", "recency"])
    arm = hillstrom["treatment"].map({name: i for i, name in enumerate(ARMS)})
    trial.update(np.arange(len(hillstrom), dtype=np.uint64), arm, hillstrom[outcomes], hillstrom[["history", "recency"]])
    assert trial.sample_ratio([1 / 3] * 3).p_value == pytest.approx(0.904, abs=5e-4)
    for (name, outcome), published in EFFECTS.items():
        found = trial.effect(name, outcome)
        digits = 5e-5 if outcome == "spend" else 5e-7 if outcome == "conversion" else 5e-6
        assert (found.value, found.interval.low, found.interval.high) == pytest.approx(published, abs=digits)
        sent, none = (hillstrom.loc[hillstrom["treatment"] == one, outcome] for one in (name, ARMS[0]))
        reach = 1.959963984540054 * np.sqrt(sent.var() / len(sent) + none.var() / len(none))
        value = sent.mean() - none.mean()
        assert (found.value, found.interval.low, found.interval.high) == pytest.approx(
            (value, value - reach, value + reach), abs=1e-6
        )
        assert 0 <= trial.cuped(name, outcome).variance_removed < 0.01


def test_a_random_score_finds_nobody_in_hillstrom(hillstrom: pd.DataFrame) -> None:
    two = hillstrom[hillstrom["treatment"] != ARMS[2]]
    score = np.random.default_rng(1).random(len(two))
    qini = Qini(score_edges(score), replicates=100)
    treated = (two["treatment"] == ARMS[1]).to_numpy()
    qini.update(np.arange(len(two), dtype=np.uint64), score, treated, two["visit"].to_numpy(np.float64))
    found = qini.result()
    assert found.coefficient_interval.covers(0.0)
    assert found.auuc_excess_interval.covers(0.0)
    assert found.qini[-1] == pytest.approx(EFFECTS["Mens E-Mail", "visit"][0], abs=5e-6)
