-- The SQLite ledger. Keys of users are their hash with the top bit flipped, so that SQLite's signed order is bucket order.
PRAGMA application_id = 1212761932; -- "HIDL"
PRAGMA user_version = 1;

CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE names (kind TEXT NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL, PRIMARY KEY (kind, number)) WITHOUT ROWID;

-- One row a user, written behind the journal; seq: the newest journal position it contains; sum: XXH3 of the three blobs.
CREATE TABLE users (
  key INTEGER PRIMARY KEY, seq INTEGER NOT NULL, sum INTEGER NOT NULL,
  state BLOB NOT NULL, history BLOB NOT NULL, recents BLOB NOT NULL
);

-- The journal. kind: 1 commits, 2 viewed items, 3 event ids. records: how many decision records it holds. acked: all of
-- them are in the log.
CREATE TABLE blocks (
  seq INTEGER PRIMARY KEY, kind INTEGER NOT NULL, at INTEGER NOT NULL, records INTEGER NOT NULL,
  acked INTEGER NOT NULL, sum INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX blocks_pending ON blocks (seq) WHERE kind = 1 AND acked = 0 AND records > 0;
CREATE INDEX blocks_by_time ON blocks (kind, at);
CREATE TABLE acked (id INTEGER PRIMARY KEY);

-- Where decisions and idempotency keys of journal blocks lie, written behind the journal.
CREATE TABLE decisions (
  key INTEGER NOT NULL, seq INTEGER NOT NULL, row INTEGER NOT NULL, request_id INTEGER NOT NULL, at INTEGER NOT NULL,
  idem BLOB, digest BLOB, PRIMARY KEY (key, seq, row)
) WITHOUT ROWID;

CREATE TABLE consents (
  key INTEGER NOT NULL, kind TEXT NOT NULL, recorded_at INTEGER NOT NULL, at INTEGER NOT NULL, proof TEXT NOT NULL,
  number INTEGER PRIMARY KEY
);
CREATE INDEX consents_by_user ON consents (key, kind, number);

-- The id behind a user's hash, as told with the user's state.
CREATE TABLE user_ids (key INTEGER PRIMARY KEY, id TEXT NOT NULL);

CREATE TABLE deferrals (
  key INTEGER NOT NULL, request_id INTEGER NOT NULL, until INTEGER NOT NULL, record BLOB NOT NULL,
  PRIMARY KEY (key, request_id)
) WITHOUT ROWID;
CREATE INDEX deferrals_by_end ON deferrals (until, key, request_id);
-- Their records, one after the other, packed, each of `size` bytes unpacked. `deferrals.record` is the id of one; rows made
-- earlier hold their record itself. Users' rows are written at random places of a table, which is quick where they are small.
CREATE TABLE deferred (id INTEGER PRIMARY KEY, size INTEGER NOT NULL, record BLOB NOT NULL);

CREATE TABLE outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL, request_id INTEGER NOT NULL, payload BLOB NOT NULL,
  leased_until INTEGER NOT NULL, attempts INTEGER NOT NULL
);
CREATE INDEX outbox_by_user ON outbox (key);
CREATE INDEX outbox_by_lease ON outbox (leased_until, id);

CREATE TABLE catalogue (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, payload BLOB NOT NULL);
CREATE TABLE campaigns (id TEXT PRIMARY KEY, version INTEGER NOT NULL, seq INTEGER NOT NULL) WITHOUT ROWID;
