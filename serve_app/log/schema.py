"""The log's tables: columns, dtypes, meanings, order.

Times are i64 microseconds since 1970-01-01 UTC. Users, items, campaigns, categories, widgets and reviews are the u64 hashes
of `serve_app.ids`; `users` and `items` are the dictionaries back to text. Enumerations are the stable integers of
`serve_app.vocabulary`. Outside `events` an absent value is the sentinel its batch column has (0 for hashes and times,
-1 for indices), so that a replay reads exactly what the stages wrote; in `events` it is null. (Fill nulls before numpy or
pandas: there a nullable u64 becomes a float and loses bits.)

A decision is (user, request_id, slot): the text form is `serve_app.ids.decision_id_text`.
"""

from __future__ import annotations

from types import MappingProxyType

import pyarrow as pa

__all__ = ["PER_USER", "SCHEMA_VERSION", "SORT_KEYS", "TABLES", "empty_table"]

SCHEMA_VERSION: int = 1

_I8, _I16, _I32, _I64 = pa.int8(), pa.int16(), pa.int32(), pa.int64()
_U8, _U16, _U32, _U64 = pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()
_F32, _F64, _BOOL, _STR = pa.float32(), pa.float64(), pa.bool_(), pa.string()
_NAME = pa.dictionary(pa.int32(), pa.string())  # few distinct texts: one copy a frame or column chunk

_ASSIGNMENTS = pa.list_(pa.struct([("id", _U64), ("arm", _I16), ("p", _F64)]))
_SENDS = pa.list_(
    pa.struct(
        [
            ("at", _I64),
            ("campaign", _U64),
            ("category", _U64),
            ("holdout", _U64),
            ("request_id", _U64),
            ("local_day", _I32),
            ("slot", _I16),
            ("channel", _I8),
            ("message_class", _I8),
            ("flags", _U8),
        ]
    )
)


def _column(name: str, dtype: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, dtype, nullable=nullable, metadata={"doc": doc})


def _optional(name: str, dtype: pa.DataType, doc: str) -> pa.Field:
    return _column(name, dtype, doc, nullable=True)


_VERSION = _column("schema_version", _I16, "SCHEMA_VERSION of the writer")
_USER = _column("user", _U64, "hash of the user's id; 0: anonymous")
_BUCKET = _column("user_bucket", _U16, "serve_app.ids.bucket_of(user), 0..4095")
_REQUEST = _column("request_id", _U64, "random 64 bits; unique together with user")
_ORDER = _column("order", _I64, "replay order within the user: ledger version read; -1: not read. Ties: ts, request_id")


def _ts(doc: str) -> pa.Field:
    return _column("ts", _I64, doc)


def _schema(*fields: pa.Field) -> pa.Schema:
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


