"""A small population with events in plain Python, the obvious oracle over it, and the same as columns."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from serve_app.ids import hash_id
from serve_app.noise import hash_key, salt_of, uniform
from serve_app.policy.instants import instant_text, instant_us
from serve_app.segments.events import DAY_US, EventColumns, EventHistory, group_events
from serve_app.segments.population import Population, Text
from serve_app.vocabulary import EventType

AS_OF = 20_000 * DAY_US + 9 * 3_600_000_000 + 123_456
ZONES = ("America/New_York", "Asia/Seoul")
REGIONS = ("KR", "US")
CATEGORIES = ("books", "shoes", "tv")
ITEMS = {hash_id(f"item-{one}"): CATEGORIES[one % 3] for one in range(6)}
EVENTS = ("view", "conversion")
COMPARE = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass
class Person:
    """One user as a shop would write them down. events: (type, time, item)."""

    name: str
    zone: str = ""
    region: str = ""
    created_at: int = 0
    consent_ad: bool = False
    events: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def user(self) -> int:
        return hash_id(self.name)


def times() -> st.SearchStrategy[int]:
    """Around `AS_OF` and around the edges of windows, to the microsecond."""
    edges = [AS_OF - days * DAY_US + off for days in (0, 1, 2, 7) for off in (-1, 0, 1)]
    midnights = [(AS_OF // DAY_US - days) * DAY_US + off for days in (0, 1, 6) for off in (-1, 0)]
    return st.sampled_from([*edges, *midnights]) | st.integers(AS_OF - 9 * DAY_US, AS_OF + DAY_US)


@st.composite
def people(draw: st.DrawFn, most: int = 12) -> list[Person]:
    """Up to `most` persons, some without anything known."""
    found = []
    for number in range(draw(st.integers(1, most))):
        happened = draw(st.lists(st.tuples(st.sampled_from(EVENTS), times(), st.sampled_from([0, *ITEMS])), max_size=8))
        found.append(
            Person(
                f"user-{number}",
                draw(st.sampled_from(("", *ZONES))),
                draw(st.sampled_from(("", *REGIONS))),
                draw(st.sampled_from((0, AS_OF - 30 * DAY_US, AS_OF - 5 * DAY_US - 1))),
                draw(st.booleans()),
                happened,
            )
        )
    return found


def population_of(persons: list[Person]) -> Population:
    """The same persons as columns."""
    ordered = sorted(persons, key=lambda one: one.user)

    def text(name: str, names: tuple[str, ...]) -> Text:
        codes = [names.index(getattr(one, name)) if getattr(one, name) else -1 for one in ordered]
        return Text(np.array(codes, np.int32), names)

    return Population(
        np.array([one.user for one in ordered], np.uint64),
        {"zone": text("zone", ZONES), "region": text("region", REGIONS)},
        {"consent_ad": np.array([one.consent_ad for one in ordered], np.bool_)},
        np.array([one.created_at for one in ordered], np.int64),
    )


def history_of(persons: list[Person]) -> EventHistory:
    """Their events as grouped days."""
    rows = [(one.user, int(EventType[kind]), at, item) for one in persons for kind, at, item in one.events]
    types = (np.uint64, np.int8, np.int64, np.uint64)
    user, kind, at, item = (np.array([row[k] for row in rows], dtype) for k, dtype in enumerate(types))
    days = []
    for day in sorted({int(one) // DAY_US for one in at}):
        own = np.flatnonzero(at // DAY_US == day)
        columns = EventColumns(
            user[own], kind[own], at[own], own.astype(np.uint64), np.zeros(len(own), np.int64), item[own]
        )  # fmt: skip
        days.append((day, group_events(columns)))
    items = np.array(sorted(ITEMS), np.uint64)
    category = np.array([CATEGORIES.index(ITEMS[int(one)]) for one in items], np.int32)
    return EventHistory(population_of(persons).users, days, items, category, CATEGORIES)


def conditions() -> st.SearchStrategy[dict[str, Any]]:
    """Leaves of every kind."""
    comparison = st.sampled_from(list(COMPARE))
    instants = st.sampled_from([instant_text(AS_OF - 30 * DAY_US), instant_text(AS_OF - 5 * DAY_US)])
    return st.one_of(
        st.fixed_dictionaries(
            {"kind": st.just("attribute"), "name": st.just("region"), "op": st.sampled_from(("==", "!=")),
             "value": st.sampled_from(("KR", "us", "DE"))}
        ),
        st.fixed_dictionaries(
            {"kind": st.just("attribute"), "name": st.just("consent_ad"), "op": st.sampled_from(("==", "!=")),
             "value": st.booleans()}
        ),
        st.fixed_dictionaries(
            {"kind": st.just("attribute"), "name": st.just("user_id"), "op": st.just("=="), "value": st.just("user-1")}
        ),
        st.fixed_dictionaries(
            {"kind": st.just("attribute"), "name": st.just("age_days"), "op": comparison,
             "value": st.sampled_from((5, 30, 7.5))}
        ),
        st.fixed_dictionaries(
            {"kind": st.just("attribute"), "name": st.just("created_at"), "op": comparison, "value": instants}
        ),
        st.fixed_dictionaries(
            {"kind": st.just("membership"), "name": st.just("zone"),
             "values": st.lists(st.sampled_from(ZONES), min_size=1, max_size=2)}
        ),
        st.fixed_dictionaries(
            {"kind": st.just("membership"), "name": st.just("user_id"),
             "values": st.lists(st.sampled_from(("user-0", "user-3", "nobody")), min_size=1, max_size=3)}
        ),
        st.fixed_dictionaries(
            {"kind": st.just("event_count"), "event": st.sampled_from(EVENTS), "within_days": st.sampled_from((1, 2, 7)),
             "op": comparison, "count": st.integers(0, 3)},
            optional={"category": st.sampled_from(CATEGORIES)},
        ),
        st.fixed_dictionaries(
            {"kind": st.just("last_event"), "event": st.sampled_from(EVENTS), "op": st.sampled_from(("<", "<=", ">", ">=")),
             "days_ago": st.sampled_from((0, 1, 2, 6.5, 7))}
        ),
        st.fixed_dictionaries(
            {"kind": st.just("bucket"), "salt": st.sampled_from(("a", "b")), "percent": st.sampled_from((0, 12.5, 50, 100))}
        ),
    )  # fmt: skip


def trees() -> st.SearchStrategy[dict[str, Any]]:
    """Conditions under and, or, not, a few levels deep."""
    return st.recursive(
        conditions(),
        lambda below: st.one_of(
            st.fixed_dictionaries({"kind": st.sampled_from(("and", "or")), "of": st.lists(below, min_size=1, max_size=3)}),
            st.fixed_dictionaries({"kind": st.just("not"), "of": below}),
        ),
        max_leaves=8,
    )


def matches(node: dict[str, Any], one: Person, segments: dict[str, dict[str, Any]]) -> bool:
    """The oracle: what the document says, one user at a time."""
    kind = node["kind"]
    if kind == "and":
        return all(matches(child, one, segments) for child in node["of"])
    if kind == "or":
        return any(matches(child, one, segments) for child in node["of"])
    if kind == "not":
        return not matches(node["of"], one, segments)
    if kind == "segment":
        return matches(segments[node["id"]], one, segments)
    if kind == "attribute":
        return _attribute(node, one)
    if kind == "membership":
        return getattr(one, {"user_id": "name", "zone": "zone"}[node["name"]]) in node["values"]
    if kind == "bucket":
        return float(uniform(hash_key(salt_of(node["salt"]), np.uint64(one.user)))[0]) * 100 < node["percent"]
    happened = [(at, item) for event, at, item in one.events if event == node["event"] and at <= AS_OF]
    if kind == "event_count":
        inside = [
            item for at, item in happened
            if at > AS_OF - node["within_days"] * DAY_US and ("category" not in node or ITEMS.get(item) == node["category"])
        ]  # fmt: skip
        return COMPARE[node["op"]](len(inside), node["count"])
    return bool(happened) and COMPARE[node["op"]](AS_OF - max(happened)[0], node["days_ago"] * DAY_US)


def _attribute(node: dict[str, Any], one: Person) -> bool:
    compare, value = COMPARE[node["op"]], node["value"]
    if node["name"] == "region":
        return one.region != "" and compare(one.region, value.upper())
    if node["name"] == "consent_ad":
        return compare(one.consent_ad, value)
    if node["name"] == "user_id":
        return compare(one.name, value)
    if one.created_at == 0:
        return False
    if node["name"] == "created_at":
        return compare(one.created_at, instant_us(value))
    return compare((AS_OF - one.created_at) / DAY_US, value)


def counts_of(node: dict[str, Any], persons: list[Person], segments: dict[str, dict[str, Any]]) -> list[Any]:
    """[count, children] of every node, by the oracle."""
    below = node.get("of", [])
    children = [below] if isinstance(below, dict) else below
    own = sum(matches(node, one, segments) for one in persons)
    return [own, [counts_of(child, persons, segments) for child in children]]
