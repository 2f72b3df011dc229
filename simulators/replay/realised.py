"""What a policy did on its own course, decision by decision, and the same of what was logged."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.vocabulary import Reason
from simulators.replay.opportunities import Opportunities

__all__ = ["Realised", "as_logged"]

I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Realised:
    """Decisions in order of user and time; sends likewise.

    rows i64[k]: the logged request whose context a decision had (a request may be decided several times, or not at all);
    at i64[k], action i8[k], reason i8[k] (chosen where it sent). send_decision i64[s]: place among the decisions;
    send_candidate i64[s]: place among the logged candidates. candidate_reasons i64[reasons]: primary reasons of all
    candidates. carried: re-decisions that had to use their parent's scores.
    """

    rows: I64
    at: I64
    action: I8
    reason: I8
    send_decision: I64
    send_candidate: I64
    candidate_reasons: I64
    carried: int = 0

    def only(self, counts: Bools | None) -> Realised:
        """Decisions of some logged requests (bool[n]; None: all). Reasons of candidates are those of whoever counted."""
        if counts is None:
            return self
        keep = counts[self.rows]
        place, sent = np.cumsum(keep) - 1, keep[self.send_decision]
        return replace(
            self, rows=self.rows[keep], at=self.at[keep], action=self.action[keep], reason=self.reason[keep],
            send_decision=place[self.send_decision[sent]], send_candidate=self.send_candidate[sent],
        )  # fmt: skip


def as_logged(asked: Opportunities, counts: Bools | None = None) -> Realised:
    """What the log says was done. counts bool[n]: logged requests whose candidates' reasons are counted; None:
    all."""
    candidates, offsets = asked.logged_candidates, asked.batch.offsets
    reasons, mine = np.zeros(len(Reason), np.int64), np.ones(0, np.bool_) if counts is None else counts
    _count_reasons(offsets, candidates["reason"], mine, reasons)
    sends = int(np.count_nonzero(candidates["slot"] >= 0))
    decision, candidate = np.empty(sends, np.int64), np.empty(sends, np.int64)
    sends = _sends(offsets, candidates["slot"], asked.logged["granted"], decision, candidate)
    return Realised(
        np.arange(len(asked)), asked.batch.requests["decided_at"], asked.logged["action"], asked.logged["reason"],
        decision[:sends], candidate[:sends], reasons,
    )  # fmt: skip


@kernel
def _count_reasons(offsets: I64, reason: I8, counts: Bools, reasons: I64) -> None:
    """counts: no rows: all count."""
    for row in range(len(offsets) - 1):
        if len(counts) == 0 or counts[row]:
            for place in range(offsets[row], offsets[row + 1]):
                reasons[reason[place]] += 1


@kernel
def _sends(offsets: I64, slot: npt.NDArray[np.int32], granted: Bools, decision: I64, candidate: I64) -> int:
    """Requests and candidates of what was sent, by slot within a request; returns how many."""
    sends = 0
    for row in range(len(granted)):
        begin = sends
        for place in range(offsets[row], offsets[row + 1] if granted[row] else offsets[row]):
            if slot[place] < 0:
                continue
            at = sends
            while at > begin and slot[candidate[at - 1]] > slot[place]:
                candidate[at] = candidate[at - 1]
                at -= 1
            candidate[at], decision[sends] = place, row
            sends += 1
    return sends
