"""Loaded versions of immutable things (releases, policies), which one is current, and who still uses which.

A *pin* is one request's hold on one version, taken at admission and let go when its answer has left. A version may be
unloaded when it is neither wanted nor pinned.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from serve_app.errors import NotReady

__all__ = ["VersionStore"]

T = TypeVar("T")


class VersionStore(Generic[T]):
    """Versions of one kind in one process. Safe to use from several threads."""

    def __init__(self, kind: str, load: Callable[[str], T]) -> None:
        """load: opens one version whole, or raises; it runs outside the lock."""
        self.kind = kind
        self._load = load
        self._loaded: dict[str, T] = {}
        self._pins: Counter[str] = Counter()
        self._wanted: frozenset[str] = frozenset()
        self._current: str | None = None
        self._lock = threading.Lock()

    def prepare(self, version: str) -> T:
        """Load `version` beside the others, if it is not there yet. It stays until `keep` is told of others: a request that
        ends meanwhile takes its own version along at most."""
        with self._lock:
            self._wanted |= {version}
            if version in self._loaded:
                return self._loaded[version]
        made = self._load(version)
        with self._lock:
            return self._loaded.setdefault(version, made)

    def get(self, version: str) -> T:
        """A loaded version. NotReady where this process does not hold it."""
        with self._lock:
            try:
                return self._loaded[version]
            except KeyError:
                raise NotReady(f"this process does not hold {self.kind} {version}", field=self.kind) from None

    @property
    def current(self) -> str:
        """The version new requests are pinned to."""
        if self._current is None:
            raise NotReady(f"no {self.kind} is in force yet", field=self.kind)
        return self._current

    def switch(self, version: str) -> None:
        """Pin new requests to `version`, which must be loaded."""
        with self._lock:
            if version not in self._loaded:
                raise NotReady(f"{self.kind} {version} is not loaded", field=self.kind)
            self._current = version

    def pinned(self) -> AbstractContextManager[tuple[str, T]]:
        """Hold the current version for the length of one request."""
        return _Pinned(self)

    def _pin(self) -> tuple[str, T]:
        with self._lock:
            if self._current is None:
                raise NotReady(f"no {self.kind} is in force yet", field=self.kind)
            held = self._loaded[self._current]
            self._pins[self._current] += 1
            return self._current, held

    def _let_go(self, version: str) -> None:
        with self._lock:
            self._pins[version] -= 1
            if not self._pins[version]:
                del self._pins[version]
            self._drop_unused()

    def keep(self, wanted: Collection[str]) -> None:
        """Unload every version that is not wanted, not current and not pinned, now or when its last pin goes."""
        with self._lock:
            self._wanted = frozenset(wanted)
            self._drop_unused()

    def _drop_unused(self) -> None:
        for version in [one for one in self._loaded if one not in self._wanted and one != self._current]:
            if not self._pins[version]:
                del self._loaded[version]

    def loaded(self) -> frozenset[str]:
        """Versions held."""
        with self._lock:
            return frozenset(self._loaded)

    def in_use(self) -> frozenset[str]:
        """Versions that requests under way hold."""
        with self._lock:
            return frozenset(version for version, count in self._pins.items() if count)


class _Pinned(AbstractContextManager[tuple[str, T]], Generic[T]):
    """See VersionStore.pinned; why it is a class: see serve_app.serving.threads."""

    __slots__ = ("_store", "_version")

    def __init__(self, store: VersionStore[T]) -> None:
        self._store = store

    def __enter__(self) -> tuple[str, T]:
        self._version, held = self._store._pin()
        return self._version, held

    def __exit__(self, *_: object) -> None:
        self._store._let_go(self._version)
