"""What an audit found: counts by kind, a few examples of each, and what could not be looked at."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["KINDS", "AuditReport"]

KINDS: dict[str, str] = {
    "grant_not_logged": "the ledger counted a send that the log does not hold",
    "grant_not_ledgered": "the log holds a granted send that the ledger does not count",
    "log_ahead_of_ledger": "the log holds a commit of a version that the ledger has not reached",
    "version_twice": "two decisions of a user wrote the same version",
    "version_backwards": "a decision wrote a version that does not follow the one it read",
    "key_twice": "one idempotency key was committed twice within its horizon",
    "decision_twice": "a decision stands in the log more than once",
    "granted_twice": "a send was counted twice by the ledger",
    "request_without_decision": "a request was logged without a decision",
    "decision_without_request": "a decision was logged without its request",
    "candidates_lost": "a request has fewer candidates in the log than it was decided over",
    "over_cap": "a send passed a cap of its policy",
    "min_gap": "a send came sooner after another than its policy allows",
    "quiet_hours": "a message was sent in quiet hours",
    "no_consent": "an advertisement was sent without the consent its region asks for",
    "no_night_consent": "an advertisement was sent at night without consent to that",
    "unlabelled_ad": "an advertisement was sent without the label its region asks for",
    "opted_out": "a message was sent on a channel that the user had opted out of, or cannot be reached by",
    "expired": "a message was sent after its time",
    "outbox_without_grant": "a message waits in the outbox that nobody granted",
    "grant_without_outbox": "a grant for the outbox is neither in it nor reported delivered or failed",
    "deferral_without_end": "a deferral is over, and neither decided again nor waiting",
    "propensities": "the probabilities of a decision's choices do not sum to one",
    "policy_unknown": "sends were decided by a policy that the data folder does not hold, so its rules were not checked",
    "ledger_damaged": "the ledger's file does not fit together",
}
"""Every kind of finding, in words."""

_EXAMPLES = 5


@dataclass(slots=True)
class AuditReport:
    """counts: findings by kind. examples: at most five sentences of each. looked_at: what was read, by name. notes: what
    could not be checked, and why."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    looked_at: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing was found."""
        return not self.counts

    def add(self, kind: str, example: str, count: int = 1) -> None:
        """One finding (or several of which `example` is one)."""
        if kind not in KINDS:
            raise KeyError(kind)
        self.counts[kind] += count
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _EXAMPLES:
            shown.append(example)

    def document(self) -> dict[str, object]:
        """As JSON."""
        kinds = [kind for kind in KINDS if kind in self.counts]
        found = {
            kind: {"count": self.counts[kind], "meaning": KINDS[kind], "examples": self.examples[kind]} for kind in kinds
        }
        return {"clean": self.clean, "findings": found, "looked_at": dict(self.looked_at), "notes": self.notes}
