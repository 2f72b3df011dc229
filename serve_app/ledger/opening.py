"""Opening the ledger that a data folder and the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from serve_app.errors import InvalidInput
from serve_app.ledger.protocol import LedgerSettings
from serve_app.ledger.redis import RedisLedger
from serve_app.ledger.sqlite import SqliteLedger
from serve_app.ledger.sqlite_file import Durability

__all__ = ["ledger_path", "open_ledger"]


def ledger_path(data: Path) -> Path:
    """The SQLite file of a data folder."""
    return data / "ledger" / "ledger.sqlite"


def open_ledger(
    data: Path,
    *,
    backend: Literal["sqlite", "redis"] = "sqlite",
    redis_url: str | None = None,
    settings: LedgerSettings | None = None,
    durability: Durability = "disk",
    replicas: int = 0,
    read_only: bool = False,
) -> SqliteLedger | RedisLedger:
    """The ledger of `data`. durability "process" accepts losing answered writes to a power failure (SQLite), or to a stop
    of the server (Redis). read_only looks at a SQLite file that another process owns."""
    if backend == "sqlite":
        return SqliteLedger(ledger_path(data), settings, durability=durability, read_only=read_only)
    if not redis_url:
        raise InvalidInput("the redis ledger needs an address", field="ledger.redis_url", hint="redis://host:6379/0")
    return RedisLedger(redis_url, settings, replicas=replicas, require="disk" if durability == "disk" else "weaker")
