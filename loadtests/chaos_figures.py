"""What a kill cost, from the calls around it: pure figures over recorded calls. Times are seconds of one monotonic clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PROMPT_S", "Attempt", "Call", "Figures", "Targets", "figures_of", "untroubled"]

PROMPT_S = 2.0
"""A call that takes longer was held up, even if it never failed."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One HTTP request of a call. failure: empty where it was answered well. foreign: it was answered by something that does
    not speak in problem documents (HAProxy's own 500, Ray's proxy)."""

    began: float
    ended: float
    failure: str = ""
    foreign: bool = False


@dataclass(slots=True)
class Call:
    """What a caller wants answered: meant to leave at `intended`, attempted until `over`. faults: what is wrong with the
    content of its answer. request_id: of the answer, as a number."""

    kind: str
    intended: float
    attempts: list[Attempt] = field(default_factory=list)
    over: bool = False
    faults: list[str] = field(default_factory=list)
    degraded: tuple[str, ...] = ()
    request_id: int | None = None
    key: str = ""

    @property
    def answered(self) -> bool:
        """Whether the caller got what it asked for in the end."""
        return self.over and bool(self.attempts) and not self.attempts[-1].failure

    @property
    def untroubled(self) -> bool:
        """Answered at the first attempt, at once, and well."""
        return self.answered and not self.faults and len(self.attempts) == 1 and self.took_s <= PROMPT_S

    @property
    def ended(self) -> float:
        """When its last attempt so far ended."""
        return self.attempts[-1].ended

    @property
    def felt(self) -> float:
        """When trouble first showed: an attempt failed, or the answer was held up; where none did, when it was to leave."""
        failed = [attempt.ended for attempt in self.attempts if attempt.failure]
        return failed[0] if failed else self.ended if self.took_s > PROMPT_S else self.intended

    @property
    def took_s(self) -> float:
        """From when it was meant to leave to the end of its last attempt."""
        return self.ended - self.intended


@dataclass(frozen=True, slots=True)
class Figures:
    """calls: that first felt trouble between a kill and the next, or left untroubled then. failed_attempts: by what was
    said. foreign: attempts answered without a problem document, also where another attempt was answered well. visible: calls
    that failed in the end, or got a wrong answer. recovery_s: from the kill until the last failed attempt, or the last
    answer that was held up, had ended."""

    what: str
    calls: int
    failed_attempts: dict[str, int]
    foreign: int
    visible: int
    wrong: list[str]
    degraded: int
    slowest_s: float
    recovery_s: float

    @property
    def visible_share(self) -> float:
        """Of calls; an answer in foreign words counts as a failure, too."""
        return (self.visible + self.foreign) / self.calls if self.calls else 0.0

    def told(self) -> dict[str, Any]:
        """As JSON."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**own, "visible_share": self.visible_share}


@dataclass(frozen=True, slots=True)
class Targets:
    """visible_share: of calls after the kill of a replica, at most. recovery_s: after any kill, at most."""

    visible_share: float = 0.001
    recovery_s: float = 10.0

    def missed(self, one: Figures) -> list[str]:
        """What `one` misses, in words."""
        out = []
        if one.visible_share >= self.visible_share:
            out.append(f"{one.what}: {one.visible + one.foreign} of {one.calls} calls failed for the client")
        if one.recovery_s >= self.recovery_s:
            out.append(f"{one.what}: trouble for {one.recovery_s:.1f} s")
        return out + [f"{one.what}: {fault}" for fault in one.wrong[:3]]


def figures_of(what: str, calls: Sequence[Call], killed: float, until: float) -> Figures:
    """The figures of the kill at `killed`; the next one, or the end, comes at `until`."""
    own = [call for call in calls if call.over and killed <= call.felt < until]
    tried = [attempt for call in own for attempt in call.attempts if attempt.ended >= killed]
    ends = [attempt.ended for attempt in tried if attempt.failure] + [one.ended for one in own if one.took_s > PROMPT_S]
    ends = [min(end, until) for end in ends]  # what lasts beyond it is the next one's, too
    return Figures(
        what=what,
        calls=len(own),
        failed_attempts=dict(Counter(attempt.failure for attempt in tried if attempt.failure)),
        foreign=sum(attempt.foreign for attempt in tried),
        visible=sum(not call.answered or bool(call.faults) for call in own),
        wrong=[fault for call in own for fault in call.faults],
        degraded=sum(bool(call.degraded) for call in own),
        slowest_s=round(max((call.took_s for call in own), default=0.0), 3),
        recovery_s=round(max((end - killed for end in ends), default=0.0), 2),
    )


def untroubled(calls: Sequence[Call], since: float, wanted: int) -> bool:
    """Whether the last `wanted` calls that are over, of those meant to leave after `since`, were all untroubled, and none
    older is still under way."""
    own = [call for call in calls if call.intended >= since]
    done = [call for call in own if call.over]
    if len(done) < wanted:
        return False
    last = done[-wanted:]
    return all(call.untroubled for call in last) and all(call.over or call.intended >= last[0].intended for call in own)
