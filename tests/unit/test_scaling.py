"""How many replicas a stage wants: calls that Serve sees and calls that it does not count alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from serve_app.elasticity import deployment_options
from serve_app.scaling import NEAR, replicas_wanted
from serve_app.settings import Settings


def _context(*, running: int, seen: float, near: dict[str, float] | None) -> Any:
    config = AutoscalingConfig(min_replicas=1, max_replicas=20, target_ongoing_requests=4)
    metrics = {} if near is None else {NEAR: near}
    return SimpleNamespace(
        current_num_replicas=running,
        target_num_replicas=3,
        total_num_requests=seen,
        aggregated_metrics=metrics,
        config=config,
    )


@pytest.mark.parametrize(
    ("seen", "near", "wanted"), [(8.0, None, 2.0), (0.0, {"a": 6.0, "b": 6.0}, 3.0), (2.0, {"a": 4.0}, 1.5), (0.0, {}, 0.0)]
)
def test_calls_under_way_are_shared_out_by_the_target(seen: float, near: dict[str, float] | None, wanted: float) -> None:
    assert replicas_wanted(_context(running=2, seen=seen, near=near)) == (wanted, {})


def test_where_none_runs_yet_the_present_target_stays() -> None:
    assert replicas_wanted(_context(running=0, seen=0.0, near=None)) == (3.0, {})


@pytest.mark.parametrize("name", ["Retrieval", "Features", "Ranking", "Decision"])
def test_serve_takes_the_policy_of_an_elastic_stage(name: str, tmp_path: Any) -> None:
    parts = {name.lower(): {"max_replicas": 3}}
    options = deployment_options(Settings(data=tmp_path, deployments=parts), name)  # type: ignore[arg-type]
    config = AutoscalingConfig(**options["autoscaling_config"])
    assert config.policy.get_policy()(_context(running=2, seen=2.0, near={"a": 4.0})) == (1.5, {})
