"""A ledger's snapshot handed out page by page, so that no answer holds all users."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator

from serve_app.errors import LedgerUnavailable
from serve_app.ledger.columns import LedgerView
from serve_app.ledger.protocol import Ledger

__all__ = ["SnapshotPages"]

_OPEN_AT_MOST = 4


class SnapshotPages:
    """Snapshots under way; of more than four the oldest is given up."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._open: dict[str, Iterator[LedgerView]] = {}

    def open(self, as_of: int, chunk: int) -> str:
        """Begin one; returns what `next` takes."""
        token = secrets.token_hex(8)
        with self._lock:
            while len(self._open) >= _OPEN_AT_MOST:
                del self._open[next(iter(self._open))]
            self._open[token] = self._ledger.snapshot(as_of, chunk)
        return token

    def next(self, token: str) -> LedgerView | None:
        """The next page; None at the end. LedgerUnavailable: the snapshot was given up, or its owner is another by now."""
        with self._lock:
            pages = self._open.get(token)
        if pages is None:
            raise LedgerUnavailable("this snapshot is no longer under way", field="snapshot", hint="begin anew")
        page = next(pages, None)
        if page is None:
            with self._lock:
                self._open.pop(token, None)
        return page
