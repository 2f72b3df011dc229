"""Contradictions between parts of a document: what each bound alone cannot see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

from serve_app.errors import ContradictoryPolicy, InvalidInput
from serve_app.policy.base import Strict
from serve_app.policy.instants import instant_us
from serve_app.policy.overrides import CELL_ROOTS, EXPERIMENT_ROOTS, apply_overrides, setting_of
from serve_app.policy.segment_attributes import check_attribute
from serve_app.policy.segment_tree import Attribute, Bucket, Membership, references, walk
from serve_app.policy.zones import zone_index

if TYPE_CHECKING:
    from serve_app.policy.document import PolicyDocument

__all__ = ["MAX_VARIANTS", "check_consistency", "contradictions"]

MAX_VARIANTS = 1024


def check_consistency(document: PolicyDocument) -> None:
    """Raise ContradictoryPolicy for the first contradiction found; `also` holds the others."""
    found = list(contradictions(document))
    if found:
        found[0].also = tuple(found[1:])
        raise found[0]


def contradictions(document: PolicyDocument) -> Iterator[ContradictoryPolicy]:
    """Every contradiction, in the document's order of parts; of each trial the first."""
    try:
        zone_index(document.default_zone)
    except InvalidInput as error:
        yield ContradictoryPolicy(error.message, field="default_zone", hint=error.hint)
    for name in ("caps", "quiet_hours", "holdouts", "experiments", "segments"):
        yield from _unique(getattr(document, name), name)
    yield from _labels(document)
    yield from _salts(document)
    yield from _dates(document)
    yield from _segments(document)
    yield from _Trials(document).contradictions()


def _unique(parts: Iterable[Any], field: str) -> Iterator[ContradictoryPolicy]:
    seen: set[str] = set()
    for position, part in enumerate(parts):
        if part.id in seen:
            yield ContradictoryPolicy(f"the id {part.id!r} stands twice", field=f"{field}.{position}.id", hint="rename one")
        seen.add(part.id)


def _labels(document: PolicyDocument) -> Iterator[ContradictoryPolicy]:
    labels = {rule.ad_label for rule in (*document.regions.values(), document.other_regions)} - {None}
    if len(labels) > 1:
        message = f"regions demand different labels ({', '.join(sorted(filter(None, labels)))}); a text begins with one"
        yield ContradictoryPolicy(message, field="regions", hint="keep one label, or make a policy for each region")


def _salts(document: PolicyDocument) -> Iterator[ContradictoryPolicy]:
    """Two trials under one salt would not be independent of each other, nor a trial and a segment's random bucket."""
    salts = [(f"holdouts.{i}.salt", one.salt) for i, one in enumerate(document.holdouts)]
    salts += [(f"experiments.{i}.salt", one.salt) for i, one in enumerate(document.experiments)]
    salts += [("cells.salt", document.cells.salt)] if document.cells else []
    first: dict[str, str] = {}
    for field, salt in salts:
        if salt in first:
            message = f"the salt {salt!r} is also that of {first[salt]}; their assignments would not be independent"
            yield ContradictoryPolicy(message, field=field, hint="give each its own salt")
        first.setdefault(salt, field)
    for position, one in enumerate(document.segments):
        for field, node in walk(one.where, f"segments.{position}.where"):
            if isinstance(node, Bucket) and node.salt in first:  # buckets may share one: the smaller then lies in the larger
                owner = first[node.salt]
                message = f"a bucket's salt {node.salt!r} is also that of {owner}; the one would select the other's users"
                yield ContradictoryPolicy(message, field=f"{field}.salt", hint="give each its own salt")


def _dates(document: PolicyDocument) -> Iterator[ContradictoryPolicy]:
    for name in ("holdouts", "experiments"):
        for position, one in enumerate(getattr(document, name)):
            if one.starts_at and one.ends_at and instant_us(one.ends_at) <= instant_us(one.starts_at):
                hint = f"it starts at {one.starts_at}"
                yield ContradictoryPolicy("ends_at is not after starts_at", field=f"{name}.{position}.ends_at", hint=hint)


def _segments(document: PolicyDocument) -> Iterator[ContradictoryPolicy]:
    below = {one.id: references(one.where) for one in document.segments}
    for position, one in enumerate(document.segments):
        yield from _attributes(one.where, f"segments.{position}.where")
        for name in sorted(below[one.id]):
            if name not in below:
                yield ContradictoryPolicy(f"no segment {name!r}", field=f"segments.{position}.where", hint="define it")
        reached, todo = set(), list(below[one.id])
        while todo:
            name = todo.pop()
            if name == one.id:
                message, hint = "the segment refers to itself", "break the circle"
                yield ContradictoryPolicy(message, field=f"segments.{position}.where", hint=hint)
                break
            if name not in reached and name in below:
                reached.add(name)
                todo.extend(below[name])


