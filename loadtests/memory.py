"""Memory of a process and of all below it, sampled while it runs."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from pathlib import Path

__all__ = ["Memory"]

_EVERY_S = 0.5
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Memory:
    """Samples until the process has ended. Pages that processes share through /dev/shm are left out of neither."""

    def __init__(self, pid: int) -> None:
        self._pid, self._driver, self._worker, self._all = pid, 0, 0, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def result(self) -> dict[str, float]:
        """driver_mb, worker_mb (the largest of the others), all_mb (largest sum): peaks of resident memory."""
        self._ended.set()
        self._thread.join()
        return {"driver_mb": self._driver / 1e6, "worker_mb": self._worker / 1e6, "all_mb": self._all / 1e6}

    def _sample(self) -> None:
        while not self._ended.wait(_EVERY_S):
            resident = _below(self._pid)
            self._driver = max(self._driver, resident.get(self._pid, 0))
            self._worker = max([self._worker, *(size for pid, size in resident.items() if pid != self._pid)])
            self._all = max(self._all, sum(resident.values()))


def _below(root: int) -> dict[int, int]:
    """Bytes resident of a process and its descendants, by pid."""
    children, resident = defaultdict(list), {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                stat = (path / "stat").read_text()
            except OSError:
                continue  # ended meanwhile
            fields = stat[stat.rindex(")") + 2 :].split()
            children[int(fields[1])].append(int(path.name))
            resident[int(path.name)] = int(fields[21]) * _PAGE
    found, left = {}, [root]
    while left:
        pid = left.pop()
        if pid in resident:
            found[pid] = resident[pid]
            left += children[pid]
    return found
