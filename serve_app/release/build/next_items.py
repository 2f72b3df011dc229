"""Examples from what people did next: a request cut out of a session, and the items that followed it.

`related`: a session is cut at one seeded place; the request is anchored on the newest item before the cut, and what follows
it is relevant. `gateway`: the user opens the page as a session begins; what the session then holds is relevant. The request
carries what was known just before it, never more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import Batch, Ragged, lengths_to_offsets
from serve_app.noise import hash_key, uniform
from serve_app.policy.zones import local_second_of_day, zone_index
from serve_app.regions import region_index
from serve_app.release.build.interactions import Sessions
from serve_app.release.build.sequences import UserSequences
from serve_app.release.histories import RECENTS_KEPT
from serve_app.vocabulary import Surface

__all__ = ["NextItems", "People", "labels", "next_items"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class People:
    """What requests say of users, by user row: hashes u64, region i16 (serve_app.regions), zone i16
    (serve_app.policy.zones); -1 where unknown."""

    hashes: npt.NDArray[np.uint64]
    region: npt.NDArray[np.int16]
    zone: npt.NDArray[np.int16]

    @classmethod
    def of(cls, users: pa.Table) -> People:
        """From the catalogue's users table, in row order."""

        def coded(name: str, code: Callable[[str], int]) -> npt.NDArray[np.int16]:
            texts = users[name].combine_chunks().dictionary_encode()
            codes = [code(text) if text else -1 for text in texts.dictionary.to_pylist()]
            return np.array(codes or [-1], np.int16)[texts.indices.to_numpy()]

        return cls(users["user"].to_numpy(), coded("region", region_index), coded("zone", zone_index))

    def local_hour(self, user: I32, at: I64) -> npt.NDArray[np.int8]:
        """i8[n] hour of day where each user (row) lives at each time; -1 where that is unknown."""
        zone = _of(self.zone, user, -1)
        hour = local_second_of_day(at, np.maximum(zone, 0)) // 3600
        return np.where(zone >= 0, hour, -1).astype(np.int8)


