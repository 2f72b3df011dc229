"""What must hold of every list the server answers, by the request alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

__all__ = ["faults_of_explained", "faults_of_list", "faults_of_page"]


def faults_of_list(
    shown: Sequence[Mapping[str, Any]], *, slots: int, excluded: Collection[str] = (), among: Collection[str] | None = None
) -> list[str]:
    """shown: places of the answer. slots: how many were asked for. among: the only ids that may be there."""
    ids = [one["id"] for one in shown]
    out = []
    if len(ids) > slots:
        out.append(f"{len(ids)} places where {slots} were asked for")
    if len(set(ids)) != len(ids):
        out.append(f"an id stands twice: {ids}")
    if [one["slot"] for one in shown] != list(range(len(ids))):
        out.append("slots are not 0, 1, 2 and so on")
    if banned := set(ids) & set(excluded):
        out.append(f"excluded, yet in the answer: {sorted(banned)}")
    if among is not None and (strange := set(ids) - set(among)):
        out.append(f"not among what was asked about: {sorted(strange)}")
    return out


def faults_of_page(content: Mapping[str, Any], *, widgets: int, slots: int, excluded: Collection[str] = ()) -> list[str]:
    """A page: each widget's list, and no product on it twice."""
    shown = content["widgets"]
    # A widget that nothing fills is not shown, and its slot stays empty: slots are those that were decided, and logged.
    order = [one["slot"] for one in shown]
    out = [] if order == sorted(set(order)) else ["widgets do not stand in the order of their slots"]
    out += faults_of_list([{**one, "slot": at} for at, one in enumerate(shown)], slots=widgets)
    for widget in shown:
        out += [
            f"widget {widget['id']}: {fault}" for fault in faults_of_list(widget["items"], slots=slots, excluded=excluded)
        ]
    ids = [item["id"] for widget in shown for item in widget["items"]]
    if len(set(ids)) != len(ids):
        out.append("a product stands on the page twice")
    return out


def faults_of_explained(content: Mapping[str, Any], name: str) -> list[str]:
    """What `explain` says must fit the answer: nothing dropped is shown, each place has a propensity in (0, 1]."""
    shown = {one["id"]: one["slot"] for one in content[name]}
    out = []
    chosen = {}
    for one in content["explain"]:
        if one["slot"] is None:
            continue
        chosen[one["id"]] = one["slot"]
        if one["drop_reason"] is not None:
            out.append(f"{one['id']} was dropped ({one['drop_reason']}) and yet stands in slot {one['slot']}")
        if not 0 < (one["propensity"] or 0) <= 1 + 1e-9:
            out.append(f"slot {one['slot']} has propensity {one['propensity']}")
    if chosen != shown:
        out.append("explain names other places than the answer")
    return out