def _attributes(where: Strict, field: str) -> Iterator[ContradictoryPolicy]:
    for place, node in walk(where, field):
        if isinstance(node, Attribute | Membership):
            try:
                check_attribute(node, place)
            except ContradictoryPolicy as error:
                yield error


class _Trials:
    """Arms and cells: each setting has one owner, and every combination of them is a document that can be obeyed."""

    def __init__(self, document: PolicyDocument) -> None:
        self.document = document
        self.owner: dict[tuple[str, ...], str] = {}
        # (trial, field, overrides, roots) of every arm and cell that stands alone.
        self.sound: list[tuple[str, str, Mapping[str, Any], tuple[str, ...]]] = []
        self.longest = document.own_window_hours

    def contradictions(self) -> Iterator[ContradictoryPolicy]:
        """All of them."""
        document, variants = self.document, 1
        for i, experiment in enumerate(document.experiments):
            variants *= len(experiment.arms) + 1
            yield from _unique(experiment.arms, f"experiments.{i}.arms")
            for j, arm in enumerate(experiment.arms):
                field = f"experiments.{i}.arms.{j}.overrides"
                yield from self._alone(f"experiment {experiment.id!r}", field, arm.overrides, EXPERIMENT_ROOTS)
        if document.cells:
            variants *= len(document.cells.variants)
            yield from _unique(document.cells.variants, "cells.variants")
            for j, cell in enumerate(document.cells.variants):
                yield from self._alone("cells", f"cells.variants.{j}.overrides", cell.overrides, CELL_ROOTS)
            yield from self._epoch(document.cells.epoch_hours)
        if variants > MAX_VARIANTS:
            message = f"arms and cells combine to {variants} variants, more than {MAX_VARIANTS}"
            yield ContradictoryPolicy(message, field="experiments", hint="run fewer at a time")
        yield from self._together()

    def _alone(
        self, trial: str, field: str, overrides: Mapping[str, Any], roots: tuple[str, ...]
    ) -> Iterator[ContradictoryPolicy]:
        if not overrides:
            return
        mine: dict[tuple[str, ...], str] = {}
        try:
            for path in overrides:
                setting = setting_of(self.document, path, field=f"{field}.{path}", roots=roots)
                if setting in mine:
                    message, hint = f"{path!r} is the same setting as {mine[setting]!r}", "keep one of them"
                    raise ContradictoryPolicy(message, field=f"{field}.{path}", hint=hint)
                mine[setting] = path
                other = self.owner.setdefault(setting, trial)
                if other != trial:
                    message, hint = f"{path!r} is also overridden by {other}", "let one trial own it"
                    raise ContradictoryPolicy(message, field=f"{field}.{path}", hint=hint)
            changed = apply_overrides(self.document, overrides, field=field, roots=roots)
        except ContradictoryPolicy as error:
            yield error
            return
        self.longest = max(self.longest, changed.own_window_hours)
        self.sound.append((trial, field, overrides, roots))

    def _epoch(self, epoch: float) -> Iterator[ContradictoryPolicy]:
        """A setting has one owner, so the longest window of all combinations is that of one arm or cell."""
        if epoch < self.longest:
            message = f"an epoch of {epoch:g} h is shorter than the longest window, {self.longest:g} h"
            hint = f"make epoch_hours at least {self.longest:g}, so that a window's uses belong to one cell"
            yield ContradictoryPolicy(message, field="cells.epoch_hours", hint=hint)

    def _together(self) -> Iterator[ContradictoryPolicy]:
        """Bounds between settings hold within one group (a window, a rule, a surface): what two trials change in the same
        group must fit together."""
        for (trial, field, first, roots), (other, _, second, more) in combinations(self.sound, 2):
            groups = {path.rpartition(".")[0] for path in first} & {path.rpartition(".")[0] for path in second}
            if trial == other or not groups - {""}:
                continue
            try:
                both = tuple(dict.fromkeys((*roots, *more)))
                apply_overrides(self.document, {**first, **second}, field=field, roots=both)
            except ContradictoryPolicy as error:
                yield ContradictoryPolicy(f"together with {other}: {error.message}", field=field, hint=error.hint)
