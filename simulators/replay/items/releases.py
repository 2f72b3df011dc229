"""Releases as a replay of lists uses them: vectors of the items, models on logged features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serve_app.policy.compile import CompiledPolicy
from serve_app.release.load import Release
from simulators.replay.items.logged import Lists
from simulators.replay.items.making import Vectors
from simulators.replay.items.retrieving import RetrievedLists
from simulators.replay.items.scoring import Compile, LoggedScores, Scored, Scorer, considered
from simulators.replay.items.spec import ListsSpec
from simulators.replay.rescoring import heads_of, opened_release, rescored

__all__ = ["ReleaseScores", "scorer_for", "vectors_from"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


def scorer_for(spec: ListsSpec) -> Scorer:
    """Where the targets' scores come from."""
    data = Path(spec.data)
    vectors = vectors_from(data)
    if not spec.release:
        return LoggedScores(vectors)
    if spec.retrieval:
        return RetrievedLists(opened_release(data, spec.release, ("catalogue", "retrieval", "features", "models")), vectors)
    return ReleaseScores(opened_release(data, spec.release, ("catalogue", "models")), vectors)


class ReleaseScores:
    """A release's models on the logged features of the logged candidates."""

    reads_features = True
    reads_requests = False

    def __init__(self, release: Release, vectors: Vectors | None) -> None:
        self.vectors, self._release = vectors, release

    def score(self, lists: Lists, behaviour: Sequence[CompiledPolicy], compiled: Compile) -> Scored:
        """InvalidInput names features that were not logged."""
        heads = heads_of(self._release, lists.surface)
        scores = rescored(heads, lists.candidates["features"], lists.feature_names)
        scores[np.isnan(lists.candidates["value"])] = np.nan
        scored = replace(lists, head_names=heads.names, candidates={**lists.candidates, "heads": scores})
        return considered(lists, scored, behaviour, compiled)


def vectors_from(data: Path) -> Vectors:
    """Embeddings of the release that made a list; of items stored since, what the server gave them: their category's."""

    @cache
    def opened(version: str) -> Release:
        return opened_release(data, version, ("catalogue", "retrieval"))

    def of(lists: Lists) -> tuple[F32, I32]:
        release = opened(lists.release)
        known, by_category = (np.asarray(one) for one in (release.retrieval.vectors, release.retrieval.category_vectors))
        rows = release.catalogue.item_rows(lists.candidates["item"])
        hashes = release.catalogue.category_hashes
        order = np.argsort(hashes)
        at = np.minimum(np.searchsorted(hashes[order], lists.candidates["category"]), max(len(order) - 1, 0))
        named = order[at] if len(order) else np.zeros(len(rows), np.int64)
        found = hashes[named] == lists.candidates["category"] if len(order) else np.zeros(len(rows), np.bool_)
        category = np.where(found, named, len(by_category) - 1)
        return np.concatenate([known, by_category]), np.where(rows >= 0, rows, len(known) + category).astype(np.int32)

    return of
