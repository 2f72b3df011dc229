"""A line for each HTTP call, or for those that went wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from serve_app.serving.scope import CallScope

__all__ = ["CallLog", "call_log"]

_LOG = logging.getLogger("hindcast.calls")

CallLog = Callable[[str, str, int, float, CallScope], None]
"""Hears method, path, status, seconds and scope of a call that was answered."""


def call_log(which: Literal["none", "failed", "all"]) -> CallLog:
    """Writes a line for the calls that are wanted. What callers send is not in it."""

    def tell(method: str, path: str, status: int, seconds: float, scope: CallScope) -> None:
        failed = status >= 500 or status == 429
        if which == "none" or (which == "failed" and not failed):
            return
        fields = {"method": method, "path": path, "status": status, "ms": round(seconds * 1e3, 2), "caller": scope.caller}
        _LOG.log(logging.WARNING if failed else logging.INFO, "%s %s %d", method, path, status, extra={"fields": fields})

    return tell
