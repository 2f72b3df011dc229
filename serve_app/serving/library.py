"""What one process holds to serve: opened releases with their stages, policies, and the live changes on top.

A *role* says which parts of a release a process needs; in `topology: fused` one process has every role. A release that
asks for a feature nobody provides, or that the policy in force does not fit, fails here, when it is prepared, and not on a
request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from serve_app.campaigns import CampaignDocument, CampaignTable, parse_campaign
from serve_app.errors import NotReady
from serve_app.ids import hash_ids
from serve_app.ledger.protocol import CatalogueChange
from serve_app.policy.compile import CompiledPolicy, compile_policy
from serve_app.policy.document import PolicyDocument
from serve_app.regions import region_index
from serve_app.release.load import Release, load_release
from serve_app.release.registry import release_folder
from serve_app.segments.shelf import SegmentShelf
from serve_app.serving import faults
from serve_app.serving.board import Kind
from serve_app.serving.live import ItemsView, KeptChanges
from serve_app.serving.versions import VersionStore
from serve_app.stages.features import COMPUTED, Features, FeatureTable, ItemFacts, source_specs
from serve_app.stages.retrieval import EVIDENCE, Retrieval
from serve_app.stages.stage import Context

if TYPE_CHECKING:
    from serve_app.stages.ranking import Identities, Ranking

__all__ = ["ALL_ROLES", "Edition", "Held", "Library", "Pins", "Role", "hold"]

PolicyLoader = Callable[[str], PolicyDocument]


class Role(StrEnum):
    """What a process does with a release."""

    ingress = "ingress"
    retrieval = "retrieval"
    features = "features"
    ranking = "ranking"
    decision = "decision"
    worker = "worker"


ALL_ROLES = frozenset(Role)
_CAMPAIGN_CHANGE = "campaign"

# The ingress holds retrieval's tables for its fall-back and for the embedding rule of new items; they are memory-mapped.
_PARTS: dict[Role, tuple[str, ...]] = {
    Role.ingress: ("catalogue", "retrieval", "histories"),
    Role.retrieval: ("catalogue", "retrieval"),
    Role.features: ("catalogue", "retrieval", "features", "models"),
    Role.ranking: ("catalogue", "retrieval", "features", "models"),
    Role.decision: ("catalogue", "retrieval", "histories"),  # histories: for its own warm-up
    Role.worker: ("catalogue", "retrieval", "histories"),
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
    base: ItemsView  # with the changes known when it was opened
    heads: dict[str, tuple[str, ...]]
    retrieval: Retrieval | None
    features: Features | None
    ranking: Ranking | None
    campaigns: dict[str, CampaignDocument]


@dataclass(frozen=True)
class Edition:
    """Everything one micro-batch is decided with."""

    held: Held
    policy: CompiledPolicy
    view: ItemsView
    context: Context

    documents: Mapping[str, CampaignDocument]
    segments: SegmentShelf

    @property
    def release(self) -> Release:
        """The release the batch is pinned to."""
        return self.held.release

    @cached_property
    def campaigns(self) -> CampaignTable:
        """Campaigns of the catalogue with those stored since, as columns; items are rows of `view`."""
        documents = list(self.documents.values())
        named = sorted({one.item_id for one in documents if one.item_id})
        rows = self.view.rows_of(hash_ids(named)).tolist()
        return CampaignTable.of(documents, self.policy, dict(zip(named, rows, strict=True)))


class Library:
    """Releases, policies and live changes of one process. Thread-safe."""

    def __init__(self, data: Path, roles: Collection[Role], load_policy: PolicyLoader) -> None:
        self._data = data
        self._roles = frozenset(roles)
        self._load_policy = load_policy
        self.releases: VersionStore[Held] = VersionStore("release", self._open)
        self.policies: VersionStore[PolicyDocument] = VersionStore("policy", self._read_policy)
        self.segments = SegmentShelf(data)
        self._compiled: dict[tuple[str, str], CompiledPolicy] = {}
        self._changes = KeptChanges()
        self._editions: dict[tuple[str, str], Edition] = {}
        self._campaigns: dict[str, CampaignDocument] = {}
        self._lock = threading.Lock()

    @property
    def stores(self) -> dict[Kind, VersionStore[Any]]:
        """By kind, as a Follower takes them."""
        return {"release": self.releases, "policy": self.policies}

    @property
    def seq(self) -> int:
        """Catalogue changes known to this process."""
        with self._lock:
            return self._changes.newest

    def learn(self, changes: Sequence[CatalogueChange]) -> None:
        """Take in the next catalogue changes, in order; known ones are passed over."""
        with self._lock:
            for change in changes:
                if change.seq > self._changes.newest:
                    self._changes.take(change)
                    if change.kind == _CAMPAIGN_CHANGE:
                        document = parse_campaign(orjson.loads(change.payload))
                        self._campaigns[document.campaign_id] = document

    def edition(self, pins: Pins) -> Edition:
        """What `pins` stand for in this process, always with every change it knows. NotReady where a version is not held, or
        the changes up to `pins.seq` are not known yet."""
        held, key = self.releases.get(pins.release), (pins.release, pins.policy)
        with self._lock:
            newest, known = self._changes.newest, self._known(held, self._compiled.get(key), key)
        if newest < pins.seq:
            raise NotReady(f"this process knows {newest} catalogue changes, the request {pins.seq}", field="availability")
        if known is not None:
            return known
        policy = self._compile(held, *key)
        with self._lock:
            if (known := self._known(held, policy, key)) is not None:  # another thread's
                return known
            made = self._edition(held, policy)
            self._editions = {pair: one for pair, one in self._editions.items() if pair[0] in self.releases.loaded()}
            self._editions[key] = made
            return made

    def _known(self, held: Held, policy: CompiledPolicy | None, key: tuple[str, str]) -> Edition | None:
        """The newest edition, if it has been made. Called under the lock."""
        one = self._editions.get(key)
        newest = one is not None and one.view.seq == self._changes.newest and one.policy is policy and one.held is held
        return one if newest else None

    def _edition(self, held: Held, policy: CompiledPolicy) -> Edition:
        """Called under the lock. A view is of no policy: the release's newest is gone on from, whoever made it."""
        views = [one.view for one in self._editions.values() if one.held is held]
        view = max(views, key=lambda one: one.seq, default=held.base)
        view = view.apply(self._changes.after(view.seq))
        parts: dict[str, Any] = {"availability": view.overlay, "item_facts": view.facts}
        if held.ranking is not None:
            parts["identities"] = _identities(held.release, view)
        documents = {**held.campaigns, **self._campaigns}
        return Edition(held, policy, view, Context((policy,), parts), documents, self.segments)

    def _open(self, version: str) -> Held:
        parts = tuple(dict.fromkeys(part for role in self._roles for part in _PARTS[role]))
        release = load_release(release_folder(self._data, version), parts)
        release.load_all()
        held = hold(release, self._roles)
        with self._lock:
            changes = self._changes.after(0)
        # Here, where nobody waits, and not under the lock when the first request is pinned to it.
        held = replace(held, base=held.base.apply(changes))
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


