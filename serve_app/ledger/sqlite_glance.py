"""A glance into a SQLite ledger that another process may own: one decision's record, the campaigns; no user is loaded."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from serve_app.errors import DamagedArtifact
from serve_app.ledger.sqlite import _ROW_BITS
from serve_app.ledger.sqlite_file import connect, to_key, to_user
from serve_app.ledger.sqlite_index import checked_block
from serve_app.ledger.sqlite_shelves import campaigns

__all__ = ["glance_campaigns", "glance_outbox", "glance_pending", "glance_record"]


def glance_record(path: Path, user: int, request_id: int) -> tuple[bytes, int] | None:
    """(record, version it was committed as); None where the ledger keeps no such decision. NotReady: no file;
    DamagedArtifact: it cannot be read."""
    with closing(connect(path, "disk", read_only=True)) as connection:
        try:
            connection.execute("BEGIN")
            return _in_index(connection, user, request_id) or _in_journal(connection, user, request_id)
        except sqlite3.DatabaseError as error:
            raise DamagedArtifact(f"{path} is damaged: {error}", hint="run `hindcast ledger check`") from error


def glance_campaigns(path: Path) -> list[str]:
    """Ids of the campaigns stored in the ledger."""
    with closing(connect(path, "disk", read_only=True)) as connection:
        return [row.campaign_id for row in campaigns(connection)]


def _in_index(connection: sqlite3.Connection, user: int, request_id: int) -> tuple[bytes, int] | None:
    query = (
        "SELECT d.row, b.seq, b.sum, b.body FROM decisions d JOIN blocks b USING (seq) WHERE d.key = ? AND d.request_id = ? "
        "ORDER BY d.seq DESC LIMIT 1"
    )
    found = connection.execute(query, (to_key(user), to_key(request_id))).fetchone()
    if found is None:
        return None
    row, *block = found
    columns = checked_block(*block)
    record = columns["records"][row] if columns["records"] else b""
    return (record, int(columns["versions"][row])) if record else None


def _in_journal(connection: sqlite3.Connection, user: int, request_id: int) -> tuple[bytes, int] | None:
    """Blocks that the index does not cover yet, newest first."""
    reached = connection.execute("SELECT value FROM meta WHERE name = 'checkpoint'").fetchone()
    query = "SELECT seq, sum, body FROM blocks WHERE kind = 1 AND seq > ? ORDER BY seq DESC"
    for block in connection.execute(query, (reached[0] if reached else 0,)):
        columns = checked_block(*block)
        mine = (columns["users"] == np.uint64(user)) & (columns["requests"] == np.uint64(request_id))
        for row in np.flatnonzero(mine).tolist():
            if columns["records"] and columns["records"][row]:
                return columns["records"][row], int(columns["versions"][row])
    return None


def glance_pending(path: Path) -> set[tuple[int, int]]:
    """(user, request id) of every record that the log has not acknowledged."""
    with closing(connect(path, "disk", read_only=True)) as connection:
        connection.execute("BEGIN")
        acked = {number for (number,) in connection.execute("SELECT id FROM acked")}
        out: set[tuple[int, int]] = set()
        query = "SELECT seq, sum, body FROM blocks WHERE kind = 1 AND acked = 0 AND records > 0"
        for seq, expected, body in connection.execute(query):
            columns = checked_block(seq, expected, body)
            cells = zip(columns["users"].tolist(), columns["requests"].tolist(), columns["records"], strict=True)
            for row, (user, request, record) in enumerate(cells):
                if record and seq << _ROW_BITS | row not in acked:
                    out.add((user, request))
        return out


def glance_outbox(path: Path) -> set[tuple[int, int]]:
    """(user, request id) of every row of the outbox, dead ones included."""
    with closing(connect(path, "disk", read_only=True)) as connection:
        rows = connection.execute("SELECT key, request_id FROM outbox")
        return {(to_user(key), to_user(request)) for key, request in rows}
