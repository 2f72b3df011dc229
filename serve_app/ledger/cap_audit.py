"""An independent look for grants that should not be: plain loops over histories, sharing no code with the gates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from serve_app.ledger.columns import HistoryFlag, LedgerView

__all__ = ["CapRule", "find_overgrants"]


@dataclass(frozen=True, slots=True)
class CapRule:
    """At most `limit` uses per user in any `window_us` (rolling), or per local day (`window_us` None). `scope` names the
    history field that separates counts, "global" none; `only` limits the rule to one value of it."""

    scope: Literal["global", "channel", "category", "campaign"]
    limit: int
    window_us: int | None
    only: int | None = None


def find_overgrants(views: Iterable[LedgerView], rules: Iterable[CapRule]) -> Iterator[str]:
    """One line per finding: a use beyond a rule's limit, or the same (request, slot) granted twice. `views`: as
    `Ledger.snapshot` gives them. Histories are in version order, which is the order of grants."""
    rules = list(rules)
    for view in views:
        ends = view.histories.offsets.tolist()
        names = view.histories.entries.dtype.names or ()
        for row, user in enumerate(view.users.tolist()):
            entries = [
                dict(zip(names, one.item(), strict=True)) for one in view.histories.entries[ends[row] : ends[row + 1]]
            ]
            uses = [entry for entry in entries if entry["holdout"] == 0]
            yield from _repeats(user, uses)
            counted = [entry for entry in uses if not entry["flags"] & (HistoryFlag.refunded | HistoryFlag.uncounted)]
            for rule in rules:
                yield from _beyond(user, counted, rule)


def _repeats(user: int, uses: list[dict[str, Any]]) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    for entry in uses:
        grant = (entry["request_id"], entry["slot"])
        if grant in seen:
            yield f"user {user:016x}: request {grant[0]:016x} slot {grant[1]} was granted twice"
        seen.add(grant)


def _beyond(user: int, uses: list[dict[str, Any]], rule: CapRule) -> Iterator[str]:
    groups: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in uses:
        value = 0 if rule.scope == "global" else entry[rule.scope]
        if rule.only is None or value == rule.only:
            groups[value].append(entry)
    for value, own in groups.items():
        for place, entry in enumerate(own):
            before = own[: place + 1]
            if rule.window_us is None:
                count = sum(other["local_day"] == entry["local_day"] for other in before)
            else:
                count = sum(other["at"] > entry["at"] - rule.window_us for other in before)
            if count > rule.limit:
                where = rule.scope if rule.scope == "global" else f"{rule.scope} {value}"
                yield f"user {user:016x}: {where} cap of {rule.limit} passed, {count} uses at {entry['at']}"
