"""What the SQLite ledger keeps in plain tables: names, consents, catalogue log, records to copy, deferrals, outbox."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact
from serve_app.ledger.columns import CommitPlan
from serve_app.ledger.protocol import (
    OUTBOX_BURIED,
    CampaignRow,
    CatalogueChange,
    Consent,
    Deferral,
    OutboxItem,
    QueueDepths,
    StoredRecord,
    UserChanges,
)
from serve_app.ledger.records import Records, unpacked
from serve_app.ledger.sqlite_file import to_key, to_keys, to_user
from serve_app.ledger.sqlite_index import checked_block
from serve_app.ledger.table import UserTable

__all__ = [
    "ack_outbox",
    "ack_records",
    "append_change",
    "buried_outbox",
    "campaigns",
    "catalogue_head",
    "changes",
    "claim_outbox",
    "consents",
    "damaged",
    "drop_consents",
    "drop_deferral",
    "due_deferrals",
    "erased_records",
    "forget",
    "load_names",
    "pending_records",
    "postpone_outbox",
    "put_campaign",
    "put_consents",
    "queue_depths",
    "save_names",
    "settle_and_defer",
    "user_id",
]

Connection = sqlite3.Connection


def damaged(path: Path, error: sqlite3.DatabaseError) -> DamagedArtifact:
    """The error a corrupt file gives."""
    return DamagedArtifact(
        f"{path} is damaged: {error}", hint="restore the file from a copy, or move it away to start empty"
    )


def load_names(connection: Connection, table: UserTable) -> tuple[int, int]:
    """Fill the table's names; returns how many of each kind there are."""
    for names in (table.zones, table.regions):
        query = "SELECT name FROM names WHERE kind = ? ORDER BY number"
        names.load(name for (name,) in connection.execute(query, (names.kind,)))
    return len(table.zones.names), len(table.regions.names)


def save_names(connection: Connection, table: UserTable, kept: tuple[int, int]) -> tuple[int, int]:
    """Write names that are new since `kept`."""
    for names, known in zip((table.zones, table.regions), kept, strict=True):
        new = [(names.kind, number, names.names[number]) for number in range(known, len(names.names))]
        connection.executemany("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", new)
    return len(table.zones.names), len(table.regions.names)


def put_consents(connection: Connection, user: int, changes: UserChanges) -> None:
    """Append to the trail of consents, and keep the id behind the hash."""
    if changes.user_id is not None:
        connection.execute("INSERT OR REPLACE INTO user_ids VALUES (?, ?)", (to_key(user), changes.user_id))
    given = (("ad", changes.consent_ad), ("night", changes.consent_night))
    rows = [(to_key(user), kind, one.recorded_at, one.at, one.proof) for kind, one in given if one is not None]
    connection.executemany("INSERT INTO consents (key, kind, recorded_at, at, proof) VALUES (?, ?, ?, ?, ?)", rows)


def drop_consents(connection: Connection, users: npt.NDArray[np.uint64]) -> None:
    """Forget proofs of users whose state was replaced in bulk."""
    if connection.execute("SELECT 1 FROM consents LIMIT 1").fetchone():
        connection.executemany("DELETE FROM consents WHERE key = ?", ((key,) for key in to_keys(users)))


def consents(connection: Connection, user: int) -> tuple[Consent, Consent] | None:
    """The newest consent of each kind; None where the trail has none at all."""
    query = "SELECT at, recorded_at, proof FROM consents WHERE key = ? AND kind = ? ORDER BY number DESC LIMIT 1"
    ad, night = (connection.execute(query, (to_key(user), kind)).fetchone() for kind in ("ad", "night"))
    return (Consent(*ad) if ad else Consent(0), Consent(*night) if night else Consent(0)) if ad or night else None


def user_id(connection: Connection, user: int) -> str:
    """The id behind a user's hash; "" where it was never told."""
    found = connection.execute("SELECT id FROM user_ids WHERE key = ?", (to_key(user),)).fetchone()
    return str(found[0]) if found else ""


