"""Lists as they were logged: the requests of one surface in one bucket group, with every candidate that was ranked.

Whole requests are sampled (`log_rate`): only those with their full candidate set can be ranked again. The others keep their
served slots and are counted. Lists made by a fall-back (retrieval's order, p = 1) were decided by no policy: they are the
log's environment, and stay as they are under every target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.batch import Ragged, lengths_to_offsets
from serve_app.errors import DamagedArtifact
from serve_app.log.reader import BucketGroup, read_files
from serve_app.noise import hash_key, salt_of
from serve_app.vocabulary import DropReason, StageBit, Surface

__all__ = ["Lists", "Unsampled", "gathered", "read_lists"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Array = npt.NDArray[Any]

_KIND = {Surface.related: "item", Surface.gateway: "item", Surface.widgets: "widget", Surface.reviews: "review"}
_REQUESTS = (
    "user", "request_id", "root_id", "parent_request_id", "surface", "decided_at", "policy_revision", "release", "variant",
    "slots", "log_rate", "full", "candidate_count", "degraded", "segments", "segments_at", "head_names", "feature_names",
    "recents", "bought",
)  # fmt: skip
ASKED = (
    "anchor", "recents_age_s", "excluded", "categories", "context_hour", "context_device", "cold",
    "width", "availability_seq", "zone", "region",
)  # fmt: skip
"""What retrieval and features read of a request; see `read_lists`."""
_CANDIDATES = ("user", "request_id", "idx", "item", "widget", "review", "category", "drop_reason", "value", "slot", "p_slot")
_ANONYMOUS = salt_of("anonymous lists, each its own user")
_FLAT = ("request_id", "root_id", "parent_request_id", "decided_at", "variant", "slots", "log_rate", "degraded", "segments",
         "segments_at")  # fmt: skip


@dataclass(frozen=True)
class Unsampled:
    """What is known of lists whose candidates were not logged: how many, and how many slots they served."""

    lists: int = 0
    slots: int = 0


@dataclass(frozen=True)
class Lists:
    """n lists of one surface, made by one release, with the m candidates that were ranked (kept by the filters).

    user u64[n]: who is one unit of chance; an anonymous list is its own. logged_user u64[n]: as the log has it, 0 for those.
    policy i16[n] indexes `revisions`. requests: flat columns by name, and `widget`, which a
    page's list fills. thing u64[m]: identity of what was shown; item u64[m];
    heads f32[m, H] named `head_names`, features f32[m, F] named `feature_names` (no columns unless asked for); value, p_slot
    f64[m], slot i32[m]. candidates `seen` and `bought`
    bool[m]: in those lists of the request. asked: where it was asked for, the columns ASKED, recents, bought, and
    items that had been `withdrawn`, and `repeats` of earlier lists of the page (or excluded by the caller).
    """

    surface: Surface
    release: str
    revisions: tuple[str, ...]
    head_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    user: U64
    logged_user: U64
    policy: npt.NDArray[np.int16]
    requests: Mapping[str, Array]
    offsets: I64
    candidates: Mapping[str, Array]
    asked: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.user)

    @property
    def owner(self) -> I64:
        """i64[m]: the list of each candidate."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    @property
    def fell_back(self) -> npt.NDArray[np.bool_]:
        """bool[n]: retrieval's order, since ranking failed, was late or has no model."""
        return np.asarray(self.requests["degraded"] & StageBit.ranking != 0)

    def take(self, rows: npt.ArrayLike) -> Lists:
        """Some of the lists, in that order."""
        at = np.arange(len(self))[np.asarray(rows)]
        places = Ragged(np.arange(int(self.offsets[-1])), self.offsets).take(at)
        return replace(
            self, user=self.user[at], logged_user=self.logged_user[at], policy=self.policy[at],
            requests={name: values[at] for name, values in self.requests.items()}, offsets=places.offsets,
            candidates={name: values[places.values] for name, values in self.candidates.items()},
            asked=None if self.asked is None else self.asked.take(pa.array(at)),
        )  # fmt: skip

    def shown(self) -> I64:
        """i64[s]: candidates that were shown, by list and slot."""
        shown = np.flatnonzero(self.candidates["slot"] >= 0)
        return shown[np.lexsort((self.candidates["slot"][shown], self.owner[shown]))]


