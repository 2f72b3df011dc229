"""Looking through a whole SQLite ledger for anything that does not fit."""

from __future__ import annotations

import sqlite3
from typing import Any

import numpy as np

from serve_app.errors import DamagedArtifact
from serve_app.ledger.block import checksum
from serve_app.ledger.record import unpack_record
from serve_app.ledger.sqlite_file import to_user
from serve_app.ledger.sqlite_index import checked_block
from serve_app.ledger.table import UserTable

__all__ = ["audit_file"]

_MOST = 100


def audit_file(connection: sqlite3.Connection, table: UserTable) -> list[str]:
    """Findings in words, at most 100: SQLite's own check, checksums of rows and blocks, unreadable records, versions that
    appear twice or lie beyond the user's, and history entries in the journal that the user's history lacks."""
    findings = [f"SQLite: {text}" for (text,) in connection.execute("PRAGMA quick_check(20)") if text != "ok"]
    query = "SELECT key, sum, state, history, recents FROM users"
    for key, expected, *blobs in connection.execute(query):
        if checksum(*blobs) != expected:
            findings.append(f"user {to_user(key):016x}: row fails its checksum")
    seen: dict[int, set[int]] = {}
    for seq, expected, body in connection.execute("SELECT seq, sum, body FROM blocks WHERE kind = 1 ORDER BY seq"):
        try:
            columns = checked_block(seq, expected, body)
        except DamagedArtifact as error:
            findings.append(str(error))
            continue
        findings += _versions(seq, columns, table, seen) + _records(seq, columns) + _entries(seq, columns, table)
        if len(findings) >= _MOST:
            return [*findings[:_MOST], "more findings are not listed"]
    return findings


def _versions(seq: int, columns: dict[str, Any], table: UserTable, seen: dict[int, set[int]]) -> list[str]:
    """A version granted twice, or beyond the one the user has."""
    findings = []
    current = table.versions(columns["users"]).tolist()
    for user, version, now in zip(columns["users"].tolist(), columns["versions"].tolist(), current, strict=True):
        if version > now:
            findings.append(f"user {user:016x}: block {seq} wrote version {version}, the user has {now}")
        own = seen.setdefault(user, set())
        if version in own and version > 0:
            findings.append(f"user {user:016x}: version {version} was committed twice")
        own.add(version)
    return findings


def _records(seq: int, columns: dict[str, Any]) -> list[str]:
    findings = []
    for row, record in enumerate(columns["records"]):
        try:
            if record:
                unpack_record(record)
        except DamagedArtifact as error:
            findings.append(f"block {seq} row {row}: {error.message}")
    return findings


def _entries(seq: int, columns: dict[str, Any], table: UserTable) -> list[str]:
    """Entries the journal wrote that are neither in the user's history nor older than what it keeps."""
    users = np.repeat(columns["users"], columns["counts"])
    entries = columns["entries"]
    if len(entries) == 0:
        return []
    distinct, inverse = np.unique(users, return_inverse=True)
    view = table.view(distinct)
    held = np.repeat(np.arange(len(distinct)), np.diff(view.histories.offsets))
    kept = view.histories.entries
    have = set(zip(held.tolist(), kept["request_id"].tolist(), kept["slot"].tolist(), strict=True))
    wrote = zip(inverse.tolist(), entries["request_id"].tolist(), entries["slot"].tolist(), strict=True)
    return [
        f"user {int(distinct[owner]):016x}: block {seq} granted request {request:016x} slot {slot}, the history lacks it"
        for (owner, request, slot), at in zip(wrote, entries["at"].tolist(), strict=True)
        if at > view.known_since[owner] and (owner, request, slot) not in have
    ]
