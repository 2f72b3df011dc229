"""What each logged decision brought: attributed rewards, within a window of the decision.

An event counts for the decision whose id it carries. A conversion without one goes to the user's last click that carries
one, if it came within the window before. Repeated clicks of one send count once; conversions and their money add.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.errors import InvalidInput
from serve_app.kernels import kernel
from serve_app.policy.document import PolicyDocument
from serve_app.vocabulary import Action, EventType
from simulators.replay.opportunities import Opportunities

__all__ = [
    "EVENT_COLUMNS", "METRICS", "Attribution", "Weights", "attributed", "attributed_within", "reward_of", "reward_weights",
]  # fmt: skip

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]
U64 = npt.NDArray[np.uint64]

METRICS = ("sends", "clicks", "conversions", "revenue", "opt_outs")
EVENT_COLUMNS = ("user", "ts", "type", "decision_request_id", "slot", "amount")
_CLICK, _CONVERSION, _OPT_OUT = int(EventType.click), int(EventType.conversion), int(EventType.opt_out)
_SLOTS = 64  # far above what a policy may send at once


_OF_HEADS = {"p_click": "clicks", "p_convert": "conversions", "p_optout": "opt_outs"}
Weights = tuple[tuple[str, float], ...]


def reward_weights(text: str) -> Weights:
    """From "click=1,conversion=20,opt_out=-50": weights of METRICS in the metric `reward`; their singular will do."""
    known = {**{one: one for one in METRICS}, **{one.removesuffix("s"): one for one in METRICS}}
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in known or known[name] in found:
            hint = f"as click=1,conversion=20,opt_out=-50; metrics: {', '.join(METRICS)}, each once"
            raise InvalidInput(f"no metric {name!r} to weigh, or twice", field="reward", hint=hint)
        try:
            found[known[name]] = float(number)
        except ValueError:
            raise InvalidInput(f"{part.strip()!r} gives no number", field="reward", hint="as click=1,opt_out=-50") from None
        if not np.isfinite(found[known[name]]):
            raise InvalidInput(f"{part.strip()!r} is not finite", field="reward")
    return tuple(found.items())


def reward_of(document: PolicyDocument) -> Weights:
    """What a policy says that clicks, conversions and opt-outs are worth: its weights of the heads that predict them."""
    weights = document.surfaces.by_name("notification").head_weights
    return tuple((metric, float(weights[head])) for head, metric in _OF_HEADS.items() if weights.get(head))


def attributed(asked: Opportunities, events: pa.Table, window_us: int) -> F64:
    """f64[n, METRICS] of each logged request, all its sends together. events: EVENT_COLUMNS of the same users."""
    return attributed_within(asked, events, [window_us])[:, 0]


def attributed_within(asked: Opportunities, events: pa.Table, windows_us: Sequence[int]) -> F64:
    """f64[n, windows, METRICS]: the same within each of several windows, in one pass."""
    return Attribution(asked, events, windows_us).of(0, len(asked))


class Attribution:
    """What `attributed_within` gives, for some users at a time: dense rewards of a million requests are slow to write."""

    def __init__(self, asked: Opportunities, events: pa.Table, windows_us: Sequence[int]) -> None:
        requests = asked.batch.requests
        self._granted = asked.logged["granted"] & (asked.logged["action"] == Action.send)
        self._slot = np.ascontiguousarray(asked.logged_candidates["slot"], np.int32)
        self._offsets, self._windows = asked.batch.offsets, np.array(windows_us, np.int64)
        self._user, self._request, self._at = (requests[one] for one in ("user", "request_id", "decided_at"))
        self._told = _told(events)

    def of(self, begin: int, end: int) -> F64:
        """f64[end - begin, windows, METRICS] of these requests: all of some users."""
        out = np.zeros((end - begin, len(self._windows), len(METRICS)))
        if begin < end:
            mine = slice(begin, end)
            user, request, at = self._user[mine], self._request[mine], self._at[mine]
            whose, when, kind, decision, slot, amount = self._told
            some = slice(np.searchsorted(whose, user[0]), np.searchsorted(whose, user[-1], "right"))
            _count_sends(self._slot, self._offsets[begin : end + 1], self._granted[mine], out)
            _attribute(
                user, request, at, self._granted[mine], whose[some], when[some], kind[some], decision[some], slot[some],
                amount[some], self._windows, out,
            )  # fmt: skip
        return out


def _told(events: pa.Table) -> tuple[U64, I64, I8, U64, I64, F64]:
    """Columns of the events that can count, by user and time; request 0: the event carries no decision."""
    mine = events.filter(pc.is_in(events["type"], pa.array([_CLICK, _CONVERSION, _OPT_OUT], events["type"].type)))
    columns = {name: mine[name].combine_chunks().fill_null(0).to_numpy(zero_copy_only=False) for name in EVENT_COLUMNS}
    user, at = columns["user"], columns["ts"]
    if not _in_order(user, at):
        order = np.lexsort((at, user))
        columns = {name: values[order] for name, values in columns.items()}
    return (
        columns["user"], columns["ts"], columns["type"].astype(np.int8), columns["decision_request_id"],
        columns["slot"].astype(np.int64), columns["amount"].astype(np.float64),
    )  # fmt: skip


def _in_order(user: U64, at: I64) -> bool:
    same = user[1:] == user[:-1]
    return bool(((user[1:] > user[:-1]) | (same & (at[1:] >= at[:-1]))).all())


@kernel
def _count_sends(slot: npt.NDArray[np.int32], offsets: I64, granted: npt.NDArray[np.bool_], out: F64) -> None:
    for row in range(len(granted)):
        sends = 0
        for place in range(offsets[row], offsets[row + 1] if granted[row] else offsets[row]):
            sends += 1 if slot[place] >= 0 else 0
        out[row, :, 0] = sends


@kernel
def _row_of(request: np.uint64, ids: U64, first: int, last: int) -> int:
    """The last row of a user's rows [first, last) with this id; -1: none."""
    for row in range(last - 1, first - 1, -1):
        if ids[row] == request:
            return row
    return -1