_REQUESTS = _schema(
    _VERSION,
    _USER,
    _BUCKET,
    _ts("decided_at"),
    _ORDER,
    _REQUEST,
    _column("root_id", _U64, "request_id of the first request of a deferral chain or page; keys the noise"),
    _column("parent_request_id", _U64, "0: none"),
    _column("attempt", _I16, "0 for the first; n for the n-th re-decision of a deferral; keys the noise"),
    _column("surface", _I8, "Surface"),
    _column("origin", _I8, "Origin"),
    _column("trigger_event_id", _U64, "event that caused the request; 0: none"),
    _column("decided_at", _I64, "admission clock of the winning attempt"),
    _column("env_seq", _I64, "position in the environment table; -1: none"),
    _column("release", _NAME, "version of the release that decided"),
    _column("policy_revision", _NAME, "revision of the policy that decided"),
    _column("code_version", _NAME, "git describe, or the package's version"),
    _column("fingerprint", _NAME, "constraints and CPU family: where equal, bits are equal"),
    _column("salt", _U64, "noise salt"),
    _column("arms", _ASSIGNMENTS, "experiment assignments: hash of id, arm, probability"),
    _column("arm_bits", _U64, "the batch's `arms`: 4 bits per experiment of the policy, lowest first"),
    _column("variant", _I16, "compiled variant of the policy: arms x cell"),
    _column("holdouts", _ASSIGNMENTS, "holdout assignments: hash of id, 1 held out else 0, probability of that"),
    _column("cell", _I16, "policy cell; -1: none declared"),
    _column("epoch", _I32, "index of the cell's epoch"),
    _column("p_cell", _F64, "probability of the cell; 1 where none declared"),
    _column("zone", _I16, "index into serve_app.policy.zones"),
    _column("region", _I16, "index into serve_app.regions; -1: unknown"),
    _column("consent_ad_at", _I64, "advertising consent given at; 0: none"),
    _column("consent_night_at", _I64, "night advertising consent given at; 0: none"),
    _column("customer_until", _I64, "end of the existing-customer exception; 0: none"),
    _column("reachable", _U16, "bits by Channel"),
    _column("opted_out", _U16, "bits by Channel"),
    _column("segments", _U64, "bits: member of the policy's i-th segment"),
    _column("segments_at", _I64, "when membership was computed; 0: never"),
    _column("recents", pa.list_(_U64), "items recently seen as read, oldest first"),
    _column("recents_age_s", pa.list_(_F32), "age of each recent at decided_at, seconds"),
    _column("bought", pa.list_(_U64), "items bought, as read"),
    _column("anchor", _U64, "item the request is about; 0: none"),
    _column("excluded", pa.list_(_U64), "items the caller excluded"),
    _column("categories", pa.list_(_U64), "hashes of the categories the answer is limited to; empty: no limit"),
    _column("context_hour", _I8, "local hour of day; -1: unknown"),
    _column("context_device", _I8, "0 unknown, 1 app, 2 mobile web, 3 desktop"),
    _column("cold", _BOOL, "answered by region and context because the user is unknown"),
    _column("degraded", _U8, "StageBit"),
    _column("width", _I32, "candidates asked for before ranking"),
    _column("slots", _I32, "length of the list asked for"),
    _column("availability_seq", _I64, "availability changes applied before the last filter; -1: none"),
    _column("log_rate", _F64, "probability that the full candidate set is logged; 1 for notifications"),
    _column("full", _BOOL, "the full candidate set is logged; false: chosen candidates only"),
    _column("candidate_count", _I32, "candidates the decision was made over, logged or not"),
    _column("expires_at", _I64, "the request as a whole expires; 0: never"),
    _column("head_names", _NAME, "names of candidates.heads, comma separated, in order"),
    _column("feature_names", _NAME, "names of candidates.features, comma separated, in order"),
    _column("gate_names", _NAME, "names of candidates.gate_outcome, comma separated, in order"),
)

