"""Where the parallel part of a build runs: Ray Data, or this process. Both call the same functions on the same tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["LocalRunner", "RayRunner", "Runner", "Task"]

Task = dict[str, Any]
"""Plain values only: it travels between processes as one row of an Arrow table."""


class Runner(Protocol):
    """Applies a function to independent tasks."""

    def map(self, function: Callable[[Task], Task], tasks: Sequence[Task]) -> list[Task]:
        """function(task) of every task, in the order of the tasks."""


class LocalRunner:
    """One task after the other in this process."""

    def map(self, function: Callable[[Task], Task], tasks: Sequence[Task]) -> list[Task]:
        """See Runner."""
        return [function(task) for task in tasks]


class RayRunner:
    """One Ray Data block a task. Needs a running Ray; results are small (files are written by the tasks themselves)."""

    def map(self, function: Callable[[Task], Task], tasks: Sequence[Task]) -> list[Task]:
        """See Runner."""
        import ray.data

        numbered = [{**task, "task_number": number} for number, task in enumerate(tasks)]

        def run(row: Task) -> Task:
            number = row.pop("task_number")
            return {**function(row), "task_number": number}

        rows = ray.data.from_items(numbered, override_num_blocks=len(numbered)).map(run).take_all()
        ordered = sorted(rows, key=lambda row: int(row["task_number"]))
        return [{name: value for name, value in row.items() if name != "task_number"} for row in ordered]
