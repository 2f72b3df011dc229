"""Events: checked one by one, de-duplicated, journalled, applied, and only then answered.

Order matters. An id is first *asked* for, then its event is journalled and applied, and only then *marked*: a crash between
leads to an event that is applied twice (state changes are idempotent, and compaction drops the second copy), never to one
that is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from serve_app.clock import micros_of
from serve_app.errors import HindcastError, InvalidInput, plain_words
from serve_app.ids import hash_id, parse_decision_id
from serve_app.ingress.problems import ProblemError
from serve_app.ingress.schemas_state import Event, EventProblem, EventsAnswer
from serve_app.ledger.protocol import Consent, UserChanges
from serve_app.log.rows import fill
from serve_app.policy.zones import zone_index
from serve_app.serving.owner import Optings
from serve_app.vocabulary import Channel, EventType

__all__ = ["MAX_EVENTS", "ParsedEvents", "event_rows", "names_rows", "parse_events", "state_change", "views_of"]

MAX_EVENTS = 10_000
_EVENT = TypeAdapter(Event)
_SEEN = frozenset({EventType.view, EventType.click, EventType.add_to_cart, EventType.conversion})
_ALL_CHANNELS = sum(1 << channel for channel in Channel)


@dataclass(slots=True)
class ParsedEvents:
    """Good events with their hashed ids, and a problem for each of the others."""

    events: list[Event]
    ids: list[int]
    errors: list[EventProblem]

    def answer(self, accepted: int) -> dict[str, Any]:
        """The answer's content when `accepted` of the good events were new."""
        duplicates = len(self.events) - accepted
        made = EventsAnswer(accepted=accepted, duplicates=duplicates, refused=len(self.errors), errors=self.errors[:1000])
        return made.model_dump()


def parse_events(raw: bytes) -> ParsedEvents:
    """A JSON array of CloudEvents, or one event. Whole-body errors raise; an event's own error does not stop the others."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ProblemError(
            400, "malformed-json", f"body: {error}", field="body", hint="send a JSON array of CloudEvents"
        ) from None
    rows = body if isinstance(body, list) else [body]
    if len(rows) > MAX_EVENTS:
        raise ProblemError(
            422, "invalid-field", f"{len(rows)} events, at most {MAX_EVENTS}", field="body", hint="send several batches"
        )
    out = ParsedEvents([], [], [])
    for index, row in enumerate(rows):
        try:
            event = _EVENT.validate_python(row)
            _check_meaning(event)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "event"
            out.errors.append(_problem(index, row, field, plain_words(first["msg"])))
        except InvalidInput as error:
            hint = f"; {error.hint}" if error.hint else ""
            out.errors.append(_problem(index, row, error.field or "event", error.message + hint))
        else:
            out.events.append(event)
            out.ids.append(hash_id(event.id))
    return out


def _problem(index: int, row: Any, field: str, detail: str) -> EventProblem:
    known = row.get("id") if isinstance(row, dict) else None
    return EventProblem(index=index, id=known if isinstance(known, str) else None, field=field, detail=detail)


def _check_meaning(event: Event) -> None:
    """What a type needs beyond the schema."""
    data = event.data
    needs: dict[str, tuple[str, ...]] = {
        "consent": ("consent", "given"),
        "zone": ("zone",),
        "delivery_failed": ("decision_id",),
        "delivered": ("decision_id",),
        "view": ("item",),
        "click": (),
        "add_to_cart": ("item",),
        "conversion": ("item",),
    }
    for name in needs.get(event.type, ()):
        if getattr(data, name) is None:
            raise InvalidInput(f"an event of type {event.type} needs it", field=f"data.{name}", hint="add it")
    if event.type == "zone" and data.zone is not None:
        zone_index(data.zone)
    if data.decision_id is not None and parse_decision_id(data.decision_id)[0] != hash_id(event.subject):
        raise InvalidInput("belongs to another user than subject", field="data.decision_id")
    for name in ("time",):
        micros_of(getattr(event, name))


def event_rows(events: Sequence[Event], now: int) -> pa.RecordBatch:
    """Rows of the log's table `events`, received at `now` (microseconds UTC)."""
    decisions = [None if e.data.decision_id is None else parse_decision_id(e.data.decision_id) for e in events]

    def hashed(values: list[str | None]) -> pa.Array:
        return pa.array([None if value is None else hash_id(value) for value in values], pa.uint64())

    data = [event.data for event in events]
    columns = {
        "user": np.array([hash_id(event.subject) for event in events], np.uint64),
        "ts": np.array([micros_of(event.time) for event in events], np.int64),
        "event_id": np.array([hash_id(event.id) for event in events], np.uint64),
        "type": np.array([EventType[event.type] for event in events], np.int8),
        "ingested_at": np.full(len(events), now, np.int64),
        "decision_request_id": pa.array([None if one is None else one[1] for one in decisions], pa.uint64()),
        "slot": pa.array([None if one is None else one[2] for one in decisions], pa.int32()),
        "item": hashed([one.item for one in data]),
        "campaign": hashed([one.campaign for one in data]),
        "channel": pa.array([None if one.channel is None else Channel[one.channel.value] for one in data], pa.int8()),
        "session": hashed([one.session for one in data]),
        "position": pa.array([one.position for one in data], pa.int32()),
        "quantity": pa.array([one.quantity for one in data], pa.int32()),
        "amount": pa.array([one.amount for one in data], pa.float64()),
        "currency": pa.array([one.currency for one in data], pa.string()),
        "stars": pa.array([one.stars for one in data], pa.float32()),
        "attributes": pa.array([_attributes(event) for event in events], pa.string()),
    }
    return fill("events", len(events), columns)


