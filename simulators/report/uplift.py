"""Could it be told beforehand whom a message moves? A score fitted on some users of a holdout's trial, tried on the others.

The score is the difference of two ridge regressions of the outcome, one an arm (a "T-learner": Kuenzel et al. 2019,
"Metalearners for estimating heterogeneous treatment effects"), on what was known at the trigger. Users are cut into three
folds by a hash; each is scored by a model that never saw it. Qini and AUUC are `simulators.estimators.qini`'s, with its
user bootstrap; a random score goes the same way as a control, and its interval must cover 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.noise import hash_key, salt_of
from simulators.estimators import Qini, score_edges
from simulators.estimators.intervals import Interval
from simulators.replay.trials import OUTCOMES
from simulators.replay.uplift import TrialSample

__all__ = ["crossed_scores", "uplift_of"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_FOLDS = 3
_FOLD, _RANDOM = salt_of("folds of an uplift score"), salt_of("a random uplift score")
_FEWEST = 300  # users of the smaller arm, of whom two thirds fit
_EARNED = 30
_RIDGE = 1.0
_OUTCOME = "conversions"
_POINTS = 200
_FORMULA = (
    "Qini: q(φ) = (Y_sent(φ) − Y_held(φ) · N_sent(φ) / N_held(φ)) / N_sent(1) among the share φ of best scores; the "
    "coefficient is the area between q and the straight line to q(1) (Radcliffe 2007). AUUC: the area below u(φ) = "
    "(Y_sent(φ) / N_sent(φ) − Y_held(φ) / N_held(φ)) · φ (Gutierrez and Gérardy 2017)."
)


def uplift_of(sample: TrialSample, known: tuple[str, ...]) -> dict[str, Any]:
    """Curve, coefficient, AUUC with intervals, and the control; `refused` with the reason where users are too few. known:
    names of the sample's columns."""
    outcome = sample.outcome[:, OUTCOMES.index(_OUTCOME)].astype(np.float64)
    arms = [int(sample.sent.sum()), int((~sample.sent).sum())]
    said: dict[str, Any] = {"outcome": _OUTCOME, "refused": "", "formula": _FORMULA, "about": "", "users": len(outcome)}
    if min(arms) < _FEWEST:
        return {**said, "refused": f"{min(arms):,} users in the smaller arm; {_FEWEST} are needed to fit a score and try it"}
    earned = min(int((outcome[sample.sent == arm] > 0).sum()) for arm in (True, False))
    if earned < _EARNED:
        return {**said, "refused": f"{earned} users of an arm had any {_OUTCOME}; {_EARNED} are needed"}
    scores = crossed_scores(sample, outcome)
    chance = hash_key(_RANDOM, sample.user).astype(np.float64)
    found, random = (_qini(sample, one, outcome) for one in (scores, chance))
    step = max(len(found.share) // _POINTS, 1)
    places = np.unique(np.append(np.arange(0, len(found.share), step), len(found.share) - 1))
    about = (
        f"Score: difference of two ridge regressions on {', '.join(known)}; {len(outcome):,} of {sample.users:,} users, "
        f"{_FOLDS} folds by a hash, each scored by a model that never saw it; 1,000 bins; 200 bootstrap samples of users."
    )
    return {
        **said, "about": about, "share": found.share[places].tolist(), "gained": found.qini[places].tolist(),
        "coefficient": _plain(found.coefficient, found.coefficient_interval),
        "auuc": _plain(found.auuc, found.auuc_interval),
        "excess": _plain(found.auuc_excess, found.auuc_excess_interval),
        "random": _plain(random.coefficient, random.coefficient_interval),
    }  # fmt: skip


def _plain(value: float, interval: Interval) -> dict[str, float]:
    return {"value": value, "low": interval.low, "high": interval.high}


def _qini(sample: TrialSample, scores: F64, outcome: F64) -> Any:
    qini = Qini(score_edges(scores))
    qini.update(sample.user, scores, sample.sent, outcome)
    return qini.result()


def crossed_scores(sample: TrialSample, outcome: F64) -> F64:
    """f64[n]: each user's expected gain, by models of the other folds, as a rank within the fold (folds' scores need not
    be on one scale)."""
    fold = (hash_key(_FOLD, sample.user) % np.uint64(_FOLDS)).astype(np.int64)
    table: F64 = _standard(sample.known.astype(np.float64))
    scores: F64 = np.zeros(len(outcome))
    for one in range(_FOLDS):
        mine, others = np.flatnonzero(fold == one), fold != one
        fits = [
            _ridge(table[others & (sample.sent == arm)], outcome[others & (sample.sent == arm)]) for arm in (True, False)
        ]
        gain: F64 = table[mine] @ (fits[0] - fits[1])
        rank: F64 = np.empty(len(mine))
        rank[np.lexsort((sample.user[mine], gain))] = (np.arange(len(mine)) + 0.5) / len(mine)
        scores[mine] = rank
    return scores


def _standard(values: F64) -> F64:
    """Columns of mean 0 and spread 1, and one of ones."""
    spread = values.std(axis=0)
    centred = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    out: F64 = np.column_stack([np.ones(len(values)), centred])
    return out


def _ridge(table: F64, outcome: F64) -> F64:
    penalty: F64 = np.full(table.shape[1], _RIDGE)
    penalty[0] = 0.0
    return np.asarray(np.linalg.solve(table.T @ table + np.diag(penalty), table.T @ outcome), np.float64)
