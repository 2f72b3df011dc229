"""Users, clocks, policies and requests in any order, through the shell and two ledgers, against the oracle's own account.

The machine keeps what every user did in plain dicts. Each decision on the memory ledger must be, word for word, what the
oracle makes of that account; the SQLite ledger must say the same; and in the end both ledgers hold exactly the account.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve_app.decide import DecidedBatch, DecideStatus, decide
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Consent, LedgerSettings, UserChanges
from serve_app.ledger.record import unpack_record
from serve_app.ledger.sqlite import SqliteLedger
from serve_app.policy.compile import CompiledPolicy, compile_policy
from serve_app.policy.document import PolicyDocument
from serve_app.policy.zones import local_day, zone_index
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import Origin
from tests.unit import decision_oracle_whole as oracle
from tests.unit.decision_support import DAY, HEADS, HOUR, MINUTE, SECOND, batch_of
from tests.unit.decision_worlds import CLOCKS, ZONES, a_policy, a_request, a_state
from tests.unit.test_decision_big_policies import ITEMS, check

Row = dict[str, Any]
USERS = (1, 2, 3)
LONG = LedgerSettings(history_horizon_us=10_000 * DAY, key_horizon_us=10_000 * DAY)
STEPS = (0, 0, 1, -1, SECOND, -SECOND, MINUTE, HOUR, 9 * HOUR, 11 * HOUR, DAY, 3 * DAY, 8 * DAY)
UNKNOWN: Row = {
    "zone": None, "region": None, "consent_ad_at": 0, "consent_night_at": 0, "customer_until": 0, "reachable": 0,
    "opted_out": 0,
}  # fmt: skip
seeds = st.integers(0, 2**32)


class Account:
    """What happened to the users, in plain Python."""

    def __init__(self) -> None:
        self.state: dict[int, Row] = {user: dict(UNKNOWN) for user in USERS}
        self.history: dict[int, list[Row]] = {user: [] for user in USERS}
        self.version = dict.fromkeys(USERS, 0)
        self.keys: dict[bytes, tuple[bytes, int]] = {}
        self.deferred: dict[tuple[int, int], Row] = {}

    def as_known(self, asked: Row) -> Row:
        """The request with the user's state; a zone or region nobody knows is the request's."""
        known = {name: value for name, value in self.state[asked["user"]].items() if value is not None}
        return asked | known

    def write(self, asked: Row, said: Row, policy: PolicyDocument) -> None:
        """Take a committed decision into the account."""
        user = asked["user"]
        rows = [(row, 0) for row in self._sent(asked, said)]
        keys = [oracle.key_of(one) for one in oracle.holdouts_of(policy)]
        told = zip(asked["candidates"], said["candidates"], strict=True)
        rows += [(one, keys[out["holdout"]]) for one, out in told if out["ghost"]]
        for slot, (one, holdout) in enumerate(rows):
            kept = {name: one[name] for name in ("campaign", "category", "channel", "message_class")}
            kept |= {"at": asked["decided_at"], "zone": asked["zone"], "flags": 0, "request_id": asked["request_id"]}
            self.history[user].append(kept | {"holdout": holdout, "slot": 0 if holdout else slot})
        self.version[user] += 1
        self.deferred.pop((user, asked.get("parent_request_id", 0)), None)
        if said["action"] == "defer":
            self.deferred[user, asked["request_id"]] = asked | {"until": said["until"]}

    @staticmethod
    def _sent(asked: Row, said: Row) -> list[Row]:
        sends = [(out["slot"], c) for c, out in enumerate(said["candidates"]) if out["slot"] >= 0]
        return [asked["candidates"][c] for _, c in sorted(sends)]


class Decisions(RuleBasedStateMachine):
    """See the module."""

    @initialize(seed=seeds)
    def begin(self, seed: int) -> None:
        rng = Random(seed)
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "ledger.sqlite"
        self.ledgers = (MemoryLedger(LONG), SqliteLedger(path, LONG, durability="process"))
        self.account, self.now, self.number = Account(), rng.choice(CLOCKS), 0
        self.policies = [self._policy(rng), self._policy(rng)]
        for user in USERS[:2]:
            self._put(user, a_state(rng, self.now))

    @staticmethod
    def _policy(rng: Random) -> tuple[PolicyDocument, CompiledPolicy]:
        document = a_policy(rng)
        return document, compile_policy(document, heads={"notification": HEADS})

    def _put(self, user: int, state: Row) -> None:
        consents = {name: Consent(state[f"{name}_at"]) for name in ("consent_ad", "consent_night") if f"{name}_at" in state}
        others = {name: value for name, value in state.items() if not name.startswith("consent")}
        for ledger in self.ledgers:
            ledger.put_user(user, UserChanges(**consents, **others))
        self.account.state[user] |= state
        self.account.version[user] += 1

    @rule(step=st.sampled_from(STEPS))
    def the_clock_moves(self, step: int) -> None:
        self.now += step

    @rule(
        user=st.sampled_from(USERS),
        seed=seeds,
        what=st.sampled_from(["zone", "opted_out", "reachable", "all", "consent_ad_at"]),
    )
    def a_user_changes(self, user: int, seed: int, what: str) -> None:
        state = a_state(Random(seed), self.now)
        self._put(user, state if what == "all" else {what: state[what]})

    @rule(user=st.sampled_from(USERS))
    def a_user_opts_out_of_everything(self, user: int) -> None:
        self._put(user, {"opted_out": 63})

    @rule(seed=seeds)
    def a_policy_is_promoted(self, seed: int) -> None:
        self.policies = [self.policies[1], self._policy(Random(seed))]

    @rule(seed=seeds, keyed=st.booleans(), dry=st.sampled_from([False, False, True]))
    def requests_come(self, seed: int, keyed: bool, dry: bool) -> None:
        rng = Random(seed)
        rows = []
        for _ in range(rng.randint(1, 5)):
            self.number += 1
            columns = {"user": rng.choice(USERS), "policy": rng.randint(0, 1), "request_id": self.number, "zone": ZONES[0]}
            rows.append(a_request(rng, self.now, **columns))
        keys = [b"%016d" % row["request_id"] if keyed and not dry and rng.random() < 0.7 else b"" for row in rows]
        self._decide(rows, keys, commit=not dry)

    @precondition(lambda self: self.account.keys)
    @rule(seed=seeds, same=st.booleans())
    def a_key_is_retried(self, seed: int, same: bool) -> None:
        rng = Random(seed)
        key = rng.choice(sorted(self.account.keys))
        body, request_id = self.account.keys[key]
        self.number += 1
        user = int(body[:4])
        row = a_request(rng, self.now, user=user, policy=1, request_id=self.number)
        digest = body if same else body[:4] + b"something else"[:12]
        wanted = DecideStatus.duplicate if same else DecideStatus.key_reused
        for ledger in self.ledgers:
            out = self._ask(ledger, [row], [key], [digest])
            assert out.status.tolist() == [wanted]
            assert not out.granted.any()
            if same:
                assert unpack_record(out.stored[0])["request"]["request_id"] == request_id

    @rule(seed=seeds)
    def a_delivery_fails(self, seed: int) -> None:
        rng = Random(seed)
        user = rng.choice(USERS)
        sends = [past for past in self.account.history[user] if not past["holdout"]]
        if not sends:
            return
        past = rng.choice(sends)
        news = not past["flags"] & 1
        for ledger in self.ledgers:
            assert ledger.refund(user, past["request_id"], past["slot"]) == news
        past["flags"] |= 1
        self.account.version[user] += news

    @rule(seed=seeds, late=st.sampled_from((0, HOUR, DAY)))
    def the_sweeper_comes(self, seed: int, late: int) -> None:
        if not self.account.deferred:
            return
        first = min(one["until"] for one in self.account.deferred.values())
        self.now = max(self.now, first + late)
        due = {where: one for where, one in self.account.deferred.items() if one["until"] <= self.now}
        for ledger in self.ledgers:
            assert {(one.user, one.request_id): one.until for one in ledger.due_deferrals(self.now, 100)} == {
                where: one["until"] for where, one in due.items()
            }
        for (_, parent), one in sorted(due.items(), key=lambda pair: (pair[1]["until"], pair[0])):
            self.number += 1
            again = {"parent_request_id": parent, "origin": int(Origin.deferral), "attempt": one["attempt"] + 1}
            row = {name: value for name, value in one.items() if name != "until"} | again
            self._decide([row | {"request_id": self.number, "decided_at": self.now, "policy": 1}], [b""], commit=True)

    @rule(seed=seeds)
    def much_happens(self, seed: int) -> None:
        """A dozen of the other rules in a row: hypothesis prefers short stories."""
        rng = Random(seed)
        for _ in range(12):
            what, own = rng.random(), rng.getrandbits(32)
            self.now += rng.choice(STEPS)
            if what < 0.6:
                self.requests_come(own, rng.random() < 0.5, rng.random() < 0.15)
            elif what < 0.75:
                self.the_sweeper_comes(own, rng.choice((0, 0, HOUR)))
            elif what < 0.82:
                self.a_delivery_fails(own)
            elif what < 0.95:
                self.a_user_changes(rng.choice(USERS), own, rng.choice(("zone", "all", "all")))
            elif self.account.keys:
                self.a_key_is_retried(own, rng.random() < 0.7)
        self.the_ledgers_hold_the_account()

    def _decide(self, rows: list[Row], keys: list[bytes], *, commit: bool) -> None:
        digests = [
            b"%04d%012d" % (row["user"], row["request_id"]) if key else b"" for row, key in zip(rows, keys, strict=True)
        ]
        outs = [self._ask(ledger, rows, keys, digests, commit=commit) for ledger in self.ledgers]
        account = self.account if commit else self._copy()
        for place, row in enumerate(rows):
            document = self.policies[row["policy"]][0]
            known = account.as_known(row)
            said = oracle.decide(document, known, account.history[row["user"]], ITEMS)
            check(outs[0].batch, place, said)
            settles = row.get("origin") == Origin.deferral
            ghosts = any(one["ghost"] for one in said["candidates"])
            if said["action"] in ("send", "defer") or ghosts or settles or keys[place]:
                account.write(known, said, document)
                if commit and keys[place]:
                    account.keys[keys[place]] = digests[place], row["request_id"]
            if commit:
                assert outs[0].versions[place] == account.version[row["user"]]
                assert outs[0].granted[place] == (said["action"] == "send")
        self._agree(*outs)

    def _copy(self) -> Account:
        other = Account()
        other.state, other.version = self.account.state, dict(self.account.version)
        other.history = {user: list(past) for user, past in self.account.history.items()}
        return other

    def _ask(
        self, ledger: Any, rows: list[Row], keys: list[bytes], digests: list[bytes], *, commit: bool = True
    ) -> DecidedBatch:
        columns = set().union(*rows)
        full = [dict.fromkeys(columns, 0) | row for row in rows]
        context = Context(tuple(compiled for _, compiled in self.policies), {})
        return decide(
            ledger, Decision(), batch_of(full), context, keys=keys, digests=digests, commit=commit, item_hashes=ITEMS
        )

    @staticmethod
    def _agree(one: DecidedBatch, other: DecidedBatch) -> None:
        assert one.status.tolist() == other.status.tolist()
        assert one.versions.tolist() == other.versions.tolist()
        for mine, theirs in ((one.batch.requests, other.batch.requests), (one.batch.candidates, other.batch.candidates)):
            assert {name: v.tobytes() for name, v in mine.items()} == {name: v.tobytes() for name, v in theirs.items()}

    @invariant()
    def the_ledgers_hold_the_account(self) -> None:
        if not hasattr(self, "account"):
            return
        for ledger in self.ledgers:
            view = ledger.read(np.array(USERS, np.uint64))
            assert view.versions.tolist() == [self.account.version[user] for user in USERS]
            for place, user in enumerate(USERS):
                entries = view.histories.entries[view.histories.offsets[place] : view.histories.offsets[place + 1]]
                told = [{name: int(one[name]) for name in entries.dtype.names or ()} for one in entries]
                wanted = [
                    {name: past[name] for name in told[0] if name != "local_day"}
                    | {"local_day": int(local_day(past["at"], zone_index(past["zone"]))[0])}
                    for past in self.account.history[user]
                ] if told else []  # fmt: skip
                assert told == wanted
                assert bool(told) == bool(self.account.history[user])

    def teardown(self) -> None:
        for ledger in getattr(self, "ledgers", ()):
            ledger.close()
        if hasattr(self, "folder"):
            self.folder.cleanup()


# More with `pytest --hypothesis-profile=deep`.
DEEP = settings.default is not None and settings.default.max_examples > 1000
Decisions.TestCase.settings = settings(
    max_examples=2000 if DEEP else 25,
    stateful_step_count=50 if DEEP else 15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
TestDecisions = Decisions.TestCase
