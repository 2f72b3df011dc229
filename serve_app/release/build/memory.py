"""Peak memory of a build: this process and its children, sampled; the kernel's own high-water mark where it is higher."""

from __future__ import annotations

import resource
import threading
from types import TracebackType

import psutil

__all__ = ["PeakMemory"]

_EVERY_S = 0.2


class PeakMemory:
    """Context manager; `peak_bytes` is the largest resident sum seen, shared pages counted once per process."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.peak_bytes = max(self.peak_bytes, own)

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(_EVERY_S):
            total = 0
            for one in (process, *process.children(recursive=True)):
                try:
                    total += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue  # ended between listing and asking
            self.peak_bytes = max(self.peak_bytes, total)
