"""The analytic track: how probable a policy makes what was logged, on the logged history. Weights come from here alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from simulators.replay.opportunities import Opportunities

__all__ = ["OnLog", "Probabilities", "Support", "first_sends", "logged_probability"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Probabilities:
    """Of one policy, per logged request, on the logged history. chosen f64[n]: of what was logged (its first send, or none);
    send f64[n]: of sending anything; unsupported f64[n]: mass on choices the log gave no probability."""

    chosen: F64
    send: F64
    unsupported: F64


def first_sends(asked: Opportunities) -> I64:
    """i64[n]: place among the candidates of each request's first send; -1: none."""
    first = np.empty(len(asked), np.int64)
    _first_sends(asked.batch.offsets, asked.logged_candidates["slot"], asked.logged["granted"], first)
    return first


@kernel
def _first_sends(offsets: I64, slot: npt.NDArray[np.int32], granted: Bools, first: I64) -> None:
    for row in range(len(first)):
        first[row] = -1
        for place in range(offsets[row], offsets[row + 1] if granted[row] else offsets[row]):
            first[row] = place if slot[place] == 0 else first[row]


def logged_probability(asked: Opportunities, first: I64) -> F64:
    """f64[n]: what the log says it was done with. first: `first_sends`."""
    out = np.empty(len(asked))
    _logged_probability(first, asked.logged_candidates["p_choice"], asked.logged["p_none"], out)
    return out


@kernel
def _logged_probability(first: I64, p_choice: F64, p_none: F64, out: F64) -> None:
    for row in range(len(first)):
        out[row] = p_choice[first[row]] if first[row] >= 0 else p_none[row]


@dataclass(frozen=True, slots=True)
class OnLog:
    """What a policy makes of the log, on the logged histories. own: in the cell each user is in. by_cell f64[n, cells]:
    probability of what was logged, had the user been in each of the policy's cells (one column where it has none).
    choices f64[candidates], where asked for: probability of each logged candidate, in the cell each user is in. beyond
    f64[n, cells], where asked for: mass in each cell on choices outside a `Support`."""

    own: Probabilities
    by_cell: F64
    choices: F64 | None = None
    beyond: F64 | None = None


@dataclass(frozen=True, slots=True)
class Support:
    """What some cell of a policy could choose, on the logged history. candidate bool[candidates]: to send it first; none
    bool[n]: to send nothing."""

    candidate: Bools
    none: Bools

    @classmethod
    def nothing(cls, asked: Opportunities) -> Support:
        """To be filled in."""
        return cls(np.zeros(asked.batch.candidates.rows, np.bool_), np.zeros(len(asked), np.bool_))
