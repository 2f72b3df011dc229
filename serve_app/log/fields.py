"""Columns of the log's tables: types, shared columns, and how a schema is made."""

from __future__ import annotations

import pyarrow as pa

__all__ = [
    "ASSIGNMENTS", "BOOL", "BUCKET", "F32", "F64", "I8", "I16", "I32", "I64", "NAME", "ORDER", "REQUEST", "SCHEMA_VERSION",
    "SENDS", "STR", "U8", "U16", "U32", "U64", "USER", "VERSION", "column", "optional", "schema_of", "ts",
]  # fmt: skip

SCHEMA_VERSION: int = 2
"""What this code writes. 2: zones and regions by name; `serve_app.log.migrations` reads what 1 wrote."""

I8, I16, I32, I64 = pa.int8(), pa.int16(), pa.int32(), pa.int64()
U8, U16, U32, U64 = pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()
F32, F64, BOOL, STR = pa.float32(), pa.float64(), pa.bool_(), pa.string()
NAME = pa.dictionary(pa.int32(), pa.string())  # few distinct texts: one copy a frame or column chunk

ASSIGNMENTS = pa.list_(pa.struct([("id", U64), ("arm", I16), ("p", F64)]))
SENDS = pa.list_(
    pa.struct(
        [
            ("at", I64),
            ("campaign", U64),
            ("category", U64),
            ("holdout", U64),
            ("request_id", U64),
            ("local_day", I32),
            ("slot", I16),
            ("channel", I8),
            ("message_class", I8),
            ("flags", U8),
        ]
    )
)


def column(name: str, dtype: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    """One column and what it means."""
    return pa.field(name, dtype, nullable=nullable, metadata={"doc": doc})


def optional(name: str, dtype: pa.DataType, doc: str) -> pa.Field:
    """A column that may be null."""
    return column(name, dtype, doc, nullable=True)


VERSION = column("schema_version", I16, "SCHEMA_VERSION of the writer")
USER = column("user", U64, "hash of the user's id; 0: anonymous")
BUCKET = column("user_bucket", U16, "serve_app.ids.bucket_of(user), 0..4095")
REQUEST = column("request_id", U64, "random 64 bits; unique together with user")
ORDER = column("order", I64, "replay order within the user: ledger version read; -1: not read. Ties: ts, request_id")


def ts(doc: str) -> pa.Field:
    """The time a row is ordered and partitioned by."""
    return column("ts", I64, doc)


def schema_of(*fields: pa.Field) -> pa.Schema:
    """A table of these columns, in this code's version."""
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})
