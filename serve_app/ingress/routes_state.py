"""Facts that decisions are made from: events, users, items, campaigns. Durable, and in force, before they are answered."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
from starlette.responses import Response

from serve_app.campaigns import CampaignDocument, parse_campaign, validate_campaign
from serve_app.clock import micros_of, now_us, text_of
from serve_app.errors import InvalidInput, UnknownIdentifier
from serve_app.ids import hash_id
from serve_app.ingress.auth import Scope
from serve_app.ingress.calls import Call, Incoming, json_answer
from serve_app.ingress.events import (
    event_rows,
    names_rows,
    parse_events,
    refund_of,
    state_change,
    views_of,
)
from serve_app.ingress.problems import ProblemError
from serve_app.ingress.schemas import Channel as ChannelName
from serve_app.ingress.schemas_state import (
    CampaignState,
    ConsentIn,
    Event,
    EventBatch,
    EventProblem,
    EventsAnswer,
    ItemDocument,
    ItemState,
    UserDocument,
    UserState,
)
from serve_app.ledger.protocol import Consent, UserChanges, UserRecord
from serve_app.log.erasure import erase_user
from serve_app.log.surroundings import availability, environment_rows
from serve_app.policy.zones import zone_index
from serve_app.regions import region_index
from serve_app.serving.journalling import JournalHost
from serve_app.serving.library import Library
from serve_app.serving.live import ITEM_CHANGE, encode_item_change
from serve_app.serving.meters import count
from serve_app.serving.stages import in_pool
from serve_app.settings import Settings
from serve_app.vocabulary import Channel

__all__ = ["StateRoutes"]

_EVENT_MEDIA = ("application/cloudevents-batch+json", "application/cloudevents+json")


class StateRoutes:
    """Handlers of events and state."""

    def __init__(self, owner: Any, library: Library, journal: JournalHost, pool: Executor, settings: Settings) -> None:
        self._owner, self._library, self._journal, self._pool = owner, library, journal, pool
        self._limits, self._data = settings.limits, settings.data

    def calls(self) -> list[Call]:
        """The calls of this module."""
        size, user, item = self._limits.body_bytes, {"id": "the user"}, {"id": "the item"}
        campaign = {"id": "the campaign"}
        return [
            Call(
                "POST", "/v1/events", "What users did and what became of messages (CloudEvents)", self._events,
                Scope.events, EventBatch, EventsAnswer, self._limits.event_body_bytes, "facts",
                media=_EVENT_MEDIA, raw=True,
            ),
            Call("PUT", "/v1/users/{id:path}", "Consents, opt-outs, reachability, zone of a user", self._put_user,
                 Scope.events, UserDocument, UserState, size, "facts", user),
            Call("GET", "/v1/users/{id:path}", "A user's state", self._get_user,
                 Scope.read, None, UserState, 0, "facts", user),
            Call("DELETE", "/v1/users/{id:path}", "Forget a user: state, history, log", self._delete_user,
                 Scope.events, None, None, 0, "facts", user),
            Call("PUT", "/v1/items/{id:path}", "Hide an item, show it, or offer a new one", self._put_item,
                 Scope.events, ItemDocument, ItemState, size, "facts", item),
            Call("PUT", "/v1/campaigns/{id:path}", "Store a campaign; every change is a new version", self._put_campaign,
                 Scope.events, CampaignDocument, CampaignState, size, "facts", campaign, raw=True),
        ]  # fmt: skip

    async def _events(self, incoming: Incoming) -> Response:
        parsed = await in_pool(self._pool, lambda: parse_events(incoming.raw))
        if not parsed.events:
            return json_answer(parsed.answer(0))
        now = incoming.at_us
        ids = np.array(parsed.ids, np.uint64)
        unseen = await self._owner.call("dedupe_events", ids, now, mark=False)
        new = [event for event, is_new in zip(parsed.events, unseen, strict=True) if is_new]
        if new:
            await self._record(new, now)
            errors = await self._apply(new, now)
            parsed.errors += errors
            await self._remember(new, ids[unseen], now)
        answer = parsed.answer(len(new))
        for outcome in ("accepted", "duplicates", "refused"):
            count("hindcast_events", answer[outcome], outcome=outcome)
        return json_answer(answer)

    async def _record(self, events: Sequence[Event], now: int) -> None:
        def write() -> bool:
            rows = {"events": event_rows(events, now)}
            rows |= names_rows([e.subject for e in events], [e.data.item for e in events if e.data.item], now)
            return self._journal.write(rows)

        if not await in_pool(self._pool, write):
            raise ProblemError(
                503, "log-unavailable", "the events could not be made durable in time", hint="send them again",
                retry_after_s=1,
            )  # fmt: skip

    async def _apply(self, events: Sequence[Event], now: int) -> list[EventProblem]:
        """Change user state and refund failed deliveries; repeated events do no harm."""
        problems = []
        for index, event in enumerate(events):
            try:
                change = state_change(event, now)
                if change is not None:
                    await self._owner.change_user(hash_id(event.subject), *change)
                refund = refund_of(event)
                if refund is not None:
                    await self._owner.call("refund", *refund)
            except InvalidInput as error:
                problems.append(EventProblem(index=index, id=event.id, field=error.field or "event", detail=error.message))
        return problems

    async def _remember(self, events: Sequence[Event], ids: np.ndarray, now: int) -> None:
        won = await self._owner.call("dedupe_events", ids, now, mark=True)
        users, items, at = views_of([event for event, first in zip(events, won, strict=True) if first])
        if len(users):
            await self._owner.call("record_events", users, items, at)

    async def _put_user(self, incoming: Incoming) -> Response:
        name, document = incoming.params["id"], incoming.body
        changes = replace(_user_changes(document, incoming.at_us), user_id=name)
        record = await self._owner.change_user(hash_id(name), changes)
        rows = names_rows([name], [], incoming.at_us)
        await in_pool(self._pool, lambda: self._journal.write(rows))
        return json_answer(_user_state(name, record))

    async def _get_user(self, incoming: Incoming) -> Response:
        name = incoming.params["id"]
        record = await self._owner.call("get_user", hash_id(name))
        if record is None:
            raise UnknownIdentifier(f"nothing was ever said of user {name[:60]!r}", field="id", hint="PUT it first")
        return json_answer(_user_state(name, record))

    async def _delete_user(self, incoming: Incoming) -> Response:
        """Idempotent, and no question about whether the user was known: the log may know users the ledger never met."""
        user = hash_id(incoming.params["id"])
        await in_pool(self._pool, lambda: erase_user(self._data, user, incoming.at_us))
        await self._owner.call("delete_user", user)
        # Decisions that were under way are before this instant; what the user does from here on is new.
        await in_pool(self._pool, lambda: erase_user(self._data, user, now_us()))
        return Response(status_code=204)

    async def _put_item(self, incoming: Incoming) -> Response:
        name, document = incoming.params["id"], incoming.body
        payload = encode_item_change(
            name,
            available=document.available,
            title=document.title,
            category=document.category,
            price=document.price,
        )
        seq = await self._owner.call("append_catalogue_change", ITEM_CHANGE, payload)
        happened = availability(incoming.at_us, name, document.available, seq)
        rows = names_rows([], [name], incoming.at_us) | {"environment": environment_rows([happened])}
        await in_pool(self._pool, lambda: self._journal.write(rows))
        return json_answer(ItemState(item=name, sequence=seq, available=document.available).model_dump())

    async def _put_campaign(self, incoming: Incoming) -> Response:
        name = incoming.params["id"]
        try:
            said = orjson.loads(incoming.raw)
        except orjson.JSONDecodeError as error:
            raise ProblemError(400, "malformed-json", f"body: {error}", field="body", hint="send one JSON object") from None
        if not isinstance(said, dict):
            raise ProblemError(422, "invalid-field", "the body must be a JSON object", field="body")
        if said.get("campaign_id", name) != name:
            raise InvalidInput("differs from the id in the path", field="campaign_id", hint="leave it out of the body")
        document = parse_campaign({**said, "campaign_id": name})
        with self._library.policies.pinned() as (_, policy):
            validate_campaign(document, policy)
        row = await self._owner.call("put_campaign", name, document.model_dump_json().encode())
        return json_answer({"campaign": name, "version": row.version, "sequence": row.seq})


def _user_changes(document: UserDocument, now: int) -> UserChanges:
    if document.zone:
        zone_index(document.zone)
    if document.region:
        region_index(document.region)
    given = document.model_fields_set
    return UserChanges(
        consent_ad=_consent(document, "consent_advertising", now),
        consent_night=_consent(document, "consent_night", now),
        customer_until=_moment(document.customer_until) if "customer_until" in given else None,
        reachable=_bits(document.reachable),
        opted_out=_bits(document.opted_out),
        zone=document.zone,
        region=document.region.upper() if document.region else None,
    )


def _consent(document: UserDocument, field: str, now: int) -> Consent | None:
    """A consent as stored, None where the document does not speak of it; null withdraws it."""
    if field not in document.model_fields_set:
        return None
    said: ConsentIn | None = getattr(document, field)
    if said is None or said.given_at is None:
        return Consent(0, now, said.proof if said else "")
    at = micros_of(said.given_at)
    if at > now + 60_000_000:
        raise InvalidInput("a consent cannot have been given in the future", field=f"{field}.given_at")
    return Consent(at, now, said.proof)


def _moment(at: datetime | None) -> int:
    return 0 if at is None else micros_of(at.astimezone(UTC))


def _bits(channels: Sequence[ChannelName] | None) -> int | None:
    return None if channels is None else sum(1 << Channel[name.value] for name in set(channels))


def _channels(bits: int) -> list[str]:
    return [channel.name for channel in Channel if bits >> channel & 1]


def _consent_state(consent: Consent) -> dict[str, Any]:
    return {
        "given_at": text_of(consent.at) if consent.at else None,
        "recorded_at": text_of(consent.recorded_at) if consent.recorded_at else None,
        "proof": consent.proof,
    }


def _user_state(name: str, record: UserRecord) -> dict[str, Any]:
    return {
        "user": name,
        "version": record.version,
        "consent_advertising": _consent_state(record.consent_ad),
        "consent_night": _consent_state(record.consent_night),
        "customer_until": text_of(record.customer_until) if record.customer_until else None,
        "reachable": _channels(record.reachable),
        "opted_out": _channels(record.opted_out),
        "zone": record.zone or None,
        "region": record.region or None,
    }
