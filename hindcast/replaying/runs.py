"""Replays as people run them: on Ray or in this process, with a bar that moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulators.replay.shard import Shard
    from simulators.replay.spec import ReplaySpec

__all__ = ["on_ray", "progress_bar", "sends_replayed"]


def sends_replayed(spec: ReplaySpec, out: Path, packs: Path | None, *, ray: str | None) -> Shard:
    """All send decisions of the log. packs: see `simulators.replay.job.run_replay`; ray: see `on_ray`."""
    from simulators.replay.job import run_replay

    on_ray(ray)
    with progress_bar("replaying") as progress:
        return run_replay(spec, out, progress=progress, local=ray is None, packs=packs)


def on_ray(address: str | None) -> None:
    """Join the Ray cluster of that address, or start one here where it is empty; None: no Ray is wanted."""
    if address is None:
        return
    import ray

    if not ray.is_initialized():
        ray.init(
            address=address or None, log_to_driver=False, configure_logging=True, logging_level="error",
            include_dashboard=False,  # starting one takes seconds
        )  # fmt: skip
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # once a second it walks all pages that a worker has mapped


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error while the block runs; it is told (groups done, groups)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    look = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("groups"), TimeElapsedColumn())
    with Progress(*look, console=Console(stderr=True)) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
