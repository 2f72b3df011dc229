"""What a segment may ask of a user: the attributes there are, their kinds, and which comparisons fit them.

A condition that can never be evaluated is refused where the document is read, not where a message is held back.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from serve_app.errors import ContradictoryPolicy, InvalidInput
from serve_app.policy.instants import instant_us
from serve_app.policy.segment_tree import Attribute, Membership, Scalar
from serve_app.policy.zones import zone_index
from serve_app.regions import region_index
from serve_app.vocabulary import Channel

__all__ = ["ATTRIBUTES", "AttributeKind", "check_attribute"]


class AttributeKind(StrEnum):
    """How an attribute's values look in a document."""

    identity = "a user id, as clients send it"
    text = "text"
    flag = "true or false"
    number = "a number"
    instant = "an instant, as 2026-01-31T09:00:00+09:00"


def _attributes() -> dict[str, AttributeKind]:
    known = {
        "user_id": AttributeKind.identity,
        "zone": AttributeKind.text,  # IANA name
        "region": AttributeKind.text,  # ISO 3166-1 alpha-2, in either case
        "created_at": AttributeKind.instant,  # first seen
        "age_days": AttributeKind.number,  # days between created_at and the evaluation
        "consent_ad": AttributeKind.flag,  # advertising consent given and not withdrawn
        "consent_night": AttributeKind.flag,
        "customer": AttributeKind.flag,  # the existing-customer exception runs at the evaluation
    }
    for channel in Channel:
        known[f"reachable_{channel.name}"] = AttributeKind.flag
        known[f"opted_out_{channel.name}"] = AttributeKind.flag
    return known


ATTRIBUTES: Mapping[str, AttributeKind] = MappingProxyType(_attributes())
"""Attribute names and their kinds. Zone and region come from the ledger, where it has none from the catalogue; consents,
`customer`, reachability and opt-outs from the ledger (a user it does not know has given no consent and is unreachable)."""

_EQUALITY = ("==", "!=")


def check_attribute(node: Attribute | Membership, field: str) -> None:
    """Raise ContradictoryPolicy, naming `field` and the fix, where the attribute does not exist or the comparison or a value
    does not fit it."""
    kind = ATTRIBUTES.get(node.name)
    if kind is None:
        hint = f"known: {', '.join(ATTRIBUTES)}"
        raise ContradictoryPolicy(f"users have no attribute {node.name!r}", field=f"{field}.name", hint=hint)
    if isinstance(node, Membership):
        for place, value in enumerate(node.values):
            _check_value(node.name, kind, value, f"{field}.values.{place}")
        return
    if node.op not in _EQUALITY and kind not in (AttributeKind.number, AttributeKind.instant):
        message = f"{node.name} is {kind.value}, which has no order"
        raise ContradictoryPolicy(message, field=f"{field}.op", hint="use == or !=, or kind: membership")
    _check_value(node.name, kind, node.value, f"{field}.value")


def _check_value(name: str, kind: AttributeKind, value: Scalar, field: str) -> None:
    if kind is AttributeKind.flag:
        fits = isinstance(value, bool)
    elif kind is AttributeKind.number:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        fits = isinstance(value, str) and value != ""
    if not fits:
        raise ContradictoryPolicy(f"{value!r} does not fit {name}", field=field, hint=f"{name} is {kind.value}")
    try:
        if kind is AttributeKind.instant:
            _check_instant(str(value))
        elif name == "zone":
            zone_index(str(value))
        elif name == "region":
            region_index(str(value))
    except (InvalidInput, ValueError) as error:
        hint = error.hint if isinstance(error, InvalidInput) else f"{name} is {kind.value}"
        message = error.message if isinstance(error, InvalidInput) else f"{value!r} is not an instant with its offset"
        raise ContradictoryPolicy(message, field=field, hint=hint) from None


def _check_instant(text: str) -> None:
    try:
        instant_us(text)
    except TypeError:  # a date and time without an offset cannot be compared with one that has it
        raise ValueError(text) from None
