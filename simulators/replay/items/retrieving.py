"""Lists of a release's own: its retrieval run again for the logged requests, its features read, its models asked.

Each target's candidates join the logged ones, behind them: a logged slot that the target does not retrieve has no chance
under it, and what only the target retrieves is mass that the log could not show. Availability is the release's, less what
the log says had gone by then; items stored since the release was built are unknown to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Columns, lengths_to_offsets
from serve_app.columns import REQUEST_COLUMNS
from serve_app.noise import hash_key
from serve_app.policy.compile import CompiledPolicy
from serve_app.release.load import Release
from serve_app.serving.given import KindPolicies
from serve_app.serving.library import Role, hold
from serve_app.stages.stage import Context
from serve_app.vocabulary import DropReason, Surface
from simulators.replay.items.asking import asked_again
from simulators.replay.items.logged import Lists
from simulators.replay.items.making import Vectors, drawn_variants
from simulators.replay.items.scoring import Compile, Considered, Scored, considered
from simulators.replay.rescoring import heads_of, rescored

__all__ = ["RetrievedLists"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_RETRIEVED = (Surface.related, Surface.gateway)  # the others rank what they are given


@dataclass(frozen=True)
class _Found:
    """Candidates that one target retrieves. owner i64[k]: the list of each; thing, category u64[k]; heads f32[k, H]."""

    owner: I64
    thing: U64
    category: U64
    heads: F32


class RetrievedLists:
    """Candidates, features and scores of a release."""

    reads_features = True
    reads_requests = True

    def __init__(self, release: Release, vectors: Vectors | None) -> None:
        self.vectors, self._release = vectors, release
        self._held = hold(release, frozenset({Role.retrieval, Role.features}))

    def score(self, lists: Lists, behaviour: Sequence[CompiledPolicy], compiled: Compile) -> Scored:
        """What every target retrieves, beside what was logged."""
        heads = heads_of(self._release, lists.surface)
        if lists.surface not in _RETRIEVED:
            scores = rescored(heads, lists.candidates["features"], lists.feature_names)
            again = replace(lists, head_names=heads.names, candidates={**lists.candidates, "heads": scores})
            return considered(lists, again, behaviour, compiled)
        batch, policies = asked_again(lists, self._release.catalogue), compiled(heads.names)
        found = {name: self._found(lists, batch, policy) for name, policy in policies.items()}
        joined = _joined(lists, found.values())
        keys, new = _keys(joined.owner, joined.candidates["thing"]), joined.candidates["slot"] == _NEW
        joined = replace(joined, candidates={**joined.candidates, "slot": np.where(new, -1, joined.candidates["slot"])})
        targets, missed = {}, np.ones(len(new), np.bool_)
        for name, one in found.items():
            scores, allowed = _scores(keys, one, len(heads.names))
            again = replace(joined, head_names=heads.names, candidates={**joined.candidates, "heads": scores})
            targets[name] = Considered(policies[name], again, allowed)
            missed &= ~allowed
        return Scored(joined, targets, self._notes(lists, new, missed))

    def _notes(self, lists: Lists, new: npt.NDArray[np.bool_], missed: npt.NDArray[np.bool_]) -> Mapping[str, int]:
        unknown = self._release.catalogue.item_rows(lists.candidates["item"]) < 0
        return {
            "unknown_things": int(unknown.sum()),
            "not_retrieved": int((missed & ~new).sum()) - int(unknown.sum()),
            "newly_retrieved": int(new.sum()),
        }

    def _found(self, lists: Lists, batch: Batch, policy: CompiledPolicy) -> _Found:
        held = self._held
        assert held.retrieval is not None
        assert held.features is not None
        asked, context = self._under(lists, batch, policy)
        out = held.retrieval.run(asked, context)
        things = self._release.catalogue.item_hashes[out.candidates["item"]]
        repeated = np.isin(_keys(out.owner, things), _repeats(lists))  # the page's earlier lists are as logged
        on_page = (lists.requests["parent_request_id"] != 0) & (lists.requests["widget"] == 0)  # empty as logged
        repeated |= on_page[out.owner]
        kept = out.select((out.candidates["drop_reason"] == DropReason.kept) & ~repeated)
        read = held.features.run(kept, Context((policy,), {"item_facts": held.base.facts}))
        heads = heads_of(self._release, lists.surface)
        scores = heads.predict(np.ascontiguousarray(read.candidates["features"]))
        things = self._release.catalogue.item_hashes[kept.candidates["item"]]
        return _Found(kept.owner, things, kept.candidates["category"], scores)

    def _under(self, lists: Lists, batch: Batch, policy: CompiledPolicy) -> tuple[Batch, Context]:
        """The requests pinned to the policy, lists of a page to the kind of widget they fill."""
        rows, widgets = self._release.catalogue, self._release.catalogue.widget_hashes
        shelf = lists.requests["widget"]
        kinds = rows.widget_kinds
        base = policy.retrieval(lists.surface)
        by_kind = [KindPolicies(kind, base) for kind in kinds]
        pinned = np.zeros(len(lists), np.int16)
        for place, widget in enumerate(widgets.tolist()):
            pinned[shelf == widget] = place + 1
        columns = dict(batch.requests) | {"policy": pinned, "variant": drawn_variants(lists, policy)}
        asked = Batch(Columns(len(batch), REQUEST_COLUMNS, columns), batch.candidates, batch.offsets, batch.meta)
        return asked, Context((policy, *by_kind), {})


def _repeats(lists: Lists) -> U64:
    """Keys of what a page's earlier lists showed, which is left out once candidates are chosen, as the server does."""
    assert lists.asked is not None, "read with asked=True"
    column = lists.asked["repeats"].combine_chunks()
    owner = np.repeat(np.arange(len(lists)), np.diff(column.offsets.to_numpy()))
    return _keys(owner, column.flatten().to_numpy())


