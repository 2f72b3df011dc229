"""What the pointers to the current release and to the current policy share: the lock, and the way back."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

__all__ = ["Step", "locked", "one_before"]

Step = Literal["promote", "rollback"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone in changing the pointer of `folder`, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def one_before(history: Iterable[tuple[Step, str]]) -> str | None:
    """Where a rollback goes, None where there is nothing earlier. history: steps and what they made current, oldest first.
    What was promoted again after others has those others before it, and repeated rollbacks end at the first of all."""
    path: list[str] = []
    for step, name in history:
        if step == "rollback" and name in path:
            while path[-1] != name:
                path.pop()
        elif path[-1:] != [name]:
            path.append(name)
    return path[-2] if len(path) > 1 else None
