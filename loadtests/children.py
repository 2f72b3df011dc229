"""Commands that a benchmark runs and waits for."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

__all__ = ["finished"]

_END_S = 60


def finished(command: Sequence[str]) -> int:
    """Exit code of a command. Where we are ended before it, it is told to end, too, and with it what it has started."""
    running = subprocess.Popen(command)
    try:
        return running.wait()
    finally:
        if running.poll() is None:
            running.terminate()
            running.wait(_END_S)
