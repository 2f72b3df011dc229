"""What one process holds to serve: opened releases with their stages, policies, and the live changes on top.

A *role* says which parts of a release a process needs; in `topology: fused` one process has every role. A release that
asks for a feature nobody provides, or that the policy in force does not fit, fails here, when it is prepared, and not on a
request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.errors import NotReady
from serve_app.ledger.protocol import CatalogueChange
from serve_app.policy.compile import CompiledPolicy, compile_policy
from serve_app.policy.document import PolicyDocument
from serve_app.regions import region_index
from serve_app.release.load import Release, load_release
from serve_app.release.registry import release_folder
from serve_app.serving.board import Kind
from serve_app.serving.live import ItemsView
from serve_app.serving.versions import VersionStore
from serve_app.stages.features import COMPUTED, Features, FeatureTable, ItemFacts, source_specs
from serve_app.stages.ranking import Identities, Ranking
from serve_app.stages.retrieval import EVIDENCE, Retrieval
from serve_app.stages.stage import Context

__all__ = ["ALL_ROLES", "Edition", "Held", "Library", "Pins", "Role"]

PolicyLoader = Callable[[str], PolicyDocument]


class Role(StrEnum):
    """What a process does with a release."""

    ingress = "ingress"
    retrieval = "retrieval"
    features = "features"
    ranking = "ranking"
    decision = "decision"


ALL_ROLES = frozenset(Role)

# The ingress holds retrieval's tables for its fall-back and for the embedding rule of new items; they are memory-mapped.
_PARTS: dict[Role, tuple[str, ...]] = {
    Role.ingress: ("catalogue", "retrieval", "histories"),
    Role.retrieval: ("catalogue", "retrieval"),
    Role.features: ("catalogue", "retrieval", "features", "models"),
    Role.ranking: ("catalogue", "retrieval", "features", "models"),
    Role.decision: ("catalogue", "retrieval"),
}


@dataclass(frozen=True, slots=True)
class Pins:
    """What a request was pinned to at admission. seq: catalogue changes up to here are in."""

    release: str
    policy: str
    seq: int


@dataclass(frozen=True)
class Held:
    """One opened release with the stages of this process's roles (None where the role is another's)."""

    release: Release
    base: ItemsView
    heads: dict[str, tuple[str, ...]]
    retrieval: Retrieval | None
    features: Features | None
    ranking: Ranking | None


@dataclass(frozen=True)
class Edition:
    """Everything one micro-batch is decided with."""

    held: Held
    policy: CompiledPolicy
    view: ItemsView
    context: Context

    @property
    def release(self) -> Release:
        """The release the batch is pinned to."""
        return self.held.release


class Library:
    """Releases, policies and live changes of one process. Thread-safe."""

    def __init__(self, data: Path, roles: Collection[Role], load_policy: PolicyLoader) -> None:
        self._data = data
        self._roles = frozenset(roles)
        self._load_policy = load_policy
        self.releases: VersionStore[Held] = VersionStore("release", self._open)
        self.policies: VersionStore[PolicyDocument] = VersionStore("policy", self._read_policy)
        self._compiled: dict[tuple[str, str], CompiledPolicy] = {}
        self._changes: list[CatalogueChange] = []
        self._views: dict[str, ItemsView] = {}
        self._contexts: dict[tuple[str, str], tuple[int, Context]] = {}
        self._lock = threading.Lock()

    @property
    def stores(self) -> dict[Kind, VersionStore[Any]]:
        """By kind, as a Follower takes them."""
        return {"release": self.releases, "policy": self.policies}

    @property
    def seq(self) -> int:
        """Catalogue changes known to this process."""
        with self._lock:
            return self._changes[-1].seq if self._changes else 0

    def learn(self, changes: Sequence[CatalogueChange]) -> None:
        """Take in the next catalogue changes, in order; known ones are passed over."""
        with self._lock:
            last = self._changes[-1].seq if self._changes else 0
            for change in changes:
                if change.seq > last:
                    self._changes.append(change)
                    last = change.seq

    def edition(self, pins: Pins) -> Edition:
        """What `pins` stand for in this process. NotReady where a version is not held or changes are not known yet."""
        held = self.releases.get(pins.release)
        if self.seq < pins.seq:
            raise NotReady(f"this process knows {self.seq} catalogue changes, the request {pins.seq}", field="availability")
        policy = self._compile(held, pins.release, pins.policy)
        view = self._view(held, pins.release)
        return Edition(held, policy, view, self._context(pins, held, policy, view))

    def _open(self, version: str) -> Held:
        parts = tuple(dict.fromkeys(part for role in self._roles for part in _PARTS[role]))
        release = load_release(release_folder(self._data, version), parts)
        release.load_all()
        held = _hold(release, self._roles)
        for revision in self.policies.loaded():
            self._compile(held, version, revision)
        return held

    def _read_policy(self, revision: str) -> PolicyDocument:
        document = self._load_policy(revision)
        for version in self.releases.loaded():
            compile_policy(document, heads=self.releases.get(version).heads)
        return document

    def _compile(self, held: Held, release: str, revision: str) -> CompiledPolicy:
        with self._lock:
            known = self._compiled.get((release, revision))
        if known is None:
            known = compile_policy(self.policies.get(revision), heads=held.heads)
            with self._lock:
                alive = self.releases.loaded() | {release}
                self._compiled = {pair: one for pair, one in self._compiled.items() if pair[0] in alive}
                self._compiled[release, revision] = known
        return known

    def _view(self, held: Held, release: str) -> ItemsView:
        with self._lock:
            view = self._views.get(release, held.base)
            if self._changes and view.seq < self._changes[-1].seq:
                # Sequence numbers rise by one from 1, so the list's tail is what the view lacks.
                view = view.apply(self._changes[view.seq - self._changes[0].seq + 1 if view.seq else 0 :])
                self._views = {version: one for version, one in self._views.items() if version in self.releases.loaded()}
                self._views[release] = view
            return view

    def _context(self, pins: Pins, held: Held, policy: CompiledPolicy, view: ItemsView) -> Context:
        key = pins.release, pins.policy
        with self._lock:
            known = self._contexts.get(key)
            if known is not None and known[0] == view.seq and known[1].policies[0] is policy:
                return known[1]
        parts: dict[str, Any] = {"availability": view.overlay, "item_facts": view.facts}
        if held.ranking is not None:
            parts["identities"] = _identities(held.release, view)
        made = Context((policy,), parts)
        with self._lock:
            self._contexts = {pair: one for pair, one in self._contexts.items() if pair[0] in self.releases.loaded()}
            self._contexts[key] = (view.seq, made)
        return made


def _hold(release: Release, roles: frozenset[Role]) -> Held:
    rows, tables = release.catalogue, release.retrieval
    base = ItemsView.of_release(rows, np.asarray(tables.category_vectors))
    heads = {name: tuple(names) for name, names in release.manifest.heads.items()}
    retrieval = features = ranking = None
    if roles & {Role.retrieval, Role.ingress}:
        retrieval = Retrieval(tables, {region_index(code): row for row, code in enumerate(tables.regions)})
    if roles & {Role.features, Role.ranking}:  # ranking needs the plans and defaults, for when features are late
        features = _features(release, release.features, base.facts)
    if Role.ranking in roles:
        ranking = Ranking(release.models, _identities(release, base))
    return Held(release, base, heads, retrieval, features, ranking)


def _features(release: Release, tables: Sequence[FeatureTable], facts: ItemFacts) -> Features:
    stored = [spec for table in tables for spec in table.specs]
    plans = release.models.plans([*stored, *COMPUTED, *source_specs(EVIDENCE)])
    return Features(plans, tables, facts)


def _identities(release: Release, view: ItemsView) -> Identities:
    side = view.overlay.side_embeddings
    vectors = np.asarray(release.retrieval.vectors)
    return Identities(
        item=view.hashes,
        widget=release.catalogue.widget_hashes,
        review=release.catalogue.review_hashes,
        vectors=np.concatenate([vectors, side]) if len(side) else vectors,
    )