def _attributes(event: Event) -> str | None:
    data = event.data
    said = {"consent": data.consent, "given": data.given, "proof": data.proof, "zone": data.zone}
    known = {name: value for name, value in said.items() if value is not None}
    return orjson.dumps(known).decode() if known else None


def names_rows(users: Sequence[str], items: Sequence[str], now: int) -> dict[str, pa.RecordBatch]:
    """Rows of the dictionaries `users` and `items`: the text behind the hashes of other tables."""
    people, things = list(dict.fromkeys(users)), list(dict.fromkeys(items))
    return {
        "users": fill(
            "users",
            len(people),
            {
                "user": np.array([hash_id(one) for one in people], np.uint64),
                "ts": np.full(len(people), now, np.int64),
                "user_id": pa.array(people, pa.string()),
            },
        ),
        "items": fill(
            "items",
            len(things),
            {
                "ts": np.full(len(things), now, np.int64),
                "item": np.array([hash_id(one) for one in things], np.uint64),
                "item_id": pa.array(things, pa.string()),
            },
        ),
    }


def views_of(events: Sequence[Event]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(users u64, items u64, at i64) of the events that make an item a recent one."""
    seen = [e for e in events if EventType[e.type] in _SEEN and e.data.item is not None]
    return (
        np.array([hash_id(e.subject) for e in seen], np.uint64),
        np.array([hash_id(e.data.item or "") for e in seen], np.uint64),
        np.array([micros_of(e.time) for e in seen], np.int64),
    )


def state_change(event: Event, now: int) -> tuple[UserChanges, Optings | None] | None:
    """What an event changes in its user's state; None: nothing."""
    data, at = event.data, micros_of(event.time)
    bits = _ALL_CHANNELS if data.channel is None else 1 << Channel[data.channel.value]
    match event.type:
        case "opt_out":
            return UserChanges(), Optings(out=bits)
        case "opt_in":
            return UserChanges(), Optings(back=bits)
        case "zone":
            return UserChanges(zone=data.zone), None
        case "consent":
            consent = Consent(at if data.given else 0, now, data.proof or "")
            night = data.consent == "night"
            return UserChanges(consent_night=consent) if night else UserChanges(consent_ad=consent), None
    return None


def refund_of(event: Event) -> tuple[int, int, int] | None:
    """(user, request_id, slot) of a grant that was not delivered."""
    if event.type != "delivery_failed" or event.data.decision_id is None:
        return None
    return parse_decision_id(event.data.decision_id)


def describe(error: HindcastError) -> str:
    """One line for a per-event problem."""
    return str(error)
