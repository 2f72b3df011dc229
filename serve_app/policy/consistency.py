"""Contradictions between parts of a document: what each bound alone cannot see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from serve_app.errors import ContradictoryPolicy
from serve_app.policy.instants import instant_us
from serve_app.policy.overrides import CELL_ROOTS, EXPERIMENT_ROOTS, apply_overrides
from serve_app.policy.segment_attributes import check_attribute
from serve_app.policy.segment_tree import Attribute, Bucket, Membership, references, walk
from serve_app.policy.zones import zone_index

if TYPE_CHECKING:
    from serve_app.policy.document import PolicyDocument

__all__ = ["MAX_VARIANTS", "check_consistency"]

MAX_VARIANTS = 1024


def check_consistency(document: PolicyDocument) -> None:
    """Raise ContradictoryPolicy for the first contradiction found."""
    zone_index(document.default_zone)
    for name in ("caps", "quiet_hours", "holdouts", "experiments", "segments"):
        _unique(getattr(document, name), name)
    _check_labels(document)
    _check_salts(document)
    _check_dates(document)
    _check_segments(document)
    _check_trials(document)


def _unique(parts: Iterable[Any], field: str) -> None:
    seen: set[str] = set()
    for position, part in enumerate(parts):
        if part.id in seen:
            raise ContradictoryPolicy(f"the id {part.id!r} stands twice", field=f"{field}.{position}.id", hint="rename one")
        seen.add(part.id)


def _check_labels(document: PolicyDocument) -> None:
    labels = {rule.ad_label for rule in (*document.regions.values(), document.other_regions)} - {None}
    if len(labels) > 1:
        message = f"regions demand different labels ({', '.join(sorted(filter(None, labels)))}); a text begins with one"
        raise ContradictoryPolicy(message, field="regions", hint="keep one label, or make a policy for each region")


def _check_salts(document: PolicyDocument) -> None:
    """Two trials under one salt would not be independent of each other."""
    salts = [(f"holdouts.{i}.salt", one.salt) for i, one in enumerate(document.holdouts)]
    salts += [(f"experiments.{i}.salt", one.salt) for i, one in enumerate(document.experiments)]
    salts += [("cells.salt", document.cells.salt)] if document.cells else []
    first: dict[str, str] = {}
    for field, salt in salts:
        if salt in first:
            message = f"the salt {salt!r} is also that of {first[salt]}; their assignments would not be independent"
            raise ContradictoryPolicy(message, field=field, hint="give each its own salt")
        first[salt] = field
    for i, one in enumerate(document.segments):
        for field, node in walk(one.where, f"segments.{i}.where"):
            if isinstance(node, Bucket) and node.salt in first:  # buckets may share one: they are then nested
                message = f"the salt {node.salt!r} is also that of {first[node.salt]}; the segment would depend on it"
                raise ContradictoryPolicy(message, field=f"{field}.salt", hint="give each its own salt")


def _check_dates(document: PolicyDocument) -> None:
    for name in ("holdouts", "experiments"):
        for position, one in enumerate(getattr(document, name)):
            if one.starts_at and one.ends_at and instant_us(one.ends_at) <= instant_us(one.starts_at):
                raise ContradictoryPolicy("ends_at is not after starts_at", field=f"{name}.{position}.ends_at")


def _check_segments(document: PolicyDocument) -> None:
    below = {one.id: references(one.where) for one in document.segments}
    for position, one in enumerate(document.segments):
        for field, node in walk(one.where, f"segments.{position}.where"):
            if isinstance(node, Attribute | Membership):
                check_attribute(node, field)
        for name in sorted(below[one.id]):
            if name not in below:
                raise ContradictoryPolicy(f"no segment {name!r}", field=f"segments.{position}.where", hint="define it")
        reached, todo = set(), list(below[one.id])
        while todo:
            name = todo.pop()
            if name == one.id:
                raise ContradictoryPolicy("the segment refers to itself", field=f"segments.{position}.where")
            if name not in reached and name in below:
                reached.add(name)
                todo.extend(below[name])


def _check_trials(document: PolicyDocument) -> None:
    variants = 1
    owner: dict[str, str] = {}
    for i, experiment in enumerate(document.experiments):
        _unique(experiment.arms, f"experiments.{i}.arms")
        variants *= len(experiment.arms) + 1
        for j, arm in enumerate(experiment.arms):
            field = f"experiments.{i}.arms.{j}.overrides"
            _claim(owner, arm.overrides, f"experiment {experiment.id!r}", field)
            apply_overrides(document, arm.overrides, field=field, roots=EXPERIMENT_ROOTS)
    if document.cells:
        _unique(document.cells.variants, "cells.variants")
        variants *= len(document.cells.variants)
        _check_cells(document, owner)
    if variants > MAX_VARIANTS:
        message = f"arms and cells combine to {variants} variants, more than {MAX_VARIANTS}"
        raise ContradictoryPolicy(message, field="experiments", hint="run fewer at a time")


def _check_cells(document: PolicyDocument, owner: dict[str, str]) -> None:
    cells = document.cells
    assert cells is not None
    longest = document.longest_window_hours
    for j, cell in enumerate(cells.variants):
        field = f"cells.variants.{j}.overrides"
        _claim(owner, cell.overrides, "cells", field)
        variant = apply_overrides(document, cell.overrides, field=field, roots=CELL_ROOTS)
        longest = max(longest, variant.longest_window_hours)
    if cells.epoch_hours < longest:
        message = f"an epoch of {cells.epoch_hours:g} h is shorter than the longest window, {longest:g} h"
        hint = f"make epoch_hours at least {longest:g}, so that a window's uses belong to one cell"
        raise ContradictoryPolicy(message, field="cells.epoch_hours", hint=hint)


def _claim(owner: dict[str, str], overrides: Iterable[str], who: str, field: str) -> None:
    for path in overrides:
        other = owner.setdefault(path, who)
        if other != who:
            raise ContradictoryPolicy(f"{path!r} is also overridden by {other}", field=field, hint="let one trial own it")
