"""What the sources say: kernels that add their evidence to the entries of the current request."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.stages.retrieval.choose import threshold
from serve_app.stages.retrieval.scratch import (
    AFTER,
    AGE,
    BACK,
    BEST,
    COUNT,
    COVISITED,
    COVISITED_LAST,
    FOLLOW,
    FOLLOW_LAST,
    FOLLOW_SECOND,
    NEXT,
    NOT_SEEN,
    SESSION,
    TIMES,
    Scratch,
    entry_of,
    session_of,
)  # fmt: skip

__all__ = ["RECENTS_USED", "Tables", "add_covisits", "add_recents", "add_sessions"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

RECENTS_USED = 12
"""Newest recents that co-visits and neighbouring sessions are looked up for."""
_PER_ITEM, _KEPT_SESSIONS = 1_500, 500
_STEP = (0.8 ** np.arange(RECENTS_USED)).astype(np.float32)  # weight of a recent, by steps back
_SESSION_STEP = (0.6 ** np.arange(RECENTS_USED)).astype(np.float32)
_AFTER_STEP = (0.9 ** np.arange(RECENTS_USED)).astype(np.float32)
_DISTANCE = (0.85 ** np.arange(64)).astype(np.float32)  # by clicks between the match and the item
_FAR = len(_DISTANCE) - 1


class Tables(NamedTuple):
    """Immutable arrays of a release (see serve_app.stages.retrieval.tables), side rows appended to vectors and rarity.
    covisit_scale f32[n]: 1 / sqrt(total + 5), which makes co-visits a cosine. session_prior f32[s]: what age and
    length leave of a session's weight."""

    vectors: F32
    follow_offsets: I64
    follow_items: I32
    follow_weights: F32
    follow_totals: F32
    covisit_offsets: I64
    covisit_items: I32
    covisit_weights: F32
    covisit_totals: F32
    covisit_scale: F32
    session_items: I32
    session_offsets: I64
    session_prior: F32
    item_offsets: I64
    item_sessions: I32
    item_positions: npt.NDArray[np.int16]
    rarity: F32


@kernel
def add_recents(s: Scratch, recents: I32) -> None:
    """Entries of the recents, newest first: steps back (1 is newest) and times seen."""
    n = len(recents)
    for k in range(n):
        e = entry_of(s, recents[n - 1 - k])
        if e >= 0:
            row = s.hot[e]
            row[TIMES] += np.float32(1.0)
            if row[BACK] == NOT_SEEN:
                row[BACK] = np.float32(k + 1)


@kernel
def add_covisits(s: Scratch, t: Tables, recents: I32) -> None:
    """Evidence of both co-visit tables over the newest recents. Needs `add_recents` before."""
    n = len(recents)
    second = recents[n - 2] if n > 1 else -1
    for k in range(min(n, RECENTS_USED)):
        x = recents[n - 1 - k]
        if x >= len(t.follow_totals) or s.hot[entry_of(s, x), BACK] != k + 1:
            continue  # an item newer than the release, or an older sight of one already used
        scale = _STEP[k] / (t.follow_totals[x] + np.float32(3.0))
        for c in range(t.follow_offsets[x], t.follow_offsets[x + 1]):
            e = entry_of(s, t.follow_items[c])
            if e < 0:
                break
            row, weight = s.hot[e], t.follow_weights[c]
            row[FOLLOW] += scale * weight
            if k == 0:
                row[FOLLOW_LAST] = weight
            elif x == second:
                row[FOLLOW_SECOND] = weight
        for c in range(t.covisit_offsets[x], t.covisit_offsets[x + 1]):
            j = t.covisit_items[c]
            e = entry_of(s, j)
            if e < 0:
                break
            row, cosine = s.hot[e], t.covisit_weights[c] * t.covisit_scale[x] * t.covisit_scale[j]
            row[COVISITED] += _STEP[k] * cosine
            if k == 0:
                row[COVISITED_LAST] = cosine


@kernel
def _match(s: Scratch, t: Tables, recents: I32) -> None:
    """Past sessions that share the newest recents, newest sessions of each first."""
    n = len(recents)
    for k in range(min(n, RECENTS_USED)):
        x = recents[n - 1 - k]
        if x >= len(t.item_offsets) - 1 or s.hot[entry_of(s, x), BACK] != k + 1:
            continue
        weight = _SESSION_STEP[k] * t.rarity[x]
        previous = -1
        for c in range(t.item_offsets[x + 1] - 1, max(t.item_offsets[x], t.item_offsets[x + 1] - _PER_ITEM) - 1, -1):
            session = t.item_sessions[c]
            if session == previous:
                continue
            previous = session
            z = session_of(s, session)
            if z < 0:
                return
            if s.session_back[z] == 0:
                s.session_back[z] = k + 1
                s.session_match[z] = t.item_positions[c]
            s.session_score[z] += weight


@kernel
def add_sessions(s: Scratch, t: Tables, recents: I32) -> None:
    """Evidence of the best matching past sessions' items. Needs `add_recents` before."""
    _match(s, t, recents)
    found = s.clock[2]
    for z in range(found):
        s.session_score[z] *= t.session_prior[s.sessions[z]]
        s.buffer[z] = s.session_score[z]
    limit = threshold(s.buffer[:found], _KEPT_SESSIONS)
    for z in range(found):
        weight, session = s.session_score[z], s.sessions[z]
        if weight < limit:
            continue
        back, begin = s.session_back[z], t.session_offsets[session]
        after = _AFTER_STEP[back - 1]
        matched = begin + s.session_match[z]
        for q in range(begin, t.session_offsets[session + 1]):
            if q == matched:
                continue
            e = entry_of(s, t.session_items[q])
            if e < 0:
                return
            row, part = s.hot[e], weight * _DISTANCE[min(abs(q - matched) - 1, _FAR)]
            row[SESSION] += part
            row[COUNT] += np.float32(1.0)
            row[BEST] = max(row[BEST], weight)
            row[AGE] = max(row[AGE], np.float32(session + 1))  # the newest session; `describe` turns it into an age
            if q > matched:
                row[AFTER] += part * after
                if q == matched + 1 and back == 1:
                    row[NEXT] += np.float32(1.0)
