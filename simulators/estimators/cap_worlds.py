"""Small worlds of frequency: sends tire, tired users click less and opt out; cells vary cap, threshold or quiet hours.

A user lives through epochs; each draws one cell with known probability. At each opportunity the cell's gates (opt-out,
quiet hours, threshold, cap over a rolling window) let a send pass, which a flip withholds with probability epsilon. Fatigue
grows with sends, fades with time, lowers clicks and raises opt-outs. So what a policy does changes what comes later, and
per-decision weights, which keep the logged history, answer another question.

The true value of a target is that of an epoch under it, begun in the state that the log's users were in: users in great
number are run through the logged epochs, and at the start of each a copy of them lives that epoch under the target. Clicks
and opt-outs enter by their probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.noise import absorb, unit_interval
from simulators.estimators.rows import Rows, checked_rows

__all__ = ["CAP_WORLDS", "CapWorld", "Rules", "cap_rows", "true_epoch"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

METRICS = ("click", "opt_out", "reward")
_OPT_OUT_COST = 4.0
_HOURS = 24.0
_KEEP = 8  # sends remembered, above any cap


@dataclass(frozen=True, slots=True)
class Rules:
    """A cell: at most `cap` sends within the window, none below the threshold of value, none between 22 and 8 if quiet."""

    cap: int
    threshold: float = 0.0
    quiet: bool = False

    def row(self) -> tuple[float, float, float]:
        """As the kernel reads it."""
        return float(self.cap), self.threshold, float(self.quiet)


@dataclass(frozen=True, slots=True)
class CapWorld:
    """cells with their probabilities; `target` is the number of the one to be estimated. window and epoch in days."""

    name: str
    cells: tuple[Rules, ...]
    cell_p: tuple[float, ...]
    target: int
    users: int = 1200
    epochs: int = 2
    opportunities: int = 14
    epsilon: float = 0.1
    window_days: float = 7.0
    epoch_days: float = 7.0
    fatigue_click: float = 0.8

    def numbers(self) -> F64:
        """As the kernel reads them."""
        return np.array([self.epsilon, self.window_days * _HOURS, self.epoch_days * _HOURS, self.fatigue_click])


_BASE = Rules(cap=3)
CAP_WORLDS = (
    CapWorld("cap 3 to 2", (_BASE, Rules(cap=2)), (0.6, 0.4), 1),
    CapWorld("threshold up", (_BASE, Rules(cap=3, threshold=0.5)), (0.6, 0.4), 1),
    CapWorld("quiet hours", (_BASE, Rules(cap=3, quiet=True)), (0.6, 0.4), 1),
    CapWorld("cap 3 to 2 among four cells", (_BASE, Rules(2), Rules(1), Rules(3, 0.5)), (0.4, 0.2, 0.2, 0.2), 1),
)


@kernel
def _allowed(rules: F64, sent_at: F64, now: float, value: float, hour: float, window: float, out: bool) -> bool:
    if out or value < rules[1] or (rules[2] > 0.0 and (hour >= 22.0 or hour < 8.0)):
        return False
    used = 0
    for s in range(len(sent_at)):
        used += 1 if sent_at[s] > now - window else 0
    return used < rules[0]


@kernel
def _live(
    key: np.uint64, epoch: int, opportunities: int, rules: F64, traits: F64, numbers: F64, state: F64, sent_at: F64,
    drawn: bool, all_rules: F64, row: int, columns: F64, by_cell: F64, totals: F64,
) -> None:  # fmt: skip
    """One user-epoch under `rules`. state: fatigue, its time, opted out, place in sent_at. row >= 0: log the rows. drawn:
    clicks are drawn; else their probabilities go into totals (click, opt_out, sends)."""
    epsilon, window, length, tiring = numbers[0], numbers[1], numbers[2], numbers[3]
    for t in range(opportunities):
        noise = absorb(absorb(key, np.uint64(epoch)), np.uint64(t))
        now = epoch * length + (t + unit_interval(absorb(noise, np.uint64(1)))) * length / opportunities
        value = unit_interval(absorb(noise, np.uint64(2)))
        hour = now % 24.0
        may = _allowed(rules, sent_at, now, value, hour, window, state[2] > 0.0)
        send = may and unit_interval(absorb(noise, np.uint64(3))) >= epsilon
        state[0] *= 0.5 ** ((now - state[1]) / 72.0)
        state[1] = now
        click, leave = 0.0, 0.0
        if row >= 0:
            for c in range(len(all_rules)):
                could = _allowed(all_rules[c], sent_at, now, value, hour, window, state[2] > 0.0)
                p_send = 1.0 - epsilon if could else 0.0
                by_cell[row + t, c] = p_send if send else 1.0 - p_send
            columns[row + t, 3] = 1.0 if send else 0.0
        if send:
            p_click = 1.0 / (1.0 + np.exp(-(-1.6 + 1.5 * value + traits[0] - tiring * state[0])))
            p_leave = 1.0 / (1.0 + np.exp(-(-5.0 + traits[1] + 0.7 * state[0])))
            click = 1.0 if unit_interval(absorb(noise, np.uint64(4))) < p_click else 0.0
            leave = 1.0 if unit_interval(absorb(noise, np.uint64(5))) < p_leave else 0.0
            totals[0] += click if drawn else p_click
            totals[1] += leave if drawn else p_leave
            totals[2] += 1.0
            state[0] += 1.0
            sent_at[int(state[3]) % len(sent_at)] = now
            state[3] += 1.0
            state[2] = max(state[2], leave)
        if row >= 0:
            columns[row + t, 0], columns[row + t, 1], columns[row + t, 2] = click, leave, now


@kernel
def _traits(key: np.uint64, out: F64) -> None:
    for i in range(2):  # Irwin-Hall of 6 uniforms: near normal, bounded
        total = 0.0
        for k in range(6):
            total += unit_interval(absorb(key, np.uint64(100 + 6 * i + k)))
        out[i] = (total - 3.0) * 1.4142135623730951 * (0.9 if i == 0 else 0.7)


@kernel
def _cell_of(key: np.uint64, epoch: int, cell_p: F64) -> int:
    u, cell = unit_interval(absorb(absorb(key, np.uint64(epoch)), np.uint64(9))), 0
    while cell < len(cell_p) - 1 and u >= cell_p[cell]:
        u -= cell_p[cell]
        cell += 1
    return cell


@kernel
def _log(
    seed: np.uint64, users: int, epochs: int, opportunities: int, all_rules: F64, cell_p: F64, numbers: F64, columns: F64,
    by_cell: F64, cells: I64,
) -> None:  # fmt: skip
    traits, totals = np.empty(2), np.zeros(3)
    for u in range(users):
        key = absorb(seed, np.uint64(u))
        _traits(key, traits)
        state, sent_at = np.zeros(4), np.full(_KEEP, -1e9)
        for e in range(epochs):
            cell = _cell_of(key, e, cell_p)
            cells[u * epochs + e] = cell
            row = (u * epochs + e) * opportunities
            _live(
                key, e, opportunities, all_rules[cell], traits, numbers, state, sent_at, True, all_rules, row, columns,
                by_cell, totals,
            )  # fmt: skip


@kernel
def _truth(
    seed: np.uint64, users: int, epochs: int, opportunities: int, all_rules: F64, cell_p: F64, target: int, numbers: F64
) -> F64:
    """f64[6]: sums of a user's click, opt_out, sends over the epochs, and of their squares."""
    traits, none, ignored, out = np.empty(2), np.empty((0, 4)), np.zeros(3), np.zeros(6)
    for u in range(users):
        key = absorb(seed, np.uint64(u))
        _traits(key, traits)
        state, sent_at, own = np.zeros(4), np.full(_KEEP, -1e9), np.zeros(3)
        for e in range(epochs):
            branch, branch_sent = state.copy(), sent_at.copy()
            _live(key, e, opportunities, all_rules[target], traits, numbers, branch, branch_sent, False, all_rules, -1,
                  none, none, own)  # fmt: skip
            cell = _cell_of(key, e, cell_p)
            _live(key, e, opportunities, all_rules[cell], traits, numbers, state, sent_at, True, all_rules, -1,
                  none, none, ignored)  # fmt: skip
        for i in range(3):
            out[i] += own[i]
            out[3 + i] += own[i] * own[i]
    return out


