"""From a day of the world to rows of the log, as a server and its compaction would have left them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import Batch
from serve_app.ledger.columns import LedgerView
from serve_app.log.assigned import assigned_columns
from serve_app.log.compaction import deduplicate
from serve_app.log.fingerprint import fingerprint
from serve_app.log.ledger_state import snapshot_rows
from serve_app.log.rows import fill, rows_from_batch
from serve_app.log.schema import TABLES
from serve_app.log.writer import DAY_US, LogWriter
from serve_app.policy.compile import CompiledPolicy
from simulators.world.driver import Day
from simulators.world.environment import Environment
from simulators.world.happenings import HAPPENING, arrivals, event_ids
from simulators.world.model import Model
from simulators.world.sends import Decided
from simulators.world.upheaval import NOTES

__all__ = ["Recorder"]

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
RELEASE = "world"  # no release decided: the world's own scoring model stands in for one


class Recorder:
    """Writes one run through a `LogWriter`. Days in order; `finish` last. Memory is bounded by a day."""

    def __init__(self, model: Model, policy: CompiledPolicy, writer: LogWriter, code_version: str) -> None:
        self._model, self._policy, self._writer = model, policy, writer
        self._code_version = code_version
        self._held = np.empty(0, HAPPENING)  # events after midnight wait for their day
        self._rows: Counter[tuple[str, int]] = Counter()
        self._duplicates: Counter[tuple[str, int]] = Counter()

    def dictionaries(self, environment: Environment) -> None:
        """Tables that map hashes to ids, and what happened to the shop."""
        people, items, start = self._model.population, self._model.items, self._model.settings.start_us
        seen = np.maximum(people.joined_at, start)
        users = {"user": people.user, "ts": seen, "user_id": pa.array(people.user_id)}
        self._write("users", fill("users", len(people), users))
        first = start + np.maximum(items.launch_day.astype(np.int64), 0) * DAY_US
        rows = {"item": items.item, "ts": first, "item_id": pa.array(items.item_id)}
        self._write("items", fill("items", len(items), rows))
        columns = {
            "ts": environment.ts,
            "env_seq": np.arange(len(environment.ts)),
            "kind": pa.array(environment.kind),
            "payload": pa.array(environment.payload),
        }
        self._write("environment", fill("environment", len(environment.ts), columns))

    def snapshot(self, views: list[LedgerView], as_of: int) -> None:
        """The ledger at a day's start."""
        for view in views:
            self._write("ledger_snapshot", snapshot_rows(view, as_of, as_of))

    def day(self, day: Day) -> None:
        """Decisions and events of one day."""
        self._lists([self._rows_of(slate.batch) for slate in day.slates])
        if day.decided:
            self._lists([self._rows_of(*_in_log_order(day.decided))])
        midnight = self._model.settings.start_us + (day.day + 1) * DAY_US
        events = np.concatenate([self._held, day.events])
        self._held = events[events["ts"] >= midnight]
        self._events(events[events["ts"] < midnight])

    def finish(self) -> None:
        """What is left, and the watermark."""
        self._events(self._held)
        end = self._model.settings.start_us + self._model.settings.days * DAY_US
        late = end + 4 * DAY_US  # the latest event has arrived by then
        keys = sorted(self._rows)
        columns = {
            "ts": np.full(len(keys), late),
            "complete_to": np.full(len(keys), late),
            "day": np.array([day for _, day in keys], np.int32),
            "table": pa.array([table for table, _ in keys]),
            "rows": np.array([self._rows[key] for key in keys]),
            "duplicates": np.array([self._duplicates[key] for key in keys]),
            "source": pa.array(["world"] * len(keys)),
        }
        self._writer.write("watermark", fill("watermark", len(keys), columns))

    def _rows_of(self, batch: Batch, versions: I64 | None = None, granted: Bools | None = None) -> dict[str, pa.RecordBatch]:
        return rows_from_batch(
            batch,
            hashes=self._model.hashes,
            policy_revision=self._policy.revision,
            release=RELEASE,
            fingerprint=fingerprint(),
            salt=int(self._policy.rules.flip_salt),
            code_version=self._code_version,
            commit_version=versions,
            granted=granted,
            **assigned_columns(batch.requests, (self._policy,)),
        )

    def _lists(self, parts: list[dict[str, pa.RecordBatch]]) -> None:
        for table in parts[0] if parts else ():
            rows = pa.Table.from_batches([one[table] for one in parts], schema=TABLES[table])
            self._write(table, rows.unify_dictionaries())

    def _events(self, events: npt.NDArray[np.void]) -> None:
        """Late arrivals and second copies; of two the log keeps the first, as compaction does, and counts the other."""
        if len(events) == 0:
            return
        user = self._model.population.user[events["user"]]
        ids = event_ids(self._model.draws, events, user)
        first, second, twice = arrivals(self._model.settings, self._model.draws, ids, events["ts"])
        rows = np.concatenate([np.arange(len(events)), np.flatnonzero(twice)])
        arrived = np.concatenate([first, second[twice]])
        table = pa.Table.from_batches([self._event_rows(events[rows], user[rows], ids[rows], arrived)])
        kept = deduplicate(self._writer, "events", table)
        self._duplicates["events", int(events["ts"].min() // DAY_US)] += len(table) - len(kept)
        self._write("events", kept)

    def _event_rows(
        self, events: npt.NDArray[np.void], user: npt.NDArray[np.uint64], ids: npt.NDArray[np.uint64], arrived: I64
    ) -> pa.RecordBatch:
        model, none = self._model, {name: events[name] < 0 for name in ("slot", "item", "campaign", "channel", "position")}
        columns = {name: pa.array(events[name], mask=none[name]) for name in ("slot", "channel", "position")}
        columns |= {
            "user": user,
            "ts": events["ts"],
            "event_id": ids,
            "type": events["type"],
            "ingested_at": arrived,
            "decision_request_id": pa.array(events["request_id"], mask=events["request_id"] == 0),
            "item": pa.array(model.items.item[events["item"]], mask=none["item"]),
            "campaign": pa.array(model.campaigns.campaign[events["campaign"]], mask=none["campaign"]),
            "session": pa.array(events["session"], mask=events["session"] == 0),
            "quantity": pa.array(events["quantity"], mask=events["quantity"] == 0),
            "amount": pa.array(events["amount"], mask=np.isnan(events["amount"])),
            "currency": pa.array(np.array(["KRW", None])[np.isnan(events["amount"]).astype(int)], pa.string()),
            "attributes": pa.array([*NOTES, None]).take(pa.array(np.where(events["note"] < 0, len(NOTES), events["note"]))),
        }
        return fill("events", len(events), columns)

    def _write(self, table: str, rows: pa.Table | pa.RecordBatch) -> None:
        self._writer.write(table, rows)
        days, counts = np.unique(rows["ts"].to_numpy() // DAY_US, return_counts=True)
        for day, count in zip(days.tolist(), counts.tolist(), strict=True):
            self._rows[table, day] += count


def _in_log_order(decided: list[Decided]) -> tuple[Batch, I64, Bools]:
    """A day's send decisions as one batch (with versions and grants) in the log's order: by user, then ledger version.
    Sorting here moves fixed-width rows; sorting the log's lists would take three times as long."""
    whole = Batch.concat([one.batch for one in decided])
    keys = [whole.requests[name] for name in ("request_id", "decided_at", "read_version", "user")]
    order = np.lexsort(keys)
    versions = np.concatenate([one.versions for one in decided])[order]
    return whole.take(order), versions, np.concatenate([one.granted_rows for one in decided])[order]
