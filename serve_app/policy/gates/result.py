"""What every gate takes and gives, and the one way they all read columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Columns
from serve_app.ledger.columns import Histories
from serve_app.policy.compile import CompiledPolicy
from serve_app.stages.stage import Context

__all__ = ["THIS_DECISION", "Gate", "GateResult", "HistoryView", "column"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]

THIS_DECISION = 128
"""Flag of entries added to a working history by earlier sends of the same decision; never stored."""


@dataclass(slots=True)
class GateResult:
    """A gate's word on each of m candidates.

    outcome i8 (GateOutcome); reason i8 (Reason, none where kept); used and limit f8 in the gate's own unit (NaN: the gate
    does not apply); next_free_at i8: when it would let the candidate pass (0: now, never or unknown).
    """

    outcome: I8
    reason: I8
    used: F64
    limit: F64
    next_free_at: I64

    @classmethod
    def empty(cls, rows: int) -> GateResult:
        """Room for `rows` candidates; a gate fills every one of them."""
        return cls(
            np.empty(rows, np.int8), np.empty(rows, np.int8), np.empty(rows), np.empty(rows), np.empty(rows, np.int64)
        )

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The five, in order: (i8, i8, f8, f8, i8)[m]."""
        return self.outcome, self.reason, self.used, self.limit, self.next_free_at


@dataclass(slots=True)
class HistoryView:
    """Histories aligned with the batch's requests, and through which eyes they are read: an entry counts for request r when
    its `holdout` is 0 (a factual send) or equals `shadow[r]` (0: the factual history alone)."""

    entries: npt.NDArray[np.void]
    offsets: I64
    shadow: U64

    @classmethod
    def of(cls, histories: Histories) -> HistoryView:
        """The factual view."""
        offsets = np.ascontiguousarray(histories.offsets)
        return cls(_owned(histories.entries), offsets, np.zeros(len(offsets) - 1, np.uint64))

    def take(self, rows: I64, *, shadow: int | None = None) -> HistoryView:
        """The histories of some requests, seen under a holdout's key if one is given."""
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        flat = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        seen = self.shadow[rows] if shadow is None else np.full(len(rows), shadow, np.uint64)
        return HistoryView(self.entries[flat], offsets, seen)

    def with_entries(self, entries: npt.NDArray[np.void]) -> HistoryView:
        """One more entry at the end of each request's history (`entries` has one for every request)."""
        lengths = np.diff(self.offsets)
        offsets = self.offsets + np.arange(len(self.offsets))
        joined = np.empty(int(offsets[-1]), self.entries.dtype)
        joined[offsets[1:] - 1] = entries
        joined[np.arange(len(self.entries)) + np.repeat(np.arange(len(lengths)), lengths)] = self.entries
        return HistoryView(joined, offsets, self.shadow)

    def fields(self, *names: str) -> tuple[npt.NDArray[Any], ...]:
        """Fields of the entries as (strided) arrays."""
        return tuple(self.entries[name] for name in names)


class Gate(Protocol):
    """A vectorized predicate. Pure; fills `out` where it is given."""

    def __call__(
        self, batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context, out: GateResult | None = None
    ) -> GateResult: ...


def _owned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Contiguous and writable, copied only where it is not: kernels are compiled for one memory layout."""
    if values.flags.carray:
        return values
    return np.array(values, order="C")


def column(columns: Columns, name: str) -> npt.NDArray[Any]:
    """A flat column as kernels take it."""
    return _owned(columns[name])
