"""RLlib's importance sampling on a file, timed: run by `loadtests.bench_ope` with the Python of `make bench-peers`.

Prints one line of JSON. The target policy is a softmax over linear scores of the observation, in numpy, so that no framework
for deep learning stands between RLlib and its data. Imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import ray.data
from ray.rllib.offline.estimators import ImportanceSampling, WeightedImportanceSampling
from ray.rllib.policy.policy import Policy


class Softmax(Policy):
    """Probabilities softmax(obs @ weights); `config["weights"]` f64[D, A]."""

    def __init__(self, observation_space: Any, action_space: Any, config: dict[str, Any]) -> None:
        super().__init__(observation_space, action_space, config)
        self._weights = np.array(config["weights"])

    def compute_log_likelihoods(self, actions: Any, obs_batch: Any, *_: Any, **__: Any) -> Any:
        """f64[n]."""
        scores = np.asarray(obs_batch) @ self._weights
        scores -= scores.max(axis=1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return logs[np.arange(len(logs)), np.asarray(actions).astype(int)]

    def get_weights(self) -> Any:
        """All there is to the policy."""
        return self._weights

    def set_weights(self, weights: Any) -> None:
        """Of `get_weights`."""
        self._weights = weights

    def compute_actions(self, *_: Any, **__: Any) -> Any:
        """Not asked for here."""
        raise NotImplementedError


def main(file: str, weights: str, cpus: int) -> None:
    """Start Ray, warm it up, estimate twice; print what came out and how long it took."""
    ray.init(num_cpus=cpus, log_to_driver=False, logging_level="error", include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    table = json.loads(weights)
    spaces = gym.spaces.Box(-10, 10, (len(table),)), gym.spaces.Discrete(len(table[0]))
    policy = Softmax(*spaces, {"weights": table, "framework": "torch"})  # which it need not import
    ray.data.range(1000).map_batches(lambda batch: batch).sum("id")
    found: dict[str, Any] = {"ray": ray.__version__}
    for name, kind in (("is", ImportanceSampling), ("wis", WeightedImportanceSampling)):
        dataset = ray.data.read_parquet(file, columns=["obs", "actions", "action_prob", "rewards"])
        start = time.perf_counter()
        out = kind(policy=policy, gamma=0.0).estimate_on_dataset(dataset, n_parallelism=cpus)
        found[name] = {"seconds": time.perf_counter() - start, **{key: float(value) for key, value in out.items()}}
    ray.shutdown()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
