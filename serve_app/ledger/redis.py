"""The ledger of a cluster: Redis, one script call per bucket, durable before it answers.

Every key carries its bucket as hash tag (`hc:{bucket}:...`), so a bucket lives on one node and one call commits its users
at once. Refuses a server that could forget an answered grant: `appendfsync always` and `noeviction` are required, and with
replicas each write waits for `replicas` of them. Each bucket counts its writes; a counter that goes backwards after a
fail-over closes the bucket (status `regressed`) until `reopen_bucket`.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from redis.exceptions import RedisError

from serve_app.batch import lengths_to_offsets
from serve_app.errors import LedgerUnavailable, NotReady
from serve_app.ids import BUCKETS, bucket_of
from serve_app.ledger.names import region_names, zone_names
from serve_app.ledger.plans import check_plan, require_distinct, value_at
from serve_app.ledger.protocol import (
    OUTBOX_BURIED,
    CampaignRow,
    CatalogueChange,
    CommitPlan,
    CommitResult,
    CommitStatus,
    Consent,
    Deferral,
    LedgerSettings,
    LedgerView,
    OutboxItem,
    QueueDepths,
    Recents,
    StoredRecord,
    UserChanges,
    UserRecord,
    UserState,
)
from serve_app.ledger.redis_rows import FIELDS, pack_consent, pack_state, state_rows, unpack_consent, view_of
from serve_app.ledger.redis_wire import CATALOGUE, Command, Script, Wire, checked
from serve_app.ledger.table import apply_changes, blank_state, entries_until, record_of, refund_entries

__all__ = ["RedisLedger"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
_LOG, _CAMPAIGNS = "hc:{catalogue}:log", "hc:{catalogue}:campaigns"
_PAIR, _TWO, _VERSION = struct.Struct(">QQ"), struct.Struct("<qq"), struct.Struct("<q")
_TRIES = 64
_NUMBER_BITS = 48


def _id(value: int) -> bytes:
    return value.to_bytes(8, "big")


class RedisLedger:
    """See Ledger. `url`: redis:// or rediss:// of the server, or of any node of a cluster.

    replicas: how many must confirm a write. require: "disk" (as above), or "weaker" to accept a server that may lose
    answered writes when it or its machine stops (`durability` then says "weaker").
    """

    def __init__(
        self,
        url: str,
        settings: LedgerSettings | None = None,
        *,
        replicas: int = 0,
        require: Literal["disk", "weaker"] = "disk",
        timeout_s: float = 2.0,
    ) -> None:
        self.settings = settings or LedgerSettings()
        names = ("commit", "put", "erase", "queue", "campaign")
        self._commit_script, self._put, self._erase, self._queue, self._campaign = (Script(f"redis_{n}.lua") for n in names)
        scripts = [self._commit_script, self._put, self._erase, self._queue, self._campaign]
        self._wire = Wire(url, scripts, timeout_s=timeout_s, replicas=replicas)
        self.durability = require
        try:
            self._require(replicas)
        except BaseException:
            self._wire.close()
            raise
        self._lock = threading.Lock()
        self._seen = [0] * BUCKETS
        self._head_seen = 0
        self._horizon_us = max(self.settings.history_horizon_us, self._stored_horizon())

    def _require(self, replicas: int) -> None:
        for client in self._wire.primaries():
            try:
                found = {**client.config_get("append*"), **client.config_get("maxmemory-policy")}
                replication = client.info("replication")
            except (RedisError, OSError) as error:
                raise NotReady(f"Redis does not tell its settings: {error}", field="ledger") from error
            wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
            for name, value in wanted.items():
                if found.get(name) != value and (self.durability == "disk" or name == "maxmemory-policy"):
                    hint = f"set `{name} {value}` in redis.conf" + (
                        "" if name == "maxmemory-policy" else ', or accept losing grants with require="weaker"'
                    )
                    raise NotReady(f"Redis has {name} {found.get(name)}", field="ledger", hint=hint)
            slaves = [value for name, value in replication.items() if name.startswith("slave") and isinstance(value, dict)]
            connected = sum(slave.get("state") == "online" for slave in slaves)
            if connected < replicas:
                raise NotReady(f"a Redis primary has {connected} replicas, {replicas} must confirm", field="ledger.replicas")

    # --- users -----------------------------------------------------------------------------------------------------

    def read(self, users: U64) -> LedgerView:
        """See Ledger."""
        users = np.asarray(users, np.uint64)
        zones, regions = zone_names(), region_names()
        if len(users) == 0:
            return view_of(users, [], zones, regions)
        distinct, inverse = np.unique(users, return_inverse=True)
        rows = self._user_calls(distinct, lambda row: ("HMGET", row, *FIELDS), write=False)
        return view_of(users, [rows[i] for i in inverse.tolist()], zones, regions)

    def commit(self, plan: CommitPlan) -> CommitResult:
        """See Ledger. Rows that no node took (it is down) are told as conflicts, unless that is all of them."""
        check_plan(plan)
        status = np.full(len(plan.users), CommitStatus.conflict, np.int8)
        versions, stored = plan.read_versions.copy(), [b""] * len(plan.users)
        buckets = bucket_of(plan.users)
        order = np.argsort(buckets, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(buckets[order])) + 1) if len(order) else []
        rows = _plan_rows(plan)
        commands, where = [], []
        for group in groups:
            bucket = int(buckets[group[0]])
            arguments = [argument for row in group.tolist() for argument in rows[row]]
            commands.append(self._commit_script.call([_counter(bucket)], *self._limits(bucket), *arguments))
            where.append(bucket)
        replies = self._wire.run(commands, where, write=True) if commands else []
        for group, bucket, reply in zip(groups, where, replies, strict=True):
            if isinstance(reply, LedgerUnavailable):
                continue  # not executed: the row stands as a conflict
            counter, *outcomes = checked(reply)
            for row, (outcome, version, record) in zip(group.tolist(), outcomes, strict=True):
                status[row], versions[row], stored[row] = outcome, version, record
            if outcomes[0][0] != CommitStatus.regressed:
                self._saw(bucket, counter)
        return CommitResult(status, versions, stored)

    def _limits(self, bucket: int) -> tuple[Any, ...]:
        """The leading arguments of a commit."""
        settings = self.settings
        keep = int(settings.keep_records)
        return self._seen[bucket], settings.key_horizon_us // 1000, self._horizon_us, settings.history_max_entries, keep

    def refund(self, user: int, request_id: int, slot: int) -> bool:
        """See Ledger."""

        def change(fields: list[Any]) -> list[Any] | None:
            view = view_of(np.asarray([user], np.uint64), [fields], zone_names(), region_names())
            if not refund_entries(view.histories.entries, request_id, slot):
                return None
            return ["h", view.histories.entries.tobytes()]

        return self._change(user, change) is not None

    def put_user(self, user: int, changes: UserChanges) -> int:
        """See Ledger."""

        def change(fields: list[Any]) -> list[Any]:
            zones, regions = zone_names(), region_names()
            state = state_rows([fields], zones, regions)
            apply_changes(state, 0, changes, zones, regions)
            zone, region = zones.name(int(state["zone"][0])), regions.name(int(state["region"][0]))
            out: list[Any] = ["s", pack_state(state[0]), "z", zone, "r", region]
            for name, consent in (("a", changes.consent_ad), ("n", changes.consent_night)):
                out += [name, pack_consent(consent)] if consent is not None else []
            return out if changes.user_id is None else [*out, "i", changes.user_id]

        version = self._change(user, change)
        assert version is not None
        return version

    def put_users(self, users: U64, state: UserState) -> I64:
        """See Ledger."""
        require_distinct(users)
        zones, regions = zone_names(), region_names()
        packed = blank_state(len(users))
        for name in ("consent_ad_at", "consent_night_at", "customer_until", "reachable", "opted_out"):
            packed[name] = getattr(state, name)
        packed["zone"], packed["region"] = zones.stored_of(state.zone), regions.stored_of(state.region)
        names = [(zones.name(row["zone"]), regions.name(row["region"])) for row in packed]
        fields = [
            ["s", pack_state(row), "z", zone, "r", region, "a", "", "n", ""]
            for row, (zone, region) in zip(packed, names, strict=True)
        ]
        versions, waiting = np.zeros(len(users), np.int64), np.arange(len(users))
        for _ in range(_TRIES):
            read = self.read(users[waiting]).versions
            pairs = zip(waiting.tolist(), read.tolist(), strict=True)
            outcome = self._put_fields([(int(users[row]), version, fields[row]) for row, version in pairs])
            for row, version in zip(waiting.tolist(), outcome, strict=True):
                versions[row] = version or 0
            waiting = waiting[[version is None for version in outcome]]
            if len(waiting) == 0:
                return versions
        raise LedgerUnavailable(f"{len(waiting)} users changed faster than they could be written")

    def _change(self, user: int, change: Callable[[list[Any]], list[Any] | None]) -> int | None:
        """Read a row, compute its new fields, write them if the version still holds, or do it again. None: no change."""
        for _ in range(_TRIES):
            fields = self._user_calls(np.asarray([user], np.uint64), lambda row: ("HMGET", row, *FIELDS), write=False)[0]
            new = change(fields)
            if new is None:
                return None
            (version,) = self._put_fields([(user, int(fields[0] or 0), new)])
            if version is not None:
                return version
        raise LedgerUnavailable("the user changed faster than it could be written", hint="try again")

    def _put_fields(self, rows: list[tuple[int, int, list[Any]]]) -> list[int | None]:
        """New versions, None where the version read is no longer the user's."""
        buckets = [user >> 52 for user, _, _ in rows]
        commands = [
            self._put.call([_counter(bucket)], self._seen[bucket], _id(user), version, *fields)
            for bucket, (user, version, fields) in zip(buckets, rows, strict=True)
        ]
        out: list[int | None] = []
        for bucket, reply in zip(buckets, self._wire.run(commands, buckets, write=True), strict=True):
            counter, status, version = checked(reply)
            if status == CommitStatus.regressed:
                raise LedgerUnavailable(f"bucket {bucket} lost writes and is closed", hint="reconcile, then reopen_bucket")
            self._saw(bucket, counter)
            out.append(version if status == CommitStatus.committed else None)
        return out

    def get_user(self, user: int) -> UserRecord | None:
        """See Ledger."""
        names = (*FIELDS, "a", "n", "e", "i")
        fields = self._user_calls(np.asarray([user], np.uint64), lambda row: ("HMGET", row, *names), write=False)[0]
        zones, regions = zone_names(), region_names()
        state = state_rows([fields], zones, regions)
        state["erased"] = fields[8] is not None
        ad, night = unpack_consent(fields[6]), unpack_consent(fields[7])
        consents = (ad or Consent(0), night or Consent(0)) if ad or night else None
        record = record_of(user, state[0], consents, zones, regions)
        return record and replace(record, user_id=(fields[9] or b"").decode())

    def delete_user(self, user: int) -> bool:
        """See Ledger. The server's append-only file forgets at its next rewrite."""
        bucket = user >> 52
        (reply,) = self._wire.run([self._erase.call([_counter(bucket)], _id(user))], [bucket], write=True)
        return bool(checked(reply))

    # --- events ----------------------------------------------------------------------------------------------------

    def record_events(self, users: U64, items: U64, at: I64) -> None:
        """See Ledger."""
        packed = np.empty(len(users), np.dtype([("at", "<i8"), ("item", "<u8")]))
        packed["at"], packed["item"] = at, items
        commands: list[Command] = []
        buckets: list[int] = []
        for user in dict.fromkeys(users.tolist()):
            mine = packed[users == np.uint64(user)][-self.settings.recents_max :]
            key = _key(user >> 52, b"s:", _id(user))
            commands.append(("RPUSH", key, *(one.tobytes() for one in mine)))
            commands.append(("LTRIM", key, -self.settings.recents_max, -1))
            buckets += [user >> 52] * 2
        for reply in self._wire.run(commands, buckets, write=True) if commands else ():
            checked(reply)

    def recents(self, users: U64) -> Recents:
        """See Ledger."""
        buckets = bucket_of(users).tolist()
        commands = [("LRANGE", _key(user >> 52, b"s:", _id(user)), 0, -1) for user in users.tolist()]
        replies = [checked(reply) for reply in self._wire.run(commands, buckets, write=False)] if commands else []
        offsets = lengths_to_offsets([len(reply) for reply in replies])
        rows = np.frombuffer(b"".join(one for reply in replies for one in reply), np.dtype([("at", "<i8"), ("item", "<u8")]))
        return Recents(rows["item"].copy(), rows["at"].copy(), offsets)

    def dedupe_events(self, ids: U64, at: int, *, mark: bool = True) -> npt.NDArray[np.bool_]:  # noqa: ARG002 (Redis expires by its own clock)
        """See Ledger."""
        keys = [_key(one >> 52, b"e:", _id(one)) for one in ids.tolist()]
        life = self.settings.event_horizon_us // 1000
        commands: list[Command] = [("SET", key, b"", "NX", "PX", life) if mark else ("EXISTS", key) for key in keys]
        replies = self._wire.run(commands, bucket_of(ids).tolist(), write=mark) if commands else []
        answers = [checked(reply) for reply in replies]
        first = np.zeros(len(ids), np.bool_)
        first[np.unique(ids, return_index=True)[1]] = True
        return (
            np.asarray([answer is not None for answer in answers] if mark else [answer == 0 for answer in answers], np.bool_)
            & first
        )

    # --- catalogue, records, deferrals, outbox -----------------------------------------------------------------------

    def append_catalogue_change(self, kind: str, payload: bytes) -> int:
        """See Ledger."""
        return self._saw_head(int(self._catalogue(("RPUSH", _LOG, _change_bytes(kind, payload)), write=True)))

    def catalogue_head(self) -> int:
        """See Ledger."""
        head = int(self._catalogue(("LLEN", _LOG), write=False))
        if head < self._head_seen:
            raise LedgerUnavailable(
                f"the catalogue log fell back from {self._head_seen} to {head}", hint="restore it, or restart"
            )
        return self._saw_head(head)

    def catalogue_changes(self, after_seq: int, limit: int = 10_000) -> list[CatalogueChange]:
        """See Ledger."""
        after = max(0, after_seq)
        found = self._catalogue(("LRANGE", _LOG, after, after + limit - 1), write=False)
        return [CatalogueChange(after + 1 + i, *_change_of(one)) for i, one in enumerate(found)]

    def put_campaign(self, campaign_id: str, document: bytes) -> CampaignRow:
        """See Ledger."""
        change = _change_bytes("campaign", document)
        version, seq = self._catalogue(self._campaign.call([_LOG, _CAMPAIGNS], campaign_id, document, change), write=True)
        return CampaignRow(campaign_id, version, self._saw_head(seq), document)

    def get_campaigns(self) -> list[CampaignRow]:
        """See Ledger."""
        found = self._catalogue(("HGETALL", _CAMPAIGNS), write=False)
        rows: list[CampaignRow] = []
        for name, value in zip(found[::2], found[1::2], strict=True):
            version, seq = _TWO.unpack_from(value)
            rows.append(CampaignRow(name.decode(), version, seq, value[_TWO.size :]))
        return sorted(rows, key=lambda row: row.campaign_id)

    def find_decision(self, user: int, request_id: int, slot: int = 0) -> bytes | None:  # noqa: ARG002 (a record holds all slots)
        """See Ledger."""
        bucket = user >> 52
        commands: list[Command] = [
            ("HGET", _key(bucket, b"d:", _id(user)), _id(request_id)),
            ("GET", _key(bucket, b"a:", _PAIR.pack(user, request_id))),
        ]
        waiting, acknowledged = (checked(reply) for reply in self._wire.run(commands, [bucket] * 2, write=False))
        found: bytes | None = waiting or acknowledged
        return found[_VERSION.size :] if found else None

    def pending_records(self, limit: int) -> list[StoredRecord]:
        """See Ledger. Oldest first within a bucket."""
        out: list[StoredRecord] = []
        found = self._queued("p", "+inf", limit, lambda key, most: self._queue.call([key], "records", most), write=False)
        for bucket, (number, member, record) in found:
            user, request = _PAIR.unpack_from(member)
            (version,) = _VERSION.unpack_from(record)
            out.append(StoredRecord(bucket << _NUMBER_BITS | number, user, request, version, record[_VERSION.size :]))
        return out

    def ack_records(self, ids: Sequence[int]) -> None:
        """See Ledger."""
        self._per_bucket(ids, "ack_records", self.settings.key_horizon_us // 1000)

    def due_deferrals(self, now: int, limit: int) -> list[Deferral]:
        """See Ledger."""
        every = BUCKETS * limit  # the earliest may lie anywhere
        found = self._queued("z", now, every, lambda key, _: self._queue.call([key], "due", now, limit), write=False)
        due: list[Deferral] = []
        for _, (until, pair, record) in found:
            user, request = _PAIR.unpack(pair)
            due.append(Deferral(user, request, until, record))
        return sorted(due, key=lambda one: (one.until, one.user, one.request_id))[:limit]

    def drop_deferral(self, user: int, request_id: int) -> bool:
        """See Ledger."""
        bucket = user >> 52
        command = self._queue.call([_counter(bucket)], "drop", _PAIR.pack(user, request_id))
        return bool(checked(self._wire.run([command], [bucket], write=True)[0]))

    def claim_outbox(self, now: int, limit: int, lease_us: int) -> list[OutboxItem]:
        """See Ledger. Oldest first within a bucket; buckets take turns being first."""

        def claim(key: str, most: int) -> Command:
            return self._queue.call([key], "claim", now, most, now + lease_us)

        return _outbox_items(self._queued("oz", now, limit, claim, first=now % BUCKETS, write=True))

    def ack_outbox(self, ids: Sequence[int]) -> int:
        """See Ledger."""
        return sum(self._per_bucket(ids, "ack_outbox"))

    def postpone_outbox(self, ids: Sequence[int], until: Sequence[int], attempts: Sequence[int]) -> int:
        """See Ledger."""
        rows: dict[int, list[int]] = {}
        for one, end, tried in zip(ids, until, attempts, strict=True):
            rows.setdefault(one >> _NUMBER_BITS, []).extend((one & (1 << _NUMBER_BITS) - 1, end, tried))
        commands = [self._queue.call([_counter(bucket)], "postpone", *own) for bucket, own in rows.items()]
        replies = self._wire.run(commands, list(rows), write=True) if commands else []
        return sum(int(checked(reply)) for reply in replies)

    def buried_outbox(self, limit: int) -> list[OutboxItem]:
        """See Ledger. Oldest first within a bucket."""

        def look(key: str, most: int) -> Command:
            return self._queue.call([key], "buried", OUTBOX_BURIED, most)

        return _outbox_items(self._queued("oz", "+inf", limit, look, above=OUTBOX_BURIED, write=False))

    def queue_depths(self, now: int) -> QueueDepths:
        """See Ledger."""
        bounds = (("z", "+inf"), ("z", now), ("oz", "+inf"), ("oz", now))
        counts = [self._count(queue, "-inf", upto) for queue, upto in bounds]
        return QueueDepths(*counts, self._count("oz", OUTBOX_BURIED, OUTBOX_BURIED))

    def _count(self, queue: str, above: Any, upto: Any) -> int:
        replies = self._wire.all_buckets(lambda key: ("ZCOUNT", key[:-1] + queue, above, upto), write=False)
        return sum(int(reply) for reply in replies)

    # --- the whole ---------------------------------------------------------------------------------------------------

    def snapshot(self, as_of: int, chunk: int = 10_000) -> Iterator[LedgerView]:
        """See Ledger."""
        known: list[int] = []
        for client in self._wire.primaries():
            try:
                keys = client.scan_iter(match="hc:{*}:u:*", count=5_000)
                known += [int.from_bytes(key[-8:], "big") for key in keys]
            except (RedisError, OSError) as error:
                raise LedgerUnavailable(f"Redis cannot be reached: {error}") from error
        users = np.unique(np.asarray(known, np.uint64))
        erased = self._user_calls(users, lambda row: ("HEXISTS", row, "e"), write=False)
        users = users[np.asarray(erased, np.int64) == 0]
        for start in range(0, len(users), chunk):
            yield entries_until(self.read(users[start : start + chunk]), as_of)

    def set_history_horizon(self, horizon_us: int) -> None:
        """See Ledger."""
        self._horizon_us = max(self._horizon_us, horizon_us, self._stored_horizon())
        self._catalogue(("SET", "hc:{catalogue}:history_horizon_us", self._horizon_us), write=True)

    def closed_buckets(self) -> list[int]:
        """Buckets whose counter went backwards."""
        replies = self._wire.all_buckets(lambda key: ("EXISTS", key[:-1] + "closed"), write=False)
        return [bucket for bucket, reply in enumerate(replies) if reply]

    def reopen_bucket(self, bucket: int) -> None:
        """After reconciling: grant again, from a counter above all that any process has seen."""
        prefix = _counter(bucket)[:-1]
        (seen,) = self._wire.run([("GET", prefix + "closed")], [bucket], write=False)
        top = max(int(checked(seen) or 0), self._seen[bucket]) + 1
        self._wire.run([("SET", prefix + "n", top), ("DEL", prefix + "closed")], [bucket] * 2, write=True)
        self._saw(bucket, top)

    def close(self) -> None:
        """See Ledger."""
        self._wire.close()

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _user_calls(self, users: U64, command_of: Callable[[bytes], Command], *, write: bool) -> list[Any]:
        commands = [command_of(_key(user >> 52, b"u:", _id(user))) for user in users.tolist()]
        return [checked(reply) for reply in self._wire.run(commands, bucket_of(users).tolist(), write=write)]

    def _catalogue(self, command: Command, *, write: bool) -> Any:
        return checked(self._wire.run([command], [CATALOGUE], write=write)[0])

    def _stored_horizon(self) -> int:
        return int(self._catalogue(("GET", "hc:{catalogue}:history_horizon_us"), write=False) or 0)

    def _saw(self, bucket: int, counter: int) -> None:
        with self._lock:
            self._seen[bucket] = max(self._seen[bucket], counter)

    def _saw_head(self, head: int) -> int:
        with self._lock:
            self._head_seen = max(self._head_seen, head)
        return head

    def _queued(
        self, queue: str, upto: Any, limit: int, command_of: Callable[[str, int], Command], *, first: int = 0,
        above: Any = "-inf", write: bool,
    ) -> list[tuple[int, Any]]:  # fmt: skip
        """(bucket, row) of the buckets that have rows in `queue` (a sorted set) with a score from `above` up to `upto`:
        counted first, then asked for at most `limit` in all, from bucket `first` on. command_of(counter key, how many)."""
        counts = self._wire.all_buckets(lambda key: ("ZCOUNT", key[:-1] + queue, above, upto), write=False)
        commands, buckets, left = [], [], limit
        for bucket in (*range(first, BUCKETS), *range(first)):
            if counts[bucket] and left > 0:
                commands.append(command_of(_counter(bucket), min(left, counts[bucket])))
                buckets.append(bucket)
                left -= counts[bucket]
        replies = self._wire.run(commands, buckets, write=write) if commands else []
        return [(bucket, row) for bucket, reply in zip(buckets, replies, strict=True) for row in checked(reply)]

    def _per_bucket(self, ids: Sequence[int], what: str, *arguments: Any) -> list[int]:
        numbers: dict[int, list[int]] = {}
        for one in ids:
            numbers.setdefault(one >> _NUMBER_BITS, []).append(one & (1 << _NUMBER_BITS) - 1)
        commands = [self._queue.call([_counter(bucket)], what, *arguments, *own) for bucket, own in numbers.items()]
        replies = self._wire.run(commands, list(numbers), write=True) if commands else []
        return [int(checked(reply)) for reply in replies]


def _counter(bucket: int) -> str:
    return f"hc:{{{bucket}}}:n"


def _key(bucket: int, kind: bytes, name: bytes) -> bytes:
    return b"hc:{%d}:%b%b" % (bucket, kind, name)


def _outbox_items(rows: list[tuple[int, Any]]) -> list[OutboxItem]:
    out = []
    for bucket, (number, row, attempts) in rows:
        user, request = _PAIR.unpack_from(row)
        out.append(OutboxItem(bucket << _NUMBER_BITS | number, user, request, row[16:], attempts))
    return out


def _change_bytes(kind: str, payload: bytes) -> bytes:
    name = kind.encode()
    return bytes([len(name)]) + name + payload


def _change_of(change: bytes) -> tuple[str, bytes]:
    end = 1 + change[0]
    return change[1:end].decode(), change[end:]


def _plan_rows(plan: CommitPlan) -> list[tuple[Any, ...]]:
    """The eleven arguments of each row, as redis_commit.lua names them."""
    width, entries = plan.new_entries.dtype.itemsize, plan.new_entries.tobytes()
    ends = (plan.new_offsets * width).tolist()
    until = plan.deferred_until.tolist() if plan.deferred_until is not None and len(plan.deferred_until) else None
    settles = plan.settles.tolist() if plan.settles is not None and len(plan.settles) else None
    cells = zip(
        plan.users.tolist(), plan.read_versions.tolist(), plan.decided_at.tolist(), plan.request_ids.tolist(), strict=True
    )
    return [
        (
            _id(user),
            version,
            at,
            entries[ends[row] : ends[row + 1]],
            value_at(plan.records, row),
            _id(request),
            value_at(plan.keys, row),
            value_at(plan.digests, row),
            value_at(plan.outbox, row),
            until[row] if until else 0,
            _id(settles[row]) if settles and settles[row] else b"",
        )
        for row, (user, version, at, request) in enumerate(cells)
    ]
