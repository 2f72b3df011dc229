"""The reference values on the Open Bandit sample, from its rows, to 1e-9; and verdicts there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulators.estimators import DM, DR, IPS, SNDR, SNIPS, DRos, Estimated, Per, Rows, Suite, SwitchDR, checked_rows

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
