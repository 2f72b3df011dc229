"""Users in Redis: read, commit, refund, put, erase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.errors import LedgerUnavailable, OutcomeUnknown
from serve_app.ledger.columns import HISTORY_DTYPE, CommitPlan, CommitResult, CommitStatus, LedgerView, UserState
from serve_app.ledger.names import region_names, zone_names
from serve_app.ledger.plans import check_plan, require_distinct
from serve_app.ledger.protocol import UserChanges, UserRecord
from serve_app.ledger.redis_keys import META_KEYS, row_gets, shard_of, shards_of
from serve_app.ledger.redis_plans import commit_pieces, in_pieces
from serve_app.ledger.redis_puts import Put, put_pieces
from serve_app.ledger.redis_rows import (
    ENTRIES_AT,
    consents_of,
    erased_of,
    pack_consent,
    pack_states,
    skipped_of,
    view_of,
)
from serve_app.ledger.redis_store import RedisStore
from serve_app.ledger.redis_wire import checked
from serve_app.ledger.refunds import refund_entries
from serve_app.ledger.table import apply_changes, blank_state, record_of
from serve_app.policy.zones import zone_name
from serve_app.regions import region_name

__all__ = ["RedisUsers"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
_TRIES = 64
_COPIED = ("consent_ad_at", "consent_night_at", "customer_until", "reachable", "opted_out")
_FLAGS_AT = HISTORY_DTYPE.fields["flags"][1] if HISTORY_DTYPE.fields is not None else 0


class RedisUsers(RedisStore):
    """Everything of the ledger that goes by a user's version."""

    _horizon_us: int

    def read(self, users: U64) -> LedgerView:
        """See Ledger."""
        users = np.asarray(users, np.uint64)
        return view_of(users, self._rows(users))

    def _rows(self, users: U64) -> list[bytes | None]:
        """The stored row of each user."""
        if len(users) == 0:
            return []
        shards = shards_of(users)
        if not self._wire.clustered:
            spans = list(in_pieces(shards, by_shard=False))
            replies = self._wire.run(row_gets(users, shards, [end for _, end in spans]), [0] * len(spans), write=False)
            return [row for reply in replies for row in checked(reply)]
        order = np.argsort(shards, kind="stable")
        shards = shards[order]
        spans = list(in_pieces(shards, by_shard=True))
        routes = [int(shards[start]) for start, _ in spans]
        replies = self._wire.run(row_gets(users[order], shards, [end for _, end in spans]), routes, write=False)
        rows: list[bytes | None] = [None] * len(users)
        sorted_rows = (row for reply in replies for row in checked(reply))
        for place, row in zip(order.tolist(), sorted_rows, strict=True):
            rows[place] = row
        return rows

    def commit(self, plan: CommitPlan) -> CommitResult:
        """See Ledger. Rows that only some nodes took, or answered, are told one by one (`unavailable`, `unknown`)."""
        check_plan(plan)
        if len(plan.users) == 0:
            return CommitResult(np.zeros(0, np.int8), np.zeros(0, np.int64), [])
        pieces = commit_pieces(
            self._commit_script, plan, self._seen, self.settings, self._horizon_us, by_shard=self._wire.clustered
        )
        status, versions, found = self._write_pieces(pieces, len(plan.users))
        stored = [b""] * len(plan.users)
        for row, record in found:
            stored[row] = record
        return CommitResult(status, versions, stored)

    def refund(self, user: int, request_id: int, slot: int) -> bool:
        """See Ledger."""

        def change(row: bytes | None, _: Sequence[bytes | None]) -> Put | None:
            view = view_of(np.asarray([user], np.uint64), [row])
            entries = view.histories.entries
            before = entries["flags"].copy()
            if row is None or not refund_entries(entries, request_id, slot):
                return None
            changed = np.flatnonzero(entries["flags"] != before)
            first, last = int(changed[0]), int(changed[-1])
            wide = HISTORY_DTYPE.itemsize
            patch = entries[first : last + 1].tobytes()[_FLAGS_AT : (last - first) * wide + _FLAGS_AT + 1]
            place = ENTRIES_AT + (skipped_of(row) + first) * wide + _FLAGS_AT
            return Put(user, int(view.versions[0]), place, patch)

        return self._change(user, change) is not None

    def put_user(self, user: int, changes: UserChanges) -> int:
        """See Ledger."""

        def change(row: bytes | None, person: Sequence[bytes | None]) -> Put:
            view = view_of(np.asarray([user], np.uint64), [row])
            zones, regions = zone_names(), region_names()
            state = self._state_row(view, person, zones, regions)
            apply_changes(state, 0, changes, zones, regions)
            names = [zones.name(int(state["zone"][0]))], [regions.name(int(state["region"][0]))]
            columns = UserState(view.state.zone, view.state.region, *(state[name] for name in _COPIED))
            fields: list[bytes | str] = ["z", names[0][0], "r", names[1][0]]
            for name, consent in (("a", changes.consent_ad), ("n", changes.consent_night)):
                fields += [name, pack_consent(consent)] if consent is not None else []
            fields += ["i", changes.user_id] if changes.user_id is not None else []
            return Put(user, int(view.versions[0]), 0, pack_states(columns, *names).tobytes(), fields)

        version = self._change(user, change)
        assert version is not None
        return version

    @staticmethod
    def _state_row(view: LedgerView, person: Sequence[bytes | None], zones: Any, regions: Any) -> npt.NDArray[np.void]:
        """One user's STATE_DTYPE row, with the names that stand beside its row."""
        state = blank_state(1)
        for name in _COPIED:
            state[name] = getattr(view.state, name)
        state["version"], state["known_since"] = view.versions, view.known_since
        state["zone"] = zones.stored((person[0] or b"").decode())
        state["region"] = regions.stored((person[1] or b"").decode())
        return state

    def put_users(self, users: U64, state: UserState) -> I64:
        """See Ledger."""
        require_distinct(users)
        if len(users) == 0:
            return np.zeros(0, np.int64)
        zones = _names_of(state.zone, zone_name)
        regions = _names_of(state.region, region_name)
        packed = pack_states(state, zones, regions)
        versions, waiting = np.zeros(len(users), np.int64), np.arange(len(users))
        for _ in range(_TRIES):
            read = self.read(users[waiting]).versions.tolist()
            puts = [
                Put(
                    int(users[row]),
                    version,
                    0,
                    packed[row].tobytes(),
                    ("z", zones[row], "r", regions[row], "a", "", "n", ""),
                )
                for row, version in zip(waiting.tolist(), read, strict=True)
            ]
            status, new = self._put_rows(puts)
            done = status == CommitStatus.committed
            versions[waiting[done]] = new[done]
            waiting = waiting[~done]
            if len(waiting) == 0:
                return versions
        raise LedgerUnavailable(f"{len(waiting)} users changed faster than they could be written")

    def _change(self, user: int, change: Callable[[bytes | None, Sequence[bytes | None]], Put | None]) -> int | None:
        """Read a row, compute what is new, write it if the version still holds, or do it again. None: no change."""
        for _ in range(_TRIES):
            put = change(*self._look_at(user))
            if put is None:
                return None
            status, versions = self._put_rows([put])
            if status[0] == CommitStatus.committed:
                return int(versions[0])
        raise LedgerUnavailable("the user changed faster than it could be written", hint="try again")

    def _put_rows(self, puts: Sequence[Put]) -> tuple[npt.NDArray[np.int8], I64]:
        """Statuses (committed or conflict) and versions; raises where a row has neither."""
        pieces = put_pieces(self._put, puts, self._seen, by_shard=self._wire.clustered)
        status, versions, _ = self._write_pieces(pieces, len(puts))
        for row in np.flatnonzero(status >= CommitStatus.regressed)[:1].tolist():
            if status[row] == CommitStatus.unknown:
                raise OutcomeUnknown("the connection to Redis broke under some users", hint="write them again")
            if status[row] == CommitStatus.unavailable:
                raise LedgerUnavailable("some users could not be written", hint="write them again")
            shard = shard_of(puts[row].user)
            raise LedgerUnavailable(f"shard {shard} lost writes and is closed", hint="reconcile, then reopen_bucket")
        return status, versions

    def _look_at(self, user: int) -> tuple[bytes | None, Sequence[bytes | None]]:
        """The user's row, and fields z, r, a, n, i beside it."""
        shard = shard_of(user)
        look = self._look.call([META_KEYS[shard]], user.to_bytes(8, "big"), "state")
        row, person = self._one(shard, look, write=False)
        return row, person

    def get_user(self, user: int) -> UserRecord | None:
        """See Ledger."""
        row, person = self._look_at(user)
        if erased_of(row):
            return None
        zones, regions = zone_names(), region_names()
        state = self._state_row(view_of(np.asarray([user], np.uint64), [row]), person, zones, regions)
        record = record_of(user, state[0], consents_of(person[2:4]), zones, regions)
        return record and replace(record, user_id=(person[4] or b"").decode())

    def delete_user(self, user: int) -> bool:
        """See Ledger. The server's append-only file forgets at its next rewrite."""
        shard = shard_of(user)
        return bool(self._one(shard, self._erase.call([META_KEYS[shard]], user.to_bytes(8, "big")), write=True))

    def find_decision(self, user: int, request_id: int, slot: int = 0) -> bytes | None:  # noqa: ARG002 (a record holds all slots)
        """See Ledger."""
        shard = shard_of(user)
        look = self._look.call([META_KEYS[shard]], user.to_bytes(8, "big"), "record", request_id.to_bytes(8, "big"))
        found: bytes | None = self._one(shard, look, write=False)
        return found


def _names_of(indices: npt.NDArray[np.int16], name_of: Callable[[int], str]) -> list[str]:
    """Names of this process's indices, "" for -1."""
    names = {index: name_of(index) if index >= 0 else "" for index in np.unique(indices).tolist()}
    return [names[index] for index in indices.tolist()]