def settle_and_defer(connection: Connection, plan: CommitPlan, rows: list[int]) -> None:
    """Deferrals settled and made, and outbox rows, of the plan's committed `rows`."""
    keys, requests = to_keys(plan.users), to_keys(plan.request_ids)
    if plan.settles is not None and plan.settles.any():
        settled = to_keys(plan.settles)
        for row in rows:
            if plan.settles[row]:
                _drop(connection, keys[row], settled[row])
    if plan.deferred_until is not None and plan.deferred_until.any():
        until, records = plan.deferred_until.tolist(), Records.of(plan.records)
        for row in rows:
            if until[row]:
                _defer(connection, keys[row], requests[row], until[row], *records.alone(row) if len(records) else (0, b""))
    if any(plan.outbox):
        queued = [(keys[row], requests[row], plan.outbox[row]) for row in rows if plan.outbox[row]]
        query = "INSERT INTO outbox (key, request_id, payload, leased_until, attempts) VALUES (?, ?, ?, 0, 0)"
        connection.executemany(query, queued)


def _defer(connection: Connection, key: int, request: int, until: int, size: int, packed: bytes) -> None:
    kept = connection.execute("INSERT INTO deferred (size, record) VALUES (?, ?)", (size, packed)).lastrowid
    row, query = (key, request, until, kept), "INSERT OR IGNORE INTO deferrals VALUES (?, ?, ?, ?)"
    if not connection.execute(query, row).rowcount:  # the request was deferred before
        _drop(connection, key, request)
        connection.execute(query, row)


def _drop(connection: Connection, key: int, request: int) -> bool:
    query = "SELECT record FROM deferrals WHERE key = ? AND request_id = ?"
    kept = connection.execute(query, (key, request)).fetchall()
    connection.execute("DELETE FROM deferrals WHERE key = ? AND request_id = ?", (key, request))
    _drop_records(connection, kept)
    return bool(kept)


def _drop_records(connection: Connection, kept: list[tuple[int | bytes]]) -> None:
    connection.executemany("DELETE FROM deferred WHERE id = ?", (one for one in kept if isinstance(one[0], int)))


def due_deferrals(connection: Connection, now: int, limit: int) -> list[Deferral]:
    """See Ledger."""
    query = "SELECT key, request_id, until, record FROM deferrals WHERE until <= ? ORDER BY until, key, request_id LIMIT ?"
    found = connection.execute(query, (now, limit)).fetchall()
    return [
        Deferral(to_user(key), to_user(request), until, _record(connection, kept)) for key, request, until, kept in found
    ]


def _record(connection: Connection, kept: int | bytes) -> bytes:
    """A deferral's record: as it stands in its row, or found by its id."""
    if isinstance(kept, bytes):
        return kept
    found = connection.execute("SELECT size, record FROM deferred WHERE id = ?", (kept,)).fetchone()
    if found is None:
        raise DamagedArtifact(f"deferral record {kept} is missing", hint="restore the ledger from a copy")
    size, packed = found
    return unpacked(size, packed) if size else b""


def drop_deferral(connection: Connection, user: int, request_id: int) -> bool:
    """See Ledger."""
    return _drop(connection, to_key(user), to_key(request_id))


def claim_outbox(connection: Connection, now: int, limit: int, lease_us: int) -> list[OutboxItem]:
    """See Ledger."""
    query = "SELECT id, key, request_id, payload, attempts + 1 FROM outbox WHERE leased_until <= ? ORDER BY id LIMIT ?"
    rows = connection.execute(query, (now, limit)).fetchall()
    update = "UPDATE outbox SET leased_until = ?, attempts = attempts + 1 WHERE id = ?"
    connection.executemany(update, ((now + lease_us, row[0]) for row in rows))
    return [OutboxItem(number, to_user(key), to_user(request), *rest) for number, key, request, *rest in rows]


def ack_outbox(connection: Connection, ids: Sequence[int]) -> int:
    """See Ledger."""
    return sum(connection.execute("DELETE FROM outbox WHERE id = ?", (number,)).rowcount for number in ids)


def postpone_outbox(connection: Connection, ids: Sequence[int], until: Sequence[int], attempts: Sequence[int]) -> int:
    """See Ledger."""
    update = "UPDATE outbox SET leased_until = ?, attempts = ? WHERE id = ?"
    rows = zip(until, attempts, ids, strict=True)
    return sum(connection.execute(update, row).rowcount for row in rows)


def buried_outbox(connection: Connection, limit: int) -> list[OutboxItem]:
    """See Ledger."""
    query = "SELECT id, key, request_id, payload, attempts FROM outbox WHERE leased_until = ? ORDER BY id LIMIT ?"
    rows = connection.execute(query, (OUTBOX_BURIED, limit))
    return [OutboxItem(number, to_user(key), to_user(request), *rest) for number, key, request, *rest in rows]