def read_lists(
    group: BucketGroup, surfaces: Sequence[Surface], *, features: bool = False, asked: bool = False
) -> tuple[list[Lists], dict[Surface, Unsampled]]:
    """Lists of a group by surface, release and names of heads and features, ordered by user and time; and what was not
    sampled. features: read the candidates' features. asked: also what retrieval read. Raises DamagedArtifact where a list
    has lost candidates."""
    wanted = (*_REQUESTS, *(ASKED if asked else ()))
    requests = read_files(group.files.get("requests", ()), "requests", columns=wanted)
    requests = requests.filter(pc.is_in(requests["surface"], pa.array([int(one) for one in surfaces], pa.int8())))
    columns = (*_CANDIDATES, "heads", *(("features",) if features else ()))
    candidates = _of_requests(group.files.get("candidates", ()), requests["request_id"], columns)
    row = _rows_of(requests, candidates)
    full = gathered(requests, "full")
    unsampled = {one: _unsampled(requests, candidates, row, full, one) for one in surfaces}
    return [
        part
        for key in _keys(requests, full)
        for part in [_part(requests, candidates, row, key, features, asked)]
        if len(part)
    ], unsampled


def gathered(rows: pa.Table, name: str) -> Array:
    """One flat column."""
    return rows[name].combine_chunks().to_numpy(zero_copy_only=False)


def _of_requests(paths: Sequence[str], wanted: pa.ChunkedArray, columns: Sequence[str]) -> pa.Table:
    """Candidates of the wanted requests, file by file."""
    ids = wanted.combine_chunks()
    parts = []
    for path in paths:
        rows = read_files([path], "candidates", columns=columns)
        parts.append(rows.filter(pc.is_in(rows["request_id"], ids)))
    return pa.concat_tables([read_files((), "candidates", columns=columns), *parts])


def _rows_of(requests: pa.Table, candidates: pa.Table) -> I64:
    """The request row of each candidate; -1: of a request of another user or surface."""
    keys = hash_key(0, gathered(requests, "user"), gathered(requests, "request_id"))
    order = np.argsort(keys, kind="stable")
    wanted = hash_key(0, gathered(candidates, "user"), gathered(candidates, "request_id"))
    if not len(order):
        return np.full(len(wanted), -1, np.int64)
    found = order[np.minimum(np.searchsorted(keys[order], wanted), len(order) - 1)]
    return np.where(keys[found] == wanted, found, -1)


def _unsampled(requests: pa.Table, candidates: pa.Table, row: I64, full: Array, surface: Surface) -> Unsampled:
    mine = (gathered(requests, "surface") == surface) & ~full
    shown = (row >= 0) & (gathered(candidates, "slot") >= 0)
    return Unsampled(int(mine.sum()), int(mine[row[shown]].sum()))


def _texts(requests: pa.Table, name: str) -> tuple[list[str], Array]:
    column = requests[name].combine_chunks()
    column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    return column.dictionary.to_pylist(), column.indices.to_numpy(zero_copy_only=False)


def _keys(requests: pa.Table, full: Array) -> list[tuple[Surface, tuple[str, str, str], I64]]:
    """(surface, (release, head names, feature names), rows) of the fully logged lists."""
    named = [_texts(requests, name) for name in ("release", "head_names", "feature_names")]
    codes = np.stack([gathered(requests, "surface"), *(code for _, code in named)], axis=1)[full]
    rows = np.flatnonzero(full)
    distinct, inverse = np.unique(codes, axis=0, return_inverse=True)
    found = []
    for place, (surface, *code) in enumerate(distinct.tolist()):
        release, heads, features = (texts[one] for (texts, _), one in zip(named, code, strict=True))
        found.append((Surface(surface), (release, heads, features), rows[inverse.reshape(-1) == place]))
    return sorted(found, key=lambda one: one[:2])