def cap_rows(world: CapWorld, seed: int) -> Rows:
    """Rows of fresh users; target: that cell's probability of what was logged on the logged history."""
    n = world.users * world.epochs * world.opportunities
    rules, p = np.array([one.row() for one in world.cells]), np.array(world.cell_p)
    columns, by_cell = np.empty((n, 4)), np.empty((n, len(p)))
    cells = np.empty(world.users * world.epochs, np.int64)
    key = np.uint64(seed)
    _log(key, world.users, world.epochs, world.opportunities, rules, p, world.numbers(), columns, by_cell, cells)
    cell = np.repeat(cells, world.opportunities)
    click, leave = columns[:, 0], columns[:, 1]
    logged, target = by_cell[np.arange(n), cell], by_cell[:, world.target]
    send = columns[:, 3]
    target_send = np.where(send > 0, target, 1 - target)
    impossible = (send == 0) & (logged == 1)  # the cell in force could not send
    epoch = np.tile(np.repeat(np.arange(world.epochs), world.opportunities), world.users)
    return checked_rows(
        np.repeat(np.arange(world.users), world.epochs * world.opportunities), logged, target,
        np.stack([click, leave, click - _OPT_OUT_COST * leave], axis=1), send=send,
        target_send=target_send, unsupported=np.where(impossible, target_send, 0.0),
        extra={"epoch": epoch, "cell_probability": by_cell},
        on_bad="error",
    )  # fmt: skip


@lru_cache(maxsize=32)
def true_epoch(world: CapWorld, users: int = 400_000) -> tuple[dict[str, float], dict[str, float]]:
    """(value per user-epoch, its standard error) of each metric under the target, in the superpopulation."""
    rules = np.array([one.row() for one in world.cells])
    key = np.uint64(0xFFFF_FFFF_0000_0000)  # apart from every seed of a world
    sums = _truth(
        key, users, world.epochs, world.opportunities, rules, np.array(world.cell_p), world.target, world.numbers()
    )
    mean, square = sums[:3] / users, sums[3:] / users
    error = np.sqrt((square - mean**2) / users) / world.epochs
    mean = mean / world.epochs
    cost = _OPT_OUT_COST
    value = {"click": float(mean[0]), "opt_out": float(mean[1]), "reward": float(mean[0] - cost * mean[1])}
    return value, {"click": float(error[0]), "opt_out": float(error[1]), "reward": float(error[0] + cost * error[1])}
