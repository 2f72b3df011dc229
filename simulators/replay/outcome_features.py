"""What an outcome model may see of a send: its scores, what it is, the hour, and how lately the user was sent something.

All of it was known when the decision was made: scores and candidates as logged, histories as of the ledger version that the
decision read. Nothing that a user did afterwards enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.ledger.columns import Histories
from serve_app.policy.zones import local_second_of_day
from serve_app.vocabulary import Channel, MessageClass
from simulators.replay.opportunities import Opportunities

__all__ = ["FeaturePlan", "features_of", "plan_from", "recent_sends"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_DAY_US = 86_400_000_000
_WINDOWS = np.array([1, 3, 7], np.int64) * _DAY_US
_CHANNELS, _CLASSES = tuple(Channel)[1:], tuple(MessageClass)[1:]
_MOST = {"category": 8, "campaign": 16}
_HISTORY = ("sends in 1 d", "sends in 3 d", "sends in 7 d", "days since a send")


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """heads that were logged; hashes of the categories and campaigns that have a column of their own."""

    heads: tuple[str, ...]
    category: tuple[int, ...]
    campaign: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns; a saved model's names say its plan."""
        return (
            *(f"head {one}" for one in self.heads),
            *(f"channel {one.name}" for one in _CHANNELS),
            *(f"class {one.name}" for one in _CLASSES),
            *(f"category {one:016x}" for one in self.category),
            *(f"campaign {one:016x}" for one in self.campaign),
            *("sine of the hour", "cosine of the hour", "sine of half days", "cosine of half days"),
            *_HISTORY,
        )

    @classmethod
    def of(cls, names: Sequence[str]) -> FeaturePlan:
        """The plan whose `names` these are."""

        def after(word: str) -> list[str]:
            return [one.removeprefix(f"{word} ") for one in names if one.startswith(f"{word} ")]

        categories, campaigns = (tuple(int(one, 16) for one in after(word)) for word in ("category", "campaign"))
        return cls(tuple(after("head")), categories, campaigns)


def plan_from(heads: Sequence[str], asked: Opportunities, sends: I64) -> FeaturePlan:
    """Columns for the categories and campaigns that most of the given sends (places among the candidates) were of."""
    found = {}
    for name, most in _MOST.items():
        keys, counts = np.unique(asked.batch.candidates[name][sends], return_counts=True)
        order = np.lexsort((keys, -counts))
        found[name] = tuple(int(key) for key in keys[order][:most] if key)
    return FeaturePlan(tuple(heads), found["category"], found["campaign"])


def features_of(asked: Opportunities, recent: F32, plan: FeaturePlan, places: I64) -> F32:
    """f32[k, len(plan.names)] of candidates; NaN where nothing scored them. recent: `recent_sends` of the requests."""
    requests, candidates = asked.batch.requests, asked.batch.candidates
    owner = asked.batch.owner[places]
    out = np.zeros((len(places), len(plan.names)), np.float32)
    column = len(plan.heads)
    logged = tuple(asked.batch.meta["heads"])
    for place, name in enumerate(plan.heads):
        out[:, place] = _score(name, candidates["heads"][places, logged.index(name)]) if name in logged else np.nan
    codes = {"channel": _CHANNELS, "message_class": _CLASSES, "category": plan.category, "campaign": plan.campaign}
    for name, keys in codes.items():
        values = candidates[name][places]
        for key in keys:
            out[:, column] = values == key
            column += 1
    angle = local_second_of_day(requests["decided_at"][owner], requests["zone"][owner]) * (2 * np.pi / 86_400)
    for turns in (1, 2):
        out[:, column], out[:, column + 1] = np.sin(turns * angle), np.cos(turns * angle)
        column += 2
    out[:, column:] = recent[owner]
    return out


def _score(name: str, values: F32) -> F32:
    """Probabilities as logits, which a logistic model can take as they are."""
    if not name.startswith("p_"):
        return values
    p = np.clip(values.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p)).astype(np.float32)


def recent_sends(asked: Opportunities, start: Histories) -> F32:
    """f32[n, 4] of each logged request, on the history it was decided on: sends of the last 1, 3 and 7 days, and days since
    the last one (at most 30). start: histories of `asked.users` before the first request."""
    granted = asked.logged["granted"]
    owner = asked.batch.owner[asked.logged_candidates["slot"] >= 0]
    sends = np.where(granted, np.bincount(owner, minlength=len(asked)), 0).astype(np.int64)
    real = start.entries["holdout"] == 0
    counts = np.bincount(np.repeat(np.arange(len(start.offsets) - 1), np.diff(start.offsets))[real],
                         minlength=len(start.offsets) - 1)  # fmt: skip
    begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    out = np.empty((len(asked), len(_WINDOWS) + 1), np.float32)
    _recent(asked.owner, asked.batch.requests["decided_at"], sends, start.entries["at"][real], begins, _WINDOWS, out)
    return out


@kernel
def _recent(owner: I64, at: I64, sends: I64, before: I64, begins: I64, windows: I64, out: F32) -> None:
    times, count = np.empty(len(before) + sends.sum(), np.int64), 0
    first = 0
    for row in range(len(owner)):
        if row == 0 or owner[row] != owner[row - 1]:
            first = count
            for entry in range(begins[owner[row]], begins[owner[row] + 1]):
                times[count] = before[entry]
                count += 1
        out[row, :] = 0.0
        for k in range(count - 1, first - 1, -1):
            if times[k] <= at[row] - windows[-1]:
                break
            for w in range(len(windows)):
                out[row, w] += 1.0 if times[k] > at[row] - windows[w] else 0.0
        since = 30.0 if count == first else (at[row] - times[count - 1]) / _DAY_US
        out[row, len(windows)] = min(max(since, 0.0), 30.0)
        for _ in range(sends[row]):
            times[count] = at[row]
            count += 1