_NEW = -9
"""Stands in `slot` for a candidate that was not logged, until all are joined."""


def _keys(owner: I64, things: U64) -> U64:
    return hash_key(0, owner, things)


def _joined(lists: Lists, found: Iterable[_Found]) -> Lists:
    """The lists with every candidate that some target retrieves and the log has not, behind the logged ones."""
    every = list(found)
    owner, thing, category = (
        np.concatenate([getattr(one, name) for one in every]) for name in ("owner", "thing", "category")
    )
    logged = lists.owner
    keys = _keys(owner, thing)
    _, first = np.unique(keys, return_index=True)
    first = np.sort(first[~np.isin(keys[first], _keys(logged, lists.candidates["thing"]))])
    owner, thing, category = owner[first], thing[first], category[first]
    whose = np.concatenate([logged, owner])
    order = np.argsort(whose, kind="stable")
    blank = {"value": np.nan, "p_slot": np.nan, "heads": np.nan, "features": np.nan, "slot": _NEW}
    given = {"thing": thing, "item": thing, "category": category}
    columns = {}
    for name, values in lists.candidates.items():
        tail = given.get(name)
        if tail is None:
            tail = np.full((len(thing), *values.shape[1:]), blank.get(name, 0), values.dtype)
        columns[name] = np.concatenate([values, tail])[order]
    offsets = lengths_to_offsets(np.bincount(whose, minlength=len(lists)))
    return replace(lists, offsets=offsets, candidates=columns)


def _scores(keys: U64, found: _Found, width: int) -> tuple[F32, npt.NDArray[np.bool_]]:
    """(heads f32[m, H], bool[m]: retrieved) of joined candidates."""
    own = _keys(found.owner, found.thing)
    order = np.argsort(own)
    out, allowed = np.full((len(keys), width), np.nan, np.float32), np.zeros(len(keys), np.bool_)
    if len(own):
        at = np.minimum(np.searchsorted(own[order], keys), len(own) - 1)
        allowed = own[order][at] == keys
        out[allowed] = found.heads[order[at[allowed]]]
    return out, allowed