_CANDIDATES = _schema(
    _VERSION,
    _USER,
    _BUCKET,
    _ts("decided_at of the request"),
    _ORDER,
    _REQUEST,
    _column("idx", _I32, "position in the request's candidate set, 0-based"),
    _column("item", _U64, "0: none"),
    _column("widget", _U64, "0: none"),
    _column("review", _U64, "0: none"),
    _column("campaign", _U64, "0: none"),
    _column("channel", _I8, "Channel; -1: none"),
    _column("message_class", _I8, "MessageClass; -1: none"),
    _column("category", _U64, "hash of the category; 0: none"),
    _column("priority", _I16, "higher first where several may be sent"),
    _column("delivery", _I8, "Delivery; -1: none"),
    _column("labelled", _BOOL, "advertising text carries its label"),
    _column("campaign_killed", _BOOL, "campaign switched off or out of its dates"),
    _column("segment", _I16, "policy segment the campaign is limited to; -1: none"),
    _column("sources", _U32, "Source bits"),
    _column("retrieval_score", _F64, "blended score before ranking; NaN: none"),
    _column("drop_reason", _I8, "DropReason; 0: kept"),
    _column("heads", pa.list_(_F32), "calibrated scores, order of requests.head_names; NaN: not scored"),
    _column("features", pa.list_(_F32), "exact bits as read, order of requests.feature_names"),
    _column("feature_status", pa.list_(_U8), "FeatureStatus of each"),
    _column("feature_plan", _U64, "hash of requests.feature_names; 0: none"),
    _column("value", _F64, "weighted sum of heads; NaN: none"),
    _column("cost", _F64, "of one send"),
    _column("margin", _F64, "of one conversion"),
    _column("expires_at", _I64, "never sent after; 0: never expires"),
    _column("gates_evaluated", _U32, "bits by position in requests.gate_names"),
    _column("gate_outcome", pa.list_(_I8), "GateOutcome of each gate"),
    _column("gate_reason", pa.list_(_I8), "Reason of each gate"),
    _column("used", pa.list_(_F64), "observed value of each gate, its own unit"),
    _column("limit", pa.list_(_F64), "limit of each gate, same unit"),
    _column("next_free_at", pa.list_(_I64), "when each gate would let it pass; 0: unknown or now"),
    _column("reason", _I8, "primary Reason of the candidate"),
    _column("action", _I8, "Action of the candidate"),
    _column("until", _I64, "a deferral's end; 0: none"),
    _column("p_choice", _F64, "notifications: probability of this choice; NaN: slate"),
    _column("p_shadow", _F64, "probability that this held-out candidate is chosen on its shadow history; else 0"),
    _column("ghost", _BOOL, "would have been sent but for a holdout"),
    _column("ghost_first", _BOOL, "the user's first would-send under that holdout, marked in both arms"),
    _column("holdout", _I16, "index of the policy's holdout that silenced it; -1: none"),
    _column("slot", _I32, "slot it was given; -1: not chosen"),
    _column("p_slot", _F64, "propensity of that slot, conditional on the prefix; NaN: not chosen"),
)

_DECISIONS = _schema(
    _VERSION,
    _USER,
    _BUCKET,
    _ts("decided_at"),
    _ORDER,
    _REQUEST,
    _column("slot", _I32, "position in the answer; notifications: 0 for the first grant"),
    _column("surface", _I8, "Surface"),
    _column("chosen_idx", _I32, "candidates.idx; -1: none chosen"),
    _column("item", _U64, "of the chosen candidate; 0: none"),
    _column("widget", _U64, "of the chosen candidate; 0: none"),
    _column("review", _U64, "of the chosen candidate; 0: none"),
    _column("campaign", _U64, "of the chosen candidate; 0: none"),
    _column("category", _U64, "of the chosen candidate; 0: none"),
    _column("channel", _I8, "of the chosen candidate; -1: none"),
    _column("message_class", _I8, "of the chosen candidate; -1: none"),
    _column("action", _I8, "Action"),
    _column("reason", _I8, "Reason"),
    _column("until", _I64, "a deferral's end; 0: none"),
    _column("p_action", _F64, "probability of what was done, conditional on prefix and history; NaN: unknown"),
    _column("p_none", _F64, "notifications: probability that nothing is chosen; slates: 0; NaN: unknown"),
    _column("forced", _BOOL, "the choice was certain"),
    _column("explored", _BOOL, "a flip changed the choice"),
    _column("ghost", _BOOL, "a would-send of this request was turned to silence by a holdout; on its first row only"),
    _column("ghost_first", _BOOL, "first would-send of the user under a holdout, both arms; on the first row only"),
    _column("counts", _U32, "bits: caps of the policy this grant consumes"),
    _column("read_version", _I64, "ledger version read; -1: not read"),
    _column("commit_version", _I64, "ledger version written; -1: nothing written"),
    _column("granted", _BOOL, "a send was committed, or a slot served"),
    _column("idempotency_key", pa.binary(), "16-byte digest of (client, user, key); empty: none"),
)

