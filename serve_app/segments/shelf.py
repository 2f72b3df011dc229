"""The membership set in force, followed while a process serves, and the look-up of a batch of users.

A thread looks at the pointer's file (one `stat`) every second and loads a new set beside the old one, so no request waits
for a file. What cannot be loaded is said once and counted; the old set stays until its policy calls it stale.
"""

from __future__ import annotations

import logging
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from serve_app.clock import now_us
from serve_app.errors import HindcastError
from serve_app.policy.document import PolicyDocument
from serve_app.policy.segment_tree import segment_digests
from serve_app.segments.bitmaps import bits_of
from serve_app.segments.store import Membership, load_current, segments_folder
from serve_app.serving.meters import count, gauge

if TYPE_CHECKING:
    from serve_app.serving.library import Edition

__all__ = ["SegmentShelf", "lookup", "member_bits"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_LOG = logging.getLogger("hindcast.serving")
_LOOK_EVERY_S = 1.0


class SegmentShelf:
    """The current set of one data folder. Thread-safe; the thread that follows ends with the shelf."""

    def __init__(self, data: Path, *, every_s: float = _LOOK_EVERY_S) -> None:
        self._data, self._every_s = data, every_s
        self._seen: tuple[int, ...] | None = None
        self._current: Membership | None = None
        self._digests: dict[str, tuple[str, ...]] = {}
        self._lock = threading.Lock()
        self._following = False

    def follow(self) -> None:
        """Load the set in force now and keep up from here on. Calling again does nothing."""
        if self._following:
            return
        with self._lock:
            if self._following:
                return
            self._following = True
        self.look()
        ended = threading.Event()
        weakref.finalize(self, ended.set)
        threading.Thread(
            target=_follow, args=(weakref.ref(self), ended, self._every_s), daemon=True, name="segments"
        ).start()

    def look(self) -> bool:
        """Load what the pointer names if it changed; True when another set is in force now."""
        try:
            found = (segments_folder(self._data) / "current").stat()
        except OSError:
            return False
        mark = (found.st_mtime_ns, found.st_ino, found.st_size)
        if mark == self._seen:
            return False
        self._seen = mark
        try:
            made = load_current(self._data)
            member_bits(made, (), np.empty(0, np.uint64))  # compiles here, not in a request
            self._current = made
        except HindcastError as error:
            count("hindcast_segment_sets", outcome="refused")
            _LOG.error("a new segment membership set is not used: %s", error)
            return False
        count("hindcast_segment_sets", outcome="loaded")
        return True

    def measure(self) -> None:
        """Say how old the set in force is."""
        if self._current is not None:
            gauge("hindcast_segment_age_s", (now_us() - self._current.computed_at) / 1e6)

    @property
    def current(self) -> Membership | None:
        """The set in force; None before the first was published."""
        self.follow()
        return self._current

    def digests(self, policy: PolicyDocument) -> tuple[str, ...]:
        """What each of the policy's segments means, in the order of its bits."""
        known = self._digests.get(policy.revision)
        if known is None:
            known = tuple(segment_digests(policy.segments).values())
            self._digests = {**dict(list(self._digests.items())[-15:]), policy.revision: known}
        return known


def _follow(reference: weakref.ref[SegmentShelf], ended: threading.Event, every_s: float) -> None:
    while not ended.wait(every_s):
        shelf = reference()
        if shelf is None:
            return
        shelf.look()
        shelf.measure()
        del shelf


def lookup(edition: Edition, users: U64) -> tuple[U64, I64]:
    """Columns `segments` and `segments_at` of requests of `users` (u64[n], any order, may repeat), in the bit order of the
    edition's own policy."""
    policy = edition.policy.document
    if not policy.segments:
        return np.zeros(len(users), np.uint64), np.zeros(len(users), np.int64)
    shelf = edition.segments
    return member_bits(shelf.current, shelf.digests(policy), users)


def member_bits(current: Membership | None, digests: tuple[str, ...], users: U64) -> tuple[U64, I64]:
    """(u64[n] with bit i where the user is a member of digests[i], i64[n] when membership was computed).

    All 0 where there is no set, or where it lacks one of the digests: one time stands for all bits, so a set that does not
    know every segment of the policy knows none, and candidates limited to a segment end as `segment_stale`.
    """
    n = len(users)
    if current is None or any(one not in current.digests for one in digests):
        return np.zeros(n, np.uint64), np.zeros(n, np.int64)
    chosen = np.array([current.digests[one] for one in digests], np.int64)
    return bits_of(current.users, current.planes, chosen, users), np.full(n, current.computed_at, np.int64)
