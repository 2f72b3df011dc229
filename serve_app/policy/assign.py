"""Who is in which arm and cell: salted hashes of the user, stable, independent of each other, exact in expectation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.kernels import inlined, kernel
from serve_app.noise import absorb, salt_of, unit_interval
from serve_app.policy.document import PolicyDocument
from serve_app.policy.instants import instant_us

__all__ = ["Assignment", "TrialArrays", "assign", "compile_trials", "variant_of", "variants"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]

ALWAYS_FROM, ALWAYS_TO = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class TrialArrays:
    """arm_edges f8[E, 15]: cumulative shares (2 beyond the last arm); arm_counts i64[E]; dates i64[E, 2]; cell_edges and
    cell_p f8[C]."""

    arm_salts: U64
    arm_edges: F64
    arm_counts: I64
    dates: I64
    cell_salt: np.uint64
    cell_edges: F64
    cell_p: F64
    epoch: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """Columns of n requests; see serve_app.columns."""

    arms: U64
    cell: npt.NDArray[np.int16]
    epoch: npt.NDArray[np.int32]
    p_cell: F64
    variant: npt.NDArray[np.int16]

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The request columns, by name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def compile_trials(document: PolicyDocument) -> TrialArrays:
    """Edges and salts of the document's experiments and cells."""
    experiments, cells = document.experiments, document.cells
    edges = np.full((len(experiments), 15), 2.0)
    for row, one in enumerate(experiments):
        shares = np.cumsum([round(arm.percent * 100) for arm in one.arms]) / 10_000
        edges[row, : len(shares)] = shares
    dates = [
        (instant_us(e.starts_at) if e.starts_at else ALWAYS_FROM, instant_us(e.ends_at) if e.ends_at else ALWAYS_TO)
        for e in experiments
    ]
    cell_edges = np.cumsum([one.probability for one in cells.variants]) if cells else np.empty(0)
    if cells:
        cell_edges[-1] = 1.0
    return TrialArrays(
        arm_salts=np.array([salt_of(one.salt) for one in experiments], np.uint64),
        arm_edges=edges,
        arm_counts=np.array([len(one.arms) for one in experiments], np.int64),
        dates=np.array(dates, np.int64).reshape(len(experiments), 2),
        cell_salt=salt_of(cells.salt if cells else ""),
        cell_edges=cell_edges,
        cell_p=np.array([one.probability for one in cells.variants] if cells else [], np.float64),
        epoch=round(cells.epoch_hours * 3600e6) if cells else 0,
    )


@inlined
def arms_of(user: np.uint64, at: int, salts: U64, arm_edges: F64, arm_counts: I64, dates: I64) -> tuple[int, np.uint64]:
    """Scalar, inside kernels: (variant of the user's arms alone, their bits) at a time."""
    variant, bits = 0, np.uint64(0)
    for e in range(len(salts)):
        variant *= arm_counts[e] + 1
        if dates[e, 0] <= at < dates[e, 1]:
            u = unit_interval(absorb(salts[e], user))
            arm = 0
            while arm < arm_counts[e] - 1 and u >= arm_edges[e, arm]:
                arm += 1
            variant += arm + 1
            bits |= np.uint64(arm + 1) << np.uint64(4 * e)
    return variant, bits


@inlined
def cell_of(user: np.uint64, epoch: int, salt: np.uint64, edges: F64) -> int:
    """Scalar, inside kernels: the cell that a user is in for an epoch."""
    u = unit_interval(absorb(absorb(salt, user), np.uint64(epoch)))
    cell = 0
    while cell < len(edges) - 1 and u >= edges[cell]:
        cell += 1
    return cell


@inlined
def variant_of(
    user: np.uint64, at: int, salts: U64, arm_edges: F64, arm_counts: I64, dates: I64, cell_salt: np.uint64,
    cell_edges: F64, epoch_us: int,
) -> int:  # fmt: skip
    """Scalar, inside kernels: the compiled variant of a user at a time."""
    variant, _ = arms_of(user, at, salts, arm_edges, arm_counts, dates)
    if len(cell_edges):
        variant = variant * len(cell_edges) + cell_of(user, at // epoch_us, cell_salt, cell_edges)
    return variant


@kernel
def _assign(
    users: U64, at: I64, salts: U64, arm_edges: F64, arm_counts: I64, dates: I64, cell_salt: np.uint64, cell_edges: F64,
    cell_p: F64, epoch_us: int, arms: U64, cells: npt.NDArray[np.int16], epochs: npt.NDArray[np.int32], p_cell: F64,
    variants: npt.NDArray[np.int16],
) -> None:  # fmt: skip
    for r in range(len(users)):
        variant, arms[r] = arms_of(users[r], at[r], salts, arm_edges, arm_counts, dates)
        cells[r], epochs[r], p_cell[r] = -1, 0, 1.0
        if len(cell_edges):
            epoch = at[r] // epoch_us
            cell = cell_of(users[r], epoch, cell_salt, cell_edges)
            variant = variant * len(cell_edges) + cell
            cells[r], epochs[r], p_cell[r] = cell, epoch, cell_p[cell]
        variants[r] = variant


@kernel
def _variants(
    users: U64, at: I64, salts: U64, arm_edges: F64, arm_counts: I64, dates: I64, cell_salt: np.uint64, cell_edges: F64,
    epoch_us: int, out: npt.NDArray[np.int16],
) -> None:  # fmt: skip
    for r in range(len(users)):
        out[r] = variant_of(users[r], at[r], salts, arm_edges, arm_counts, dates, cell_salt, cell_edges, epoch_us)


def assign(trials: TrialArrays, users: U64, decided_at: I64) -> Assignment:
    """Arms, cell, epoch and compiled variant of n users (u64[n]) at their decision times (i64[n])."""
    n = len(users)
    out = Assignment(
        np.empty(n, np.uint64), np.empty(n, np.int16), np.empty(n, np.int32), np.empty(n), np.empty(n, np.int16)
    )
    _assign(
        users, decided_at, trials.arm_salts, trials.arm_edges, trials.arm_counts, trials.dates, trials.cell_salt,
        trials.cell_edges, trials.cell_p, trials.epoch, out.arms, out.cell, out.epoch, out.p_cell, out.variant,
    )  # fmt: skip
    return out


def variants(trials: TrialArrays, users: U64, decided_at: I64) -> npt.NDArray[np.int16]:
    """i16[n]: the compiled variant alone."""
    out = np.zeros(len(users), np.int16)
    if len(trials.arm_salts) or len(trials.cell_edges):
        _variants(
            users, decided_at, trials.arm_salts, trials.arm_edges, trials.arm_counts, trials.dates, trials.cell_salt,
            trials.cell_edges, trials.epoch, out,
        )  # fmt: skip
    return out