@kernel
def _attribute(
    users: U64, ids: U64, decided_at: I64, granted: npt.NDArray[np.bool_], user: U64, at: I64, kind: I8, request: U64,
    slot: I64, amount: F64, windows: I64, out: F64,
) -> None:  # fmt: skip
    """Rows of `users` and events of `user` both come by user, ascending; a user's events by time."""
    clicked, left = np.zeros(len(ids), np.uint64), np.zeros(len(ids), np.uint64)  # slots that did already
    first, last, click = 0, 0, -1
    for e in range(len(user)):
        if e == 0 or user[e] != user[e - 1]:
            first, click = last, -1
            while first < len(users) and users[first] < user[e]:
                first += 1
            last = first
            while last < len(users) and users[last] == user[e]:
                last += 1
        source = e
        if kind[e] == _CONVERSION and request[e] == 0 and click >= 0:
            source = click
        if kind[e] == _CLICK and request[e] != 0:
            click = e
        if request[source] == 0 or not 0 <= slot[source] < _SLOTS:
            continue
        row = _row_of(request[source], ids, first, last)
        if row < 0 or not granted[row] or at[e] < decided_at[row]:
            continue
        late, bit = max(at[e] - decided_at[row], at[e] - at[source]), np.uint64(1) << np.uint64(slot[source])
        mark = clicked if kind[e] == _CLICK else left
        if kind[e] != _CONVERSION:
            if mark[row] & bit:
                continue
            mark[row] |= bit
        for w in range(len(windows)):
            if late < windows[w]:
                if kind[e] == _CONVERSION:
                    out[row, w, 2] += 1.0
                    out[row, w, 3] += amount[e]
                else:
                    out[row, w, 1 if kind[e] == _CLICK else 4] += 1.0
