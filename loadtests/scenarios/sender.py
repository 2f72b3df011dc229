"""A notification sender: asks for one user, or for many at once, retries with the same key, and asks why."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from loadtests.scenarios.audience import Audience
from loadtests.scenarios.cap_count import CapCount, Suspect
from loadtests.scenarios.sends import faults_of_batch, faults_of_decision, faults_of_explained_decision, grants_of
from loadtests.scenarios.shopper import event
from loadtests.scenarios.step import Answer, Behaviour, Step, post

__all__ = ["errand", "look_into"]

_DECIDE, _BATCH = "/v1/notifications/decide", "/v1/notifications/decide-batch"
_EXPLAIN, _AGAIN, _ALL_CAMPAIGNS, _WHY, _WRONG = 0.05, 0.05, 0.2, 0.05, 0.01
_CANDIDATES = 5
_RETRIES = 2


def errand(
    audience: Audience, caps: CapCount, rng: random.Random, run: str, *, batch_share: float, batch_rows: int
) -> Behaviour:
    """One thing to do: a single decision with what follows from it, or a batch."""
    sender = _Sender(audience, caps, rng, f"{run}-{rng.getrandbits(64):016x}")
    if rng.random() < _WRONG:
        yield sender.wrong()
    elif rng.random() < batch_share:
        yield from sender.many(batch_rows)
    else:
        yield from sender.one()


def look_into(suspect: Suspect, caps: CapCount) -> Step:
    """Ask for the decision that tells what the user's limits were."""
    return _stored(suspect.decision_id, lambda answer: caps.judge(suspect, answer.content))


class _Sender:
    def __init__(self, audience: Audience, caps: CapCount, rng: random.Random, name: str) -> None:
        self._audience, self._caps, self._rng, self._name = audience, caps, rng, name
        self._channels = {one.id: one.channels for one in audience.campaigns}

    def one(self) -> Behaviour:
        """A single decision. Unknown outcomes and, now and then, known ones are asked again under the same key."""
        explain = self._rng.random() < _EXPLAIN
        row = self._row(self._rng.choice(self._audience.users), self._name)
        body = {**row, "explain": explain}
        answer = yield post(_DECIDE, body, self._checks_one(row, explain))
        for _ in range(_RETRIES):
            if not _unknown(answer):
                break
            answer = yield post(_DECIDE, body, self._checks_one(row, explain))
        if not answer.good:
            return
        first = answer.content
        yield from self._look_into(grants_of(first, first["decided_at"]))
        if self._rng.random() < _AGAIN:
            yield post(_DECIDE, body, lambda again: _same(first, again))
        if self._rng.random() < _WHY:
            yield self._why(first)
        yield from self._delivered([first])

    def many(self, rows: int) -> Behaviour:
        """A batch of distinct users."""
        users = self._rng.sample(self._audience.users, min(rows, len(self._audience.users)))
        asked = [self._row(user, f"{self._name}-{at}") for at, user in enumerate(users)]
        answer = yield post(_BATCH, {"rows": asked}, lambda got: faults_of_batch(asked, got.content, self._channels))
        if not answer.good:
            return
        decided = [one for one in answer.content["decisions"] if one is not None]
        at = answer.content["decided_at"]
        yield from self._look_into([grant for one in decided for grant in grants_of(one, at)])
        yield from self._delivered(decided)

    def wrong(self) -> Step:
        """A campaign nobody has."""
        body = {"user": self._rng.choice(self._audience.users), "candidates": [{"campaign": "no-such-campaign"}]}

        def check(answer: Answer) -> Iterable[str]:
            said = str(answer.content.get("field"))
            return [] if "campaign" in said else [f"the problem names field {said!r}, wrong is the campaign"]

        return post(_DECIDE, body, check, expect=404)

    def _row(self, user: str, key: str) -> dict[str, Any]:
        row: dict[str, Any] = {"user": user, "idempotency_key": key}
        known = self._audience.campaigns
        if known and self._rng.random() > _ALL_CAMPAIGNS:
            chosen = self._rng.sample(known, min(_CANDIDATES, len(known)))
            row["candidates"] = [self._candidate(one.id, one.channels) for one in chosen]
        return row

    def _candidate(self, campaign: str, channels: tuple[str, ...]) -> dict[str, Any]:
        if self._rng.random() < 0.5:
            return {"campaign": campaign}
        return {"campaign": campaign, "channel": self._rng.choice(channels)}

    def _checks_one(self, row: Mapping[str, Any], explain: bool) -> Callable[[Answer], Iterable[str]]:
        def check(answer: Answer) -> Iterable[str]:
            got = answer.content
            out = faults_of_decision(row, got, got["decided_at"], self._channels)
            return out + (faults_of_explained_decision(got) if explain and got["explain"] else [])

        return check

    def _look_into(self, grants: Any) -> Behaviour:
        for suspect in self._caps.add(grants):
            yield look_into(suspect, self._caps)

    def _why(self, first: Mapping[str, Any]) -> Step:
        def check(answer: Answer) -> Iterable[str]:
            told = answer.content
            return [
                f"{name}: answered {first[name]!r}, stored {told[name]!r}"
                for name in ("request_id", "action", "reason")
                if first[name] != told[name]
            ]

        return _stored(first["decision_id"], check)

    def _delivered(self, decided: list[Any]) -> Behaviour:
        """What became of the messages; never a failure, which would give a cap's use back."""
        told = [
            event(kind, one["user"], f"{send['decision_id']}-{kind}", decision_id=send["decision_id"],
                  campaign=send["campaign"], channel=send["channel"])
            for one in decided for send in one["sends"] if send["status"] == "granted" and not one["replayed"]
            for kind in ("delivered", *(("seen",) if self._rng.random() < 0.3 else ()))
        ]  # fmt: skip
        if told:
            yield post("/v1/events", told, lambda answer: _accepted(answer, len(told)))


def _stored(decision_id: str, check: Callable[[Answer], Iterable[str]]) -> Step:
    return Step("GET /v1/decisions/{id}", f"/v1/decisions/{decision_id}", None, check)


def _unknown(answer: Answer) -> bool:
    """A commit whose outcome nobody knows: the same key finds out."""
    said = answer.content if isinstance(answer.content, dict) else {}
    return answer.status == 0 or (answer.status == 503 and str(said.get("type", "")).endswith("outcome-unknown"))


def _same(first: Mapping[str, Any], again: Answer) -> list[str]:
    got = again.content
    if not got["replayed"]:
        return ["the same key was decided a second time"]
    return [] if got["decision_id"] == first["decision_id"] else ["the same key gave another decision"]


def _accepted(answer: Answer, told: int) -> list[str]:
    said = answer.content
    return [] if said["accepted"] + said["duplicates"] == told else [f"{told} events told, {said}"]