def _part(
    requests: pa.Table, candidates: pa.Table, row: I64, key: tuple[Surface, tuple[str, str, str], I64], features: bool,
    asked: bool,
) -> Lists:  # fmt: skip
    surface, (release, heads, feature_names), mine = key
    logged = gathered(requests, "user")[mine]
    user = np.where(logged != 0, logged, hash_key(_ANONYMOUS, gathered(requests, "root_id")[mine]))
    order = np.lexsort([gathered(requests, name)[mine] for name in ("request_id", "decided_at")] + [user])
    mine, user, logged = mine[order], user[order], logged[order]
    rows, offsets = _candidates_of(requests, candidates, row, mine)
    reasons = gathered(candidates, "drop_reason")[rows]
    kept, shelf = reasons == DropReason.kept, np.repeat(np.arange(len(mine)), np.diff(offsets))
    shelves = np.zeros(len(mine), np.uint64)
    shelves[shelf[::-1]] = gathered(candidates, "widget")[rows[::-1]]
    gone = {
        name: _lists(shelf[reasons == reason], gathered(candidates, "item")[rows[reasons == reason]], len(mine))
        for name, reason in (("withdrawn", DropReason.unavailable), ("repeats", DropReason.excluded))
    }
    counts = np.concatenate([[0], np.cumsum(kept)])
    picked, offsets = candidates.take(pa.array(rows[kept])), counts[offsets]
    names, widths = tuple(heads.split(",")) if heads else (), tuple(feature_names.split(",")) if feature_names else ()
    flat = ("item", "category", "value", "slot", "p_slot")
    own = {name: gathered(picked, name) for name in flat} | {"thing": gathered(picked, _KIND[surface])}
    taken = requests.take(pa.array(mine))
    shelf = np.repeat(np.arange(len(mine)), np.diff(offsets))
    own |= {name: _among(taken[column], shelf, own["item"]) for name, column in (("seen", "recents"), ("bought", "bought"))}
    own |= {"widget": gathered(picked, "widget"), "heads": _matrix(picked, "heads", len(names), np.float32)}
    if features:
        own["features"] = _matrix(picked, "features", len(widths), np.float32)
    revisions, codes = _texts(requests, "policy_revision")
    used, policy = np.unique(codes[mine], return_inverse=True)
    flat_requests = {name: gathered(taken, name) for name in _FLAT} | {"widget": shelves}
    return Lists(
        surface, release, tuple(revisions[code] for code in used.tolist()), names, widths, user, logged,
        policy.astype(np.int16), flat_requests, offsets.astype(np.int64), own,
        _asked(taken, gone) if asked else None,
    )  # fmt: skip


def _candidates_of(requests: pa.Table, candidates: pa.Table, row: I64, mine: I64) -> tuple[I64, I64]:
    """Candidate rows of the requests `mine`, by request and idx, and their offsets."""
    place = np.full(len(requests), -1, np.int64)
    place[mine] = np.arange(len(mine))
    own = np.where(row >= 0, place[row], -1) if len(place) else row
    rows = np.flatnonzero(own >= 0)
    rows = rows[np.lexsort((gathered(candidates, "idx")[rows], own[rows]))]
    counts = np.bincount(own[rows], minlength=len(mine))
    lost = counts != gathered(requests, "candidate_count")[mine]
    if lost.any():
        bad = int(gathered(requests, "request_id")[mine[np.flatnonzero(lost)[0]]])
        raise DamagedArtifact(f"list {bad:016x} has lost candidates", field="log.candidates", hint="rebuild the log")
    return rows, lengths_to_offsets(counts)


def _asked(requests: pa.Table, gone: Mapping[str, pa.ListArray]) -> pa.Table:
    table = requests.select([*ASKED, "recents", "bought"])
    for name, values in gone.items():
        table = table.append_column(name, values)
    return table


def _lists(owner: I64, values: U64, rows: int) -> pa.ListArray:
    """One list a row, of values whose owners rise."""
    offsets = lengths_to_offsets(np.bincount(owner, minlength=rows))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _among(lists: pa.ChunkedArray, owner: I64, items: U64) -> npt.NDArray[np.bool_]:
    """bool[m]: whether each item is in its request's list."""
    joined = lists.combine_chunks()
    counts = np.diff(joined.offsets.to_numpy())
    held = hash_key(0, np.repeat(np.arange(len(joined)), counts), joined.flatten().to_numpy())
    return np.isin(hash_key(0, owner, items), held) & (items != 0)


def _matrix(rows: pa.Table, name: str, width: int, dtype: type[np.generic]) -> Array:
    """[n, width]; NaN where nothing was scored or read."""
    lists = rows[name].combine_chunks()
    out = np.full((len(lists), width), np.nan, dtype)
    counts = np.diff(lists.offsets.to_numpy())
    if not set(counts.tolist()) <= {0, width}:
        raise DamagedArtifact(f"lists of {int(counts.max())} values for {width} names", field=f"log.candidates.{name}")
    if width:
        out[counts > 0] = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return out
