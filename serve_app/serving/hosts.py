"""Hosts run stages for whole micro-batches: what a deployment, or the fused ingress, calls.

A host is synchronous and knows nothing of where it runs. What goes in and out are batches of compact columns: dropped
candidates stay behind with the host that ranks, and the feature matrix never leaves it unless an explanation was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Array, Batch, Columns
from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS
from serve_app.kernels import kernel
from serve_app.log.short import Some
from serve_app.serving import faults
from serve_app.serving.given import KindPolicies
from serve_app.serving.journalling import JournalHost
from serve_app.serving.library import Edition, Library, Pins
from serve_app.serving.meters import count
from serve_app.stages.extend import extended
from serve_app.stages.features.plan import FeaturePlan
from serve_app.stages.stage import Context
from serve_app.vocabulary import DropReason, FeatureStatus, StageBit, Surface

__all__ = [
    "FeatureMatrix",
    "FeaturesHost",
    "JournalHost",
    "RankCall",
    "RankingHost",
    "RetrievalHost",
    "default_matrix",
    "flagged",
    "news",
    "with_found",
    "with_news",
]

Bools = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]

_STATUSES = [status.name for status in sorted(FeatureStatus)]


@dataclass(slots=True)
class FeatureMatrix:
    """features f32[m, F] and status u8[m, F] of the plan's names."""

    names: tuple[str, ...]
    features: F32
    status: U8


@dataclass(slots=True)
class RankCall:
    """One batch to rank. page: i32[n] number of the page each list stands on, -1: none; lists of one page, in row order,
    hold no item twice. explain: give every candidate back with everything known. log: journal the result. afar: the caller,
    in another process, joins what is new (`news`) to the batch it has."""

    batch: Batch
    pins: Pins
    explain: bool
    log: bool
    page: I32 | None = None
    afar: bool = False


def news(batch: Batch, made: Batch) -> Batch:
    """`made` without the columns it shares with `batch`, of the same requests and candidates."""

    def new(columns: Columns, known: Columns) -> Columns:
        return columns.only([name for name, values in columns.items() if name not in known or known[name] is not values])

    return Batch(new(made.requests, batch.requests), new(made.candidates, batch.candidates), made.offsets, made.meta)


def with_news(batch: Batch, new: Batch) -> Batch:
    """The batch with what `news` left of one made of it."""
    return Batch(
        batch.requests.beside(new.requests),
        batch.candidates.beside(new.candidates),
        batch.offsets,
        {**batch.meta, **new.meta},
    )


def with_found(batch: Batch, found: Batch) -> Batch:
    """Requests with the candidates found for them. found: `news` of what RetrievalHost made of them, of the columns it reads
    at least."""
    requests = batch.requests.beside(found.requests)
    return Batch(requests, found.candidates, found.offsets, {**batch.meta, **found.meta})


def flagged(batch: Batch, bit: StageBit) -> Batch:
    """The batch with `bit` set in every request's `degraded`."""
    requests = batch.requests.copy()
    requests["degraded"] = batch.requests["degraded"] | np.uint8(bit)
    return Batch(requests, batch.candidates, batch.offsets, batch.meta)


class RetrievalHost:
    """Candidates."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def run(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        """Candidates of a batch, dropped ones included, with the sequence number their filter knew. kinds: kind of the
        widget each request fills; None: the policy's own sources."""
        faults.strike(faults.Point.retrieval, batch)
        edition = self._library.edition(pins)
        assert edition.held.retrieval is not None
        asked, context = batch, edition.context
        if kinds is not None:
            asked, context = _by_kind(batch, kinds, edition)
        out = edition.held.retrieval.run(asked, context)
        requests = batch.requests.copy()
        requests["availability_seq"] = np.full(len(batch), edition.view.seq, np.int64)
        return Batch(requests, out.candidates, out.offsets, out.meta)


def _by_kind(batch: Batch, kinds: Sequence[str], edition: Edition) -> tuple[Batch, Context]:
    """The batch with one stand-in policy per kind of widget in it."""
    distinct = sorted(set(kinds))
    base = edition.policy.retrieval(_surface(batch))
    requests = batch.requests.copy()
    requests["policy"] = np.array([distinct.index(kind) for kind in kinds], np.int16)
    context = Context(tuple(KindPolicies(kind, base) for kind in distinct), edition.context.parts)
    return Batch(requests, batch.candidates, batch.offsets, batch.meta), context


