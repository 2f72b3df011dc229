"""Tables of what happened around decisions: events, ledger, environment, completeness, dictionaries."""

from __future__ import annotations

from serve_app.log.fields import (
    BOOL,
    BUCKET,
    F32,
    F64,
    I8,
    I32,
    I64,
    SENDS,
    STR,
    U64,
    USER,
    VERSION,
    column,
    optional,
    schema_of,
    ts,
)

__all__ = ["ENVIRONMENT", "EVENTS", "ITEMS", "LEDGER_SNAPSHOT", "USERS", "WATERMARK"]

EVENTS = schema_of(
    VERSION,
    USER,
    BUCKET,
    ts("when it happened"),
    column("event_id", U64, "hash of the event's id; deduplicated at compaction"),
    column("type", I8, "EventType"),
    column("ingested_at", I64, "when it was received"),
    optional("decision_request_id", U64, "request_id of the decision it answers; null: organic"),
    optional("slot", I32, "slot of that decision"),
    optional("item", U64, "item seen, clicked, bought, reviewed"),
    optional("campaign", U64, "campaign delivered, clicked, redeemed"),
    optional("channel", I8, "Channel; opt_out and opt_in: null means all"),
    optional("session", U64, "hash of the session's or order's id"),
    optional("position", I32, "position in the session, order or list, from 0"),
    optional("quantity", I32, "pieces bought, less those returned where the return is known"),
    optional("amount", F64, "money of the whole row, in currency"),
    optional("currency", STR, "ISO 4217"),
    optional("stars", F32, "of a review"),
    optional("attributes", STR, "JSON of what this type alone has (consent proof, zone name, region)"),
)

LEDGER_SNAPSHOT = schema_of(
    VERSION,
    USER,
    BUCKET,
    ts("as_of"),
    column("as_of", I64, "state at this time"),
    column("taken_at", I64, "when the state was read; entries after as_of are left out"),
    column("version", I64, "ledger version at taken_at"),
    column("known_since", I64, "entries at or before this time may have been dropped; lowest i64: none was"),
    column("sends", SENDS, "factual history entries, version order (serve_app.ledger.columns.HISTORY_DTYPE)"),
    column("shadow_sends", SENDS, "ghosts of each holdout, version order"),
)

ENVIRONMENT = schema_of(
    VERSION,
    ts("when it took effect"),
    column("env_seq", I64, "sequence number; requests.env_seq is the last one applied"),
    column("kind", STR, "promotion, switch, availability, budget, outage"),
    column("payload", STR, "JSON"),
)

WATERMARK = schema_of(
    VERSION,
    ts("when this row was written"),
    column("day", I32, "days since 1970-01-01 UTC"),
    column("table", STR, "name of the table"),
    column("complete_to", I64, "no later row of this day is expected before this ingestion time"),
    column("rows", I64, "rows of that day that this commit added to the table"),
    column("duplicates", I64, "rows removed because their id was already there"),
    column("damaged_frames", I64, "journal frames skipped because they were torn or corrupt"),
    column("synthetic_clock", BOOL, "times were made up by an importer; order within a session is real"),
    column("source", STR, "journal, world, or import:<name>"),
)

USERS = schema_of(
    VERSION,
    USER,
    BUCKET,
    ts("first seen"),
    column("user_id", STR, "the id itself"),
)

ITEMS = schema_of(
    VERSION,
    ts("first seen"),
    column("item", U64, "hash of the item's id"),
    column("item_id", STR, "the id itself"),
)
