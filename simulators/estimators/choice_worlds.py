"""Small worlds of choices: users who differ, contexts that persist, flips with known probability, a known true value.

One decision offers three messages or none. The logging policy takes its favourite of the context with probability
1 - epsilon, each other choice with epsilon / 3; the target has other favourites. A click on message a in context x has
probability logistic(base + effect[x, a] + b) with b of the user, N(0, sd), which no policy sees. Users have their own number
of decisions and a context they mostly stay in, so rows of a user resemble each other: the design effect.

The superpopulation value needs no simulation: contexts are few, and b is integrated by Gauss-Hermite quadrature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulators.estimators.outcome_model import OutcomeSettings, fit_outcome_model
from simulators.estimators.rows import Rows, checked_rows

__all__ = ["CHOICE_WORLDS", "ChoiceWorld", "true_value", "world_rows"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

CONTEXTS, ACTIONS = 3, 4
_EFFECT = np.array([[0.0, 0.5, -0.3, 0.1], [0.0, -0.2, 0.6, 0.0], [0.0, 0.1, 0.0, 0.7]])
_LOGGED_BEST = np.array([2, 1, 1])
_TARGET_BEST = np.array([1, 1, 3])
METRICS = ("click", "revenue")
_SPREAD = 0.5  # of log revenue, whose mean is 1


@dataclass(frozen=True, slots=True)
class ChoiceWorld:
    """Parameters of a superpopulation. overlap: False: the logging policy never takes message 3, the target does."""

    name: str
    users: int
    epsilon: float
    target_epsilon: float
    sd: float
    mean_decisions: float
    base: float = -1.2
    persistence: float = 0.7
    overlap: bool = True

    def logged(self) -> F64:
        """f64[context, action]: the logging policy."""
        p = np.full((CONTEXTS, ACTIONS), self.epsilon / (ACTIONS - 1))
        p[np.arange(CONTEXTS), _LOGGED_BEST] = 1 - self.epsilon
        if not self.overlap:
            p[:, 3] = 0.0
            p[np.arange(CONTEXTS), _LOGGED_BEST] += self.epsilon / (ACTIONS - 1)
        return p

    def target(self) -> F64:
        """f64[context, action]: the target policy."""
        p = np.full((CONTEXTS, ACTIONS), self.target_epsilon / (ACTIONS - 1))
        p[np.arange(CONTEXTS), _TARGET_BEST] = 1 - self.target_epsilon
        return p

    def largest_weight(self) -> float:
        """The bound that rejection replay needs."""
        return float(np.max(self.target() / self.logged()))


CHOICE_WORLDS = (
    ChoiceWorld("few users, little exploration", 1000, 0.30, 0.10, 0.7, 8.0),
    ChoiceWorld("many users, little exploration", 2500, 0.30, 0.10, 0.7, 8.0),
    ChoiceWorld("few users, much exploration", 1000, 0.60, 0.20, 0.7, 8.0),
    ChoiceWorld("many users, much exploration", 2500, 0.60, 0.20, 0.7, 8.0),
    ChoiceWorld("thin exploration", 800, 0.12, 0.05, 0.7, 6.0),
    ChoiceWorld("rare clicks", 2500, 0.60, 0.20, 0.7, 8.0, base=-3.0),
    ChoiceWorld("some clustering", 1000, 0.75, 0.50, 1.2, 10.0, persistence=0.9),
    ChoiceWorld("clusters", 1000, 0.75, 0.50, 1.6, 14.0, persistence=0.9),
    ChoiceWorld("strong clusters", 1000, 0.75, 0.60, 2.0, 24.0, persistence=0.95),
    ChoiceWorld("very strong clusters", 600, 0.75, 0.70, 2.5, 48.0, persistence=0.95),
)


def true_value(world: ChoiceWorld, policy: F64 | None = None) -> float:
    """Clicks (and, its mean being 1, revenue) per decision in the superpopulation, to rounding. Contexts are drawn evenly
    and apart from b, and so is the number of decisions: per user it is this times the mean number of decisions.
    policy f64[context, action]: None is the target."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(80)
    target, total = world.target() if policy is None else policy, 0.0
    for x in range(CONTEXTS):
        for a in range(1, ACTIONS):
            click = 1 / (1 + np.exp(-(world.base + _EFFECT[x, a] + world.sd * nodes)))
            total += target[x, a] * float((click * masses).sum() / masses.sum()) / CONTEXTS
    return total


def world_rows(world: ChoiceWorld, seed: int, *, model: bool = True) -> Rows:
    """Rows of fresh users under the logging policy, with an outcome model fitted on them (cross-fitted) where wanted."""
    rng = np.random.default_rng([seed, world.users])
    count = 1 + rng.poisson(rng.gamma(2.0, (world.mean_decisions - 1) / 2.0, world.users))
    user = np.repeat(np.arange(world.users), count)
    home = rng.integers(0, CONTEXTS, world.users)[user]
    n = len(user)
    context = np.where(rng.random(n) < world.persistence, home, rng.integers(0, CONTEXTS, n))
    logged, target = world.logged(), world.target()
    action = (rng.random(n)[:, None] > np.cumsum(logged, axis=1)[context]).sum(axis=1).clip(0, ACTIONS - 1)
    b = (world.sd * rng.standard_normal(world.users))[user]
    sent = action > 0
    click = sent & (rng.random(n) < 1 / (1 + np.exp(-(world.base + _EFFECT[context, action] + b))))
    revenue = click * np.exp(_SPREAD * rng.standard_normal(n) - _SPREAD**2 / 2)
    reward = np.stack([click, revenue], axis=1).astype(np.float64)
    q_logged, q_target = _model(user.astype(np.uint64), context, action, reward, target) if model else (None, None)
    return checked_rows(
        user, logged[context, action], target[context, action], reward, send=sent, target_send=1 - target[context, 0],
        unsupported=np.where(logged == 0, target, 0.0).sum(axis=1)[context], q_logged=q_logged, q_target=q_target,
        on_bad="error",
    )  # fmt: skip


def _model(user: npt.NDArray[np.uint64], context: I64, action: I64, reward: F64, target: F64) -> tuple[F64, F64]:
    """A misspecified model (no interaction of context and message), fitted on clicks of sends; none earns nothing."""
    sent = np.flatnonzero(action > 0)
    names = [f"context {x}" for x in range(1, CONTEXTS)] + [f"message {a}" for a in range(2, ACTIONS)]
    settings = OutcomeSettings(kind="logistic", l2=1.0)
    fitted = fit_outcome_model(
        user[sent], _features(context[sent], action[sent]), reward[sent, :1],
        feature_names=names, metrics=METRICS[:1], settings=settings,
    )  # fmt: skip
    q = np.zeros((len(user), ACTIONS))
    for a in range(1, ACTIONS):
        q[:, a] = fitted.predict(user, _features(context, np.full(len(user), a)))[:, 0]
    of_logged = q[np.arange(len(user)), action]
    of_target = np.zeros(len(user))
    for a in range(1, ACTIONS):
        of_target += target[context, a] * q[:, a]
    return np.stack([of_logged] * 2, axis=1), np.stack([of_target] * 2, axis=1)[:, None, :]


def _features(context: I64, action: I64) -> npt.NDArray[np.float32]:
    columns = [context == x for x in range(1, CONTEXTS)] + [action == a for a in range(2, ACTIONS)]
    return np.stack(columns, axis=1).astype(np.float32)