class FeaturesHost:
    """Feature values of candidates."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def run(self, batch: Batch, pins: Pins) -> FeatureMatrix:
        """The matrix of a batch whose candidates are all to be ranked."""
        faults.strike(faults.Point.features, batch)
        edition = self._library.edition(pins)
        assert edition.held.features is not None
        out = edition.held.features.run(batch, edition.context)
        counts = np.zeros(len(_STATUSES), np.int64)
        _count(np.ascontiguousarray(out.candidates["feature_status"]), counts)
        for status, values in zip(_STATUSES, counts.tolist(), strict=True):
            count("hindcast_feature_values", values, status=status)
        return FeatureMatrix(tuple(out.meta["features"]), out.candidates["features"], out.candidates["feature_status"])


@kernel
def _count(status: U8, counts: npt.NDArray[np.int64]) -> None:
    """How often each status stands in status u8[m, F]."""
    for row in range(len(status)):
        for k in range(len(counts)):
            own = 0
            for f in range(status.shape[1]):
                own += status[row, f] == k
            counts[k] += own


def default_matrix(plan: FeaturePlan, rows: int) -> FeatureMatrix:
    """The fall-back of features: every declared default, NaN where none is declared."""
    defaults = plan.defaults()
    status = np.where(np.isnan(defaults), FeatureStatus.missing, FeatureStatus.defaulted).astype(np.uint8)
    shape = (rows, len(plan))
    return FeatureMatrix(plan.names, np.broadcast_to(defaults, shape).copy(), np.broadcast_to(status, shape).copy())


class RankingHost:
    """Lists from candidates and their features; journals what it made."""

    def __init__(self, library: Library, journal: JournalHost) -> None:
        self._library = library
        self._journal = journal

    def kept(self, call: RankCall) -> Batch:
        """The part of the batch to read features for: kept candidates only."""
        return call.batch.select(_kept(call.batch))

    def defaults(self, call: RankCall, rows: int) -> FeatureMatrix:
        """The matrix when features did not come in time."""
        held = self._library.edition(call.pins).held
        assert held.features is not None
        return default_matrix(held.features.plan(_surface(call.batch)), rows)

    def run(self, call: RankCall, kept: Batch, matrix: FeatureMatrix, *, degraded: bool) -> Batch:
        """Rank, select, journal. kept: see there; the matrix is of its candidates. The answer holds chosen candidates only,
        or all of them where an explanation is wanted."""
        faults.strike(faults.Point.ranking, call.batch)
        edition = self._library.edition(call.pins)
        assert edition.held.ranking is not None
        batch = flagged(call.batch, StageBit.features) if degraded else call.batch
        rows = Batch(batch.requests, kept.candidates, kept.offsets, kept.meta)
        featured = extended(rows, {"features": matrix.names}, features=matrix.features, feature_status=matrix.status)
        ranked = edition.held.ranking.run(featured, edition.context, call.page)
        if _surface(batch) == Surface.notification:
            return news(call.batch, ranked) if call.afar else ranked
        return self._told(call, batch, ranked, edition)

    def _told(self, call: RankCall, batch: Batch, ranked: Batch, edition: Edition) -> Batch:
        """Journal what was made, and give back what was asked for. ranked: the kept candidates of `batch`."""
        mask = _kept(batch) if call.explain or call.log else np.empty(0, np.bool_)
        durable = None
        if call.log:
            flat, matrices = _apart(ranked, mask)
            durable = self._journal.begin(_rejoin(batch, mask, ranked, flat), edition, matrices=matrices)
        out = _rejoin(batch, mask, ranked, tuple(ranked.candidates)) if call.explain else _answered(ranked)
        return out if durable is None or durable() else flagged(out, StageBit.log)


def _surface(batch: Batch) -> Surface:
    return Surface(int(batch.requests["surface"][0]))


def _kept(batch: Batch) -> Bools:
    if "drop_reason" not in batch.candidates:
        return np.ones(batch.candidates.rows, np.bool_)
    kept: Bools = batch.candidates["drop_reason"] == DropReason.kept
    return kept


_ANSWER = ("item", "widget", "review", "category", "slot", "p_slot", "value")


def _answered(ranked: Batch) -> Batch:
    """Chosen candidates with the columns an answer needs."""
    at = np.flatnonzero(ranked.candidates["slot"] >= 0)
    wanted = {name: ranked.candidates[name][at] for name in _ANSWER if name in ranked.candidates}
    requests = {name: ranked.requests[name] for name in ("request_id", "degraded", "availability_seq")}
    return Batch(
        Columns(len(ranked), REQUEST_COLUMNS, requests),
        Columns(len(at), CANDIDATE_COLUMNS, wanted),
        np.searchsorted(at, ranked.offsets),
    )


_FILL: dict[str, float] = {"slot": -1}
_MATRICES = frozenset({"heads", "features", "feature_status"})  # as wide as models and plans are


def _apart(ranked: Batch, mask: Bools) -> tuple[tuple[str, ...], dict[str, Some]]:
    """Names of the candidates' flat columns, and their matrices as the log takes them: of the candidates in `mask` alone."""
    flat, matrices = [], {}
    for name, values in ranked.candidates.items():
        if values.ndim == 1 or name not in _MATRICES:
            flat.append(name)
        else:
            matrices[name] = Some(mask, values, values.dtype.type(_unknown(name, values)))
    return tuple(flat), matrices


def _unknown(name: str, values: Array) -> float:
    """What stands in a column of candidates for those that ranking did not see."""
    return _FILL.get(name, np.nan if values.dtype.kind == "f" else 0)


def _rejoin(batch: Batch, mask: Bools, ranked: Batch, names: Sequence[str]) -> Batch:
    """All candidates of `batch`, with what ranking said, in its columns `names`, of those in `mask`."""
    columns: dict[str, Array] = {}
    every = bool(mask.all())
    for name in names:
        values = ranked.candidates[name]
        if name in batch.candidates and name != "drop_reason":
            continue
        if every:
            columns[name] = values
            continue
        if name == "drop_reason":
            whole = batch.candidates["drop_reason"].copy()
        else:
            whole = np.full((len(mask), *values.shape[1:]), _unknown(name, values), values.dtype)
        whole[mask] = values
        columns[name] = whole
    joined = extended(batch, ranked.meta, **columns)
    return Batch(ranked.requests, joined.candidates, joined.offsets, joined.meta)
