"""What a policy did on its own course, decision by decision, and the same of what was logged."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.vocabulary import Action, Reason
from simulators.replay.opportunities import Opportunities

__all__ = ["Realised", "RealisedTrack", "as_logged"]

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


class RealisedTrack:
    """Takes the waves of a course."""

    def __init__(self, asked: Opportunities, counts: Bools | None = None) -> None:
        """counts bool[n]: logged requests whose candidates' reasons are counted; None: all."""
        self._asked, self._counts = asked, counts
        self._decisions: list[tuple[I64, I64, I8, I8]] = []
        self._sends: list[tuple[I64, I64]] = []
        self._reasons = np.zeros(len(Reason), np.int64)
        self._count = 0

    def __call__(self, rows: I64, decided: Batch) -> None:
        """One wave."""
        requests, candidates = decided.requests, decided.candidates
        action = requests["action"]
        reason = np.where(action == Action.send, np.int8(Reason.chosen), requests["reason"])
        self._decisions.append((rows, requests["decided_at"], action, reason))
        sent = np.flatnonzero(candidates["slot"] >= 0)
        if len(sent):
            owner = np.searchsorted(decided.offsets, sent, "right") - 1
            order = np.lexsort((candidates["slot"][sent], owner))
            sent, owner = sent[order], owner[order]
            place = sent - decided.offsets[owner] + self._asked.batch.offsets[rows[owner]]
            self._sends.append((owner + self._count, place))
        reasons = candidates["reason"]
        if self._counts is not None:
            reasons = reasons[np.repeat(self._counts[rows], np.diff(decided.offsets))]
        self._reasons += np.bincount(reasons, minlength=len(Reason))
        self._count += len(rows)

    def result(self, carried: int = 0) -> Realised:
        """Everything, in order of user and time."""
        empty = np.empty(0, np.int64)
        rows, at, action, reason = (
            np.concatenate([one[k] for one in self._decisions]) if self._decisions else empty.astype(dtype)
            for k, dtype in enumerate((np.int64, np.int64, np.int8, np.int8))
        )
        decision, candidate = (np.concatenate([one[k] for one in self._sends]) if self._sends else empty for k in range(2))
        order = np.lexsort((at, self._asked.owner[rows]))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        decision = back[decision]
        by_decision = np.argsort(decision, kind="stable")
        return Realised(
            rows[order], at[order], action[order], reason[order], decision[by_decision], candidate[by_decision],
            self._reasons, carried,
        )  # fmt: skip


def as_logged(asked: Opportunities, counts: Bools | None = None) -> Realised:
    """What the log says was done. counts: as for `RealisedTrack`."""
    candidates = asked.logged_candidates
    owner = asked.batch.owner
    sent = np.flatnonzero((candidates["slot"] >= 0) & asked.logged["granted"][owner])
    sent = sent[np.lexsort((candidates["slot"][sent], owner[sent]))]
    counted = candidates["reason"] if counts is None else candidates["reason"][counts[owner]]
    reasons = np.bincount(counted, minlength=len(Reason)).astype(np.int64)
    return Realised(
        np.arange(len(asked)), asked.batch.requests["decided_at"], asked.logged["action"], asked.logged["reason"],
        owner[sent], sent, reasons,
    )  # fmt: skip
