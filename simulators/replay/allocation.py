"""Memory that one pack leaves and the next takes."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_ARRAY, _KEPT = 32 << 20, 1 << 30  # bytes; the first is the most that glibc takes


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of what it frees. A pack's columns are arrays of some megabytes, for each of which
    the allocator asks the system, which hands out zeroed pages: a tenth of a replay's time. Does nothing but under glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _ARRAY)
        mallopt(_TRIM_THRESHOLD, _KEPT)
