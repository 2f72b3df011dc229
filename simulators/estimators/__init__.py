"""Off-policy estimators: what a policy would have brought, from the log of another, and how far to trust the number.

=================== ============================================================ =======================================
name                assumes                                                      use it
=================== ============================================================ =======================================
``IPS``             right propensities; the target does only what the log could  reference; per user totals, by channel
``SNIPS``           the same; many users                                         default for attributed rewards
``DM``              the outcome model is right                                   to see what the model says; never alone
``DR``              right propensities *or* a right model                        default where a model is fitted
``SNDR``            as DR; many users                                            DR with large weights
``RejectionReplay`` right propensities, a bound on weights                       exact binomial intervals
``Cells``           cells were drawn at random for whole epochs                  caps, quiet hours, fatigue, thresholds
``SwitchDR``        the model is right where weights are large                   sensitivity; biased
``DRos``            the same, smoothly                                           sensitivity; biased
``RIPS``            a slot's reward depends on it and the slots above            lists
``CascadeDR``       the same, or a right model                                   lists, with a model
``IIPS``            a slot's reward depends on that slot alone                   lists; marginals are simulated
``MIPS``            the reward depends on the choice by an attribute alone       many choices, little overlap
``WindowedIPS``     what was decided before the horizon has no effect            to see carry-over, at H and 2H; biased
=================== ============================================================ =======================================

All take `Rows` (`checked_rows`: bad propensities are errors or counted exclusions), hold exact mergeable sums over users,
and answer with user-clustered intervals and paired differences. `Suite` runs several in one pass and judges them:
`Estimated` has a value, `Refused` has none. Incrementality from holdouts and ghosts:
`trial_rows` -> `Trial` (intention to treat, CUPED, ratios, net value, sample ratio) and `Qini`. The outcome model that DM,
DR and their kin need is fitted by `simulators.estimators.outcome_model`, which imports XGBoost and so is not imported here.

``python -m simulators.estimators.coverage`` measures all this: in 2,000 small worlds with a known truth, 95 % intervals of
IPS, SNIPS, DR, SNDR, rejection replay and cells cover it 94 to 96 % of the time; those that take rows for independent 60 %
of the time where rows of a user are alike (`coverage.svg`).
"""

from simulators.estimators.cascade_dr import CascadeDR
from simulators.estimators.cells import Cells
from simulators.estimators.diagnostics import Diagnostics, PolicyDiagnostics
from simulators.estimators.dm import DM
from simulators.estimators.dr import DR
from simulators.estimators.dros import DRos
from simulators.estimators.estimator import LOGGED, Estimator, Grouping
from simulators.estimators.iips import IIPS
from simulators.estimators.incrementality import Trial
from simulators.estimators.intervals import (
    Interval,
    clopper_pearson,
    clustered,
    confidence_sequence,
    empirical_bernstein,
    spent_level,
)
from simulators.estimators.ips import IPS
from simulators.estimators.mips import MIPS
from simulators.estimators.planning import Plan, minimum_detectable, plan_for
from simulators.estimators.qini import Qini, score_edges
from simulators.estimators.rejection import RejectionReplay
from simulators.estimators.rips import RIPS
from simulators.estimators.rows import FAULTS, Rows, checked_rows
from simulators.estimators.settings import EstimateSettings, VerdictSettings
from simulators.estimators.sndr import SNDR
from simulators.estimators.snips import SNIPS
from simulators.estimators.srm import sample_ratio
from simulators.estimators.suite import Suite
from simulators.estimators.switch_dr import SwitchDR
from simulators.estimators.trigger import TrialRows, trial_rows
from simulators.estimators.verdicts import Estimate, Estimated, Per, Refused, Standing, Subject, Trust, Verdict
from simulators.estimators.windowed import WindowedIPS

__all__ = [
    "DM",
    "DR",
    "FAULTS",
    "IIPS",
    "IPS",
    "LOGGED",
    "MIPS",
    "RIPS",
    "SNDR",
    "SNIPS",
    "CascadeDR",
    "Cells",
    "DRos",
    "Diagnostics",
    "Estimate",
    "EstimateSettings",
    "Estimated",
    "Estimator",
    "Grouping",
    "Interval",
    "Per",
    "Plan",
    "PolicyDiagnostics",
    "Qini",
    "Refused",
    "RejectionReplay",
    "Rows",
    "Standing",
    "Subject",
    "Suite",
    "SwitchDR",
    "Trial",
    "TrialRows",
    "Trust",
    "Verdict",
    "VerdictSettings",
    "WindowedIPS",
    "checked_rows",
    "clopper_pearson",
    "clustered",
    "confidence_sequence",
    "empirical_bernstein",
    "minimum_detectable",
    "plan_for",
    "sample_ratio",
    "score_edges",
    "spent_level",
    "trial_rows",
]