def hold(release: Release, roles: frozenset[Role]) -> Held:
    """The stages that `roles` need, built from a release whose parts are open; live changes come on top."""
    rows, tables = release.catalogue, release.retrieval
    base = ItemsView.of_release(rows, np.asarray(tables.category_vectors))
    heads = {name: tuple(names) for name, names in release.manifest.heads.items()}
    retrieval = features = ranking = None
    if roles & {Role.retrieval, Role.ingress}:
        if faults.planted():
            tables = replace(tables, neighbours=faults.FaultySearch(tables.neighbours))
        retrieval = Retrieval(tables, {region_index(code): row for row, code in enumerate(tables.regions)})
    if roles & {Role.features, Role.ranking}:  # ranking needs the plans and defaults, for when features are late
        features = _features(release, release.features, base.facts)
    if Role.ranking in roles:
        from serve_app.stages.ranking import Ranking

        ranking = Ranking(release.models, _identities(release, base))
    campaigns = {row["campaign_id"]: parse_campaign(row) for row in rows.campaigns.to_pylist()}
    return Held(release, base, heads, retrieval, features, ranking, campaigns)


def _features(release: Release, tables: Sequence[FeatureTable], facts: ItemFacts) -> Features:
    stored = [spec for table in tables for spec in table.specs]
    plans = release.models.plans([*stored, *COMPUTED, *source_specs(EVIDENCE)])
    return Features(plans, tables, facts)


def _identities(release: Release, view: ItemsView) -> Identities:
    from serve_app.stages.ranking import Identities

    side = view.overlay.side_embeddings
    vectors = np.asarray(release.retrieval.vectors)
    return Identities(
        item=view.hashes,
        widget=release.catalogue.widget_hashes,
        review=release.catalogue.review_hashes,
        vectors=np.concatenate([vectors, side]) if len(side) else vectors,
    )