@dataclass(frozen=True, slots=True)
class NextItems:
    """n examples of one surface. user i32[n] (row, -1 unknown), at i64[n], anchor i32[n] (-1 none), prefix (items of the
    session before the cut), relevant (distinct items after it, none of the prefix) with bought bool over its values."""

    surface: Surface
    user: I32
    at: I64
    anchor: I32
    prefix: Ragged
    prefix_at: I64
    relevant: Ragged
    bought: npt.NDArray[np.bool_]
    session: I64

    def __len__(self) -> int:
        return len(self.at)

    def take(self, rows: npt.NDArray[np.int64]) -> NextItems:
        """The given examples, in that order."""
        bought = Ragged(self.bought, self.relevant.offsets).take(rows).values
        prefix_at = Ragged(self.prefix_at, self.prefix.offsets).take(rows).values
        prefix, relevant = self.prefix.take(rows), self.relevant.take(rows)
        flat = (self.user[rows], self.at[rows], self.anchor[rows])
        return NextItems(self.surface, *flat, prefix, prefix_at, relevant, bought, self.session[rows])

    def chunks(self, size: int) -> Iterator[NextItems]:
        """At most `size` examples at a time: what bounds the memory of whoever runs the stages on them."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))

    def requests(self, people: People, histories: UserSequences, width: int) -> Batch:
        """The batch of these requests as serving would have seen them."""
        known = histories.before(self.user, self.at)
        history = Ragged(known.recent_items, known.recent_offsets)
        recents, recents_at = _append(history, known.recent_at, self.prefix, self.prefix_at)
        n, nobody = len(self), self.user < 0
        age = (np.repeat(self.at, recents.lengths) - recents_at) / 1e6
        request_id = hash_key(int(self.surface) + 1, self.session, self.at)
        return Batch.of_requests(
            request_id=request_id,
            root_id=request_id,
            attempt=np.zeros(n, np.int16),
            surface=np.full(n, self.surface, np.int8),
            decided_at=self.at,
            policy=np.zeros(n, np.int16),
            user=_of(people.hashes, self.user, 0),
            user_row=self.user,
            region=_of(people.region, self.user, -1),
            anchor=self.anchor,
            recents=recents,
            recents_age_s=Ragged(age.astype(np.float32), recents.offsets),
            bought=Ragged(known.bought_items, known.bought_offsets),
            excluded=self.prefix,
            categories=Ragged.empty(n, np.int32),
            width=np.full(n, width, np.int32),
            slots=np.full(n, 20, np.int32),
            context_hour=people.local_hour(self.user, self.at),
            context_device=np.zeros(n, np.int8),
            cold=nobody & (recents.lengths == 0),
            degraded=np.zeros(n, np.uint8),
            log_rate=np.ones(n),
        )


def _of(values: npt.NDArray[Any], rows: I32, absent: int) -> npt.NDArray[Any]:
    padded = np.append(values, np.asarray(absent, values.dtype))
    return padded[rows]


def _append(first: Ragged, first_at: I64, second: Ragged, second_at: I64) -> tuple[Ragged, I64]:
    """Row by row the last RECENTS_KEPT of first's values followed by second's, and their times."""
    lengths = np.stack([first.lengths, second.lengths], axis=1).ravel()
    both = lengths_to_offsets(lengths)
    values, at = np.empty(both[-1], np.int32), np.empty(both[-1], np.int64)
    for part, (source, when) in enumerate(((first, first_at), (second, second_at))):
        place = np.repeat(both[part:-1:2] - source.offsets[:-1], source.lengths) + np.arange(len(source.values))
        values[place], at[place] = source.values, when
    offsets = both[::2]
    back = np.repeat(offsets[1:], np.diff(offsets)) - np.arange(len(values))
    keep = back <= RECENTS_KEPT
    return Ragged(values[keep], lengths_to_offsets(np.minimum(np.diff(offsets), RECENTS_KEPT))), at[keep]


def next_items(surface: Surface, sessions: Sessions, begin: int, end: int, *, limit: int, seed: int) -> NextItems:
    """Examples whose time lies in [begin, end), from at most `limit` sessions drawn by a seeded hash.

    Sessions with fewer than two items give no `related` example, sessions of unknown users no `gateway` one.
    """
    lengths = np.diff(sessions.offsets)
    number = np.arange(len(sessions))
    starts = sessions.offsets[:-1]
    first_at = sessions.at[starts] if len(sessions) else np.empty(0, np.int64)
    draw = uniform(hash_key(seed, 1, number))
    if surface == Surface.related:
        usable, cut = lengths >= 2, 1 + np.floor(draw * np.minimum(lengths - 1, 20)).astype(np.int64)
    else:
        usable, cut = sessions.user >= 0, np.zeros(len(sessions), np.int64)
    cut = np.where(usable, cut, 0)
    at = sessions.at[starts + np.minimum(cut, lengths - 1)] if len(sessions) else first_at
    chosen = np.flatnonzero(usable & (at >= begin) & (at < end))
    if len(chosen) > limit:
        chosen = np.sort(chosen[np.argsort(hash_key(seed, 2, chosen), kind="stable")[:limit]])
    return _cut(surface, sessions, chosen, cut[chosen], at[chosen])


def _cut(surface: Surface, sessions: Sessions, chosen: I64, cut: I64, at: I64) -> NextItems:
    rows = Ragged(np.arange(len(sessions.items)), sessions.offsets).take(chosen)
    place = np.arange(len(rows.values)) - np.repeat(rows.offsets[:-1], rows.lengths)
    before = place < np.repeat(cut, rows.lengths)
    owner = np.repeat(np.arange(len(chosen)), rows.lengths)
    items = sessions.items[rows.values]
    prefix = Ragged(items[before], lengths_to_offsets(np.bincount(owner[before], minlength=len(chosen))))
    relevant, bought = _relevant(owner, items, before, sessions.strength[rows.values] >= 3.0, len(chosen))
    anchor = np.full(len(chosen), -1, np.int32)
    if surface == Surface.related and len(chosen):
        anchor = prefix.values[prefix.offsets[1:] - 1]
    out = NextItems(
        surface,
        sessions.user[chosen],
        at,
        anchor.astype(np.int32),
        prefix,
        sessions.at[rows.values][before],
        relevant,
        bought,
        chosen,
    )
    return out.take(np.flatnonzero(relevant.lengths > 0))


def _relevant(
    owner: I64, items: I32, before: npt.NDArray[np.bool_], buys: npt.NDArray[np.bool_], n: int
) -> tuple[Ragged, npt.NDArray[np.bool_]]:
    """Distinct items after the cut that the prefix does not hold, per example, and whether each was bought."""
    order = np.lexsort((~before, items, owner))  # an item's sight in the prefix comes first
    own, item = owner[order], items[order]
    new = np.r_[True, (own[1:] != own[:-1]) | (item[1:] != item[:-1])] if len(order) else np.empty(0, np.bool_)
    heads = np.flatnonzero(new)
    ever_bought = np.maximum.reduceat(buys[order].astype(np.int8), heads) > 0 if len(heads) else np.empty(0, np.bool_)
    after = ~before[order][heads]
    kept = heads[after]
    return Ragged(item[kept], lengths_to_offsets(np.bincount(own[kept], minlength=n))), ever_bought[after]


def labels(batch: Batch, relevant: Ragged, marks: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_]:
    """bool[m]: whether each candidate's item is relevant to its request (and marked, where `marks` are given)."""
    owner = np.repeat(np.arange(len(relevant), dtype=np.int64), relevant.lengths)
    wanted = (owner << np.int64(32)) | relevant.values
    if marks is not None:
        wanted = wanted[marks]
    return np.isin((batch.owner << np.int64(32)) | batch.candidates["item"], wanted)