def queue_depths(connection: Connection, now: int) -> QueueDepths:
    """See Ledger."""
    deferrals = "SELECT count(*), coalesce(sum(until <= ?), 0) FROM deferrals"
    outbox = "SELECT count(*), coalesce(sum(leased_until <= ?), 0), coalesce(sum(leased_until = ?), 0) FROM outbox"
    waiting = connection.execute(deferrals, (now,)).fetchone()
    return QueueDepths(*waiting, *connection.execute(outbox, (now, OUTBOX_BURIED)).fetchone())


def append_change(connection: Connection, kind: str, payload: bytes) -> int:
    """See Ledger."""
    return int(connection.execute("INSERT INTO catalogue (kind, payload) VALUES (?, ?)", (kind, payload)).lastrowid or 0)


def catalogue_head(connection: Connection) -> int:
    """See Ledger."""
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM catalogue").fetchone()[0])


def changes(connection: Connection, after_seq: int, limit: int) -> list[CatalogueChange]:
    """See Ledger."""
    query = "SELECT seq, kind, payload FROM catalogue WHERE seq > ? ORDER BY seq LIMIT ?"
    return [CatalogueChange(*row) for row in connection.execute(query, (after_seq, limit))]


def put_campaign(connection: Connection, campaign_id: str, document: bytes) -> CampaignRow:
    """See Ledger."""
    known = connection.execute("SELECT version FROM campaigns WHERE id = ?", (campaign_id,)).fetchone()
    row = CampaignRow(campaign_id, known[0] + 1 if known else 1, append_change(connection, "campaign", document), document)
    connection.execute("INSERT OR REPLACE INTO campaigns VALUES (?, ?, ?)", (campaign_id, row.version, row.seq))
    return row


def campaigns(connection: Connection) -> list[CampaignRow]:
    """See Ledger."""
    query = "SELECT id, version, seq, payload FROM campaigns JOIN catalogue USING (seq) ORDER BY id"
    return [CampaignRow(*row) for row in connection.execute(query)]


def pending_records(connection: Connection, limit: int, after: int, row_bits: int) -> list[StoredRecord]:
    """See Ledger. A record's id is its block's position and its row in it."""
    done = {number for (number,) in connection.execute("SELECT id FROM acked WHERE id > ?", (after,))}
    out: list[StoredRecord] = []
    query = "SELECT seq, sum, body FROM blocks WHERE kind = 1 AND acked = 0 AND records > 0 AND seq >= ? ORDER BY seq"
    for seq, expected, body in connection.execute(query, (after >> row_bits,)):
        block = checked_block(seq, expected, body)
        cells = zip(*(block[name].tolist() for name in ("users", "requests", "versions")), block["records"], strict=True)
        for row, cell in enumerate(cells):
            number = seq << row_bits | row
            if cell[3] and number > after and number not in done:
                out.append(StoredRecord(number, *cell))
                if len(out) == limit:
                    return out
    return out


def ack_records(connection: Connection, ids: Sequence[int], row_bits: int) -> None:
    """See Ledger. A block is done when all its records are."""
    per_block: defaultdict[int, list[int]] = defaultdict(list)
    for number in ids:
        per_block[number >> row_bits].append(number)
    for seq, numbers in per_block.items():
        connection.executemany("INSERT OR IGNORE INTO acked VALUES (?)", ((number,) for number in numbers))
        _finish(connection, seq, row_bits)


def erased_records(connection: Connection, seq: int, rows: list[int], row_bits: int) -> None:
    """Records that block `seq` does not count any more stand for none of those that it still has."""
    connection.executemany("DELETE FROM acked WHERE id = ?", ((seq << row_bits | row,) for row in rows))
    _finish(connection, seq, row_bits)


def _finish(connection: Connection, seq: int, row_bits: int) -> None:
    """A block all of whose records were acknowledged is done."""
    span = seq << row_bits, (seq + 1 << row_bits) - 1
    done = connection.execute("SELECT count(*) FROM acked WHERE id BETWEEN ? AND ?", span).fetchone()[0]
    if connection.execute("UPDATE blocks SET acked = 1 WHERE seq = ? AND records <= ?", (seq, done)).rowcount:
        connection.execute("DELETE FROM acked WHERE id BETWEEN ? AND ?", span)


def forget(connection: Connection, user: int) -> None:
    """Erase a user's id, consents, deferrals and outbox rows."""
    _drop_records(connection, connection.execute("SELECT record FROM deferrals WHERE key = ?", (to_key(user),)).fetchall())
    for table in ("user_ids", "consents", "deferrals", "outbox"):
        connection.execute(f"DELETE FROM {table} WHERE key = ?", (to_key(user),))