_EVENTS = _schema(
    _VERSION,
    _USER,
    _BUCKET,
    _ts("when it happened"),
    _column("event_id", _U64, "hash of the event's id; deduplicated at compaction"),
    _column("type", _I8, "EventType"),
    _column("ingested_at", _I64, "when it was received"),
    _optional("decision_request_id", _U64, "request_id of the decision it answers; null: organic"),
    _optional("slot", _I32, "slot of that decision"),
    _optional("item", _U64, "item seen, clicked, bought, reviewed"),
    _optional("campaign", _U64, "campaign delivered, clicked, redeemed"),
    _optional("channel", _I8, "Channel; opt_out and opt_in: null means all"),
    _optional("session", _U64, "hash of the session's or order's id"),
    _optional("position", _I32, "position in the session, order or list, from 0"),
    _optional("quantity", _I32, "pieces bought, less those returned where the return is known"),
    _optional("amount", _F64, "money of the whole row, in currency"),
    _optional("currency", _STR, "ISO 4217"),
    _optional("stars", _F32, "of a review"),
    _optional("attributes", _STR, "JSON of what this type alone has (consent proof, zone name, region)"),
)

_LEDGER_SNAPSHOT = _schema(
    _VERSION,
    _USER,
    _BUCKET,
    _ts("as_of"),
    _column("as_of", _I64, "state at this time"),
    _column("version", _I64, "ledger version at as_of"),
    _column("sends", _SENDS, "factual history entries, version order (serve_app.ledger.protocol.HISTORY_DTYPE)"),
    _column("shadow_sends", _SENDS, "ghosts of each holdout, version order"),
)

_ENVIRONMENT = _schema(
    _VERSION,
    _ts("when it took effect"),
    _column("env_seq", _I64, "sequence number; requests.env_seq is the last one applied"),
    _column("kind", _STR, "promotion, switch, availability, budget, outage"),
    _column("payload", _STR, "JSON"),
)

_WATERMARK = _schema(
    _VERSION,
    _ts("when this row was written"),
    _column("day", _I32, "days since 1970-01-01 UTC"),
    _column("table", _STR, "name of the table"),
    _column("complete_to", _I64, "no later row of this day is expected before this ingestion time"),
    _column("rows", _I64, "rows of that day that this commit added to the table"),
    _column("duplicates", _I64, "rows removed because their id was already there"),
    _column("damaged_frames", _I64, "journal frames skipped because they were torn or corrupt"),
    _column("synthetic_clock", _BOOL, "times were made up by an importer; order within a session is real"),
    _column("source", _STR, "journal, world, or import:<name>"),
)

_USERS = _schema(
    _VERSION,
    _USER,
    _BUCKET,
    _ts("first seen"),
    _column("user_id", _STR, "the id itself"),
)

_ITEMS = _schema(
    _VERSION,
    _ts("first seen"),
    _column("item", _U64, "hash of the item's id"),
    _column("item_id", _STR, "the id itself"),
)

TABLES: MappingProxyType[str, pa.Schema] = MappingProxyType(
    {
        "requests": _REQUESTS,
        "candidates": _CANDIDATES,
        "decisions": _DECISIONS,
        "events": _EVENTS,
        "ledger_snapshot": _LEDGER_SNAPSHOT,
        "environment": _ENVIRONMENT,
        "watermark": _WATERMARK,
        "users": _USERS,
        "items": _ITEMS,
    }
)

# Rows of a file stand in this order: requests, candidates and decisions of a user run in parallel, so a replay merges
# them without a sort.
SORT_KEYS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "requests": ("user_bucket", "user", "order", "ts", "request_id"),
        "candidates": ("user_bucket", "user", "order", "ts", "request_id", "idx"),
        "decisions": ("user_bucket", "user", "order", "ts", "request_id", "slot"),
        "events": ("user_bucket", "user", "ts", "event_id"),
        "ledger_snapshot": ("user_bucket", "user", "as_of"),
        "environment": ("env_seq",),
        "watermark": ("day", "table", "ts"),
        "users": ("user_bucket", "user"),
        "items": ("item",),
    }
)

PER_USER: frozenset[str] = frozenset(name for name, schema in TABLES.items() if "user_bucket" in schema.names)


def empty_table(name: str) -> pa.Table:
    """Zero rows of table `name`."""
    return TABLES[name].empty_table()
