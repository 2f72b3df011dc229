"""Log lines of a server's processes: one JSON object a line, with the ids of the calls and requests it is about.

They go to standard error, which Ray keeps per process and log shippers collect. Known secrets are blacked out wherever they
turn up, an exception's text included.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

import orjson

from serve_app.clock import text_of
from serve_app.errors import InvalidInput
from serve_app.serving import scope, spans
from serve_app.settings import Settings

__all__ = ["JsonLines", "configure_logs", "secrets_of"]

_HIDDEN = "[hidden]"
_SHORTEST = 6  # blacking out shorter ones would tell them by what is missing elsewhere


def configure_logs(settings: Settings, process: str, admin_token: str = "") -> None:
    """Make this process's `hindcast` loggers write lines. process: its name in them."""
    # Serve puts a logger of its own in the place of sys.stderr, whose lines are no JSON and come late.
    handler = logging.StreamHandler(sys.__stderr__)
    secrets = secrets_of(settings, admin_token)
    handler.setFormatter(JsonLines(process, secrets) if settings.logs.format == "json" else PlainLines(secrets))
    logger = logging.getLogger("hindcast")
    logger.handlers[:] = [handler]
    logger.setLevel(settings.logs.level)
    logger.propagate = False


def secrets_of(settings: Settings, admin_token: str = "") -> tuple[str, ...]:
    """Every secret the settings hold, also as JSON and Python write it."""
    outbox = ""
    with contextlib.suppress(InvalidInput):  # said where it is needed; this process may be another
        outbox = settings.outbox.read_secret()
    addresses = (settings.ledger.redis_url or "", str(settings.outbox.webhook_url or ""))
    passwords = [urlsplit(one).password or "" for one in addresses]
    plain = {outbox, outbox.removeprefix("Bearer "), admin_token, *passwords, *map(unquote, passwords)}
    found = plain | {orjson.dumps(one).decode()[1:-1] for one in plain} | {repr(one)[1:-1] for one in plain}
    return tuple(sorted((one for one in found if len(one) >= _SHORTEST), key=len, reverse=True))


def _hidden(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    return text


class JsonLines(logging.Formatter):
    """at, level, logger, process, message; calls, request_ids, trace_id and error where there are any; `extra` fields."""

    def __init__(self, process: str, secrets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._process, self._secrets = process, secrets

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "at": text_of(int(record.created * 1e6)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "message": record.getMessage(),
        }
        about = scope.current()
        if calls := [one.call for one in about if one.call]:
            line["calls"] = calls
        if ids := [one for several in about for one in several.request_ids]:
            line["request_ids"] = ids
        if trace := spans.trace_id():
            line["trace_id"] = trace
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return _hidden(orjson.dumps(line, default=str).decode(), self._secrets)


class PlainLines(logging.Formatter):
    """For people: time, level, message."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the error's own below it."""
        return _hidden(super().format(record), self._secrets)
