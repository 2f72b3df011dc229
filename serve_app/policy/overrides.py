"""Dotted-path overrides: what arms and cells may change, and how the changed document is made."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from serve_app.errors import ContradictoryPolicy

if TYPE_CHECKING:
    from serve_app.policy.document import PolicyDocument

__all__ = ["CELL_ROOTS", "EXPERIMENT_ROOTS", "apply_overrides"]

CELL_ROOTS = ("caps", "min_gap", "quiet_hours", "threshold")
EXPERIMENT_ROOTS = (
    *CELL_ROOTS,
    "message_classes",
    "duplicate_window_hours",
    "order",
    "max_sends_per_decision",
    "deferral",
    "flips",
    "surfaces",
)
"""Law (regions), kill switches, holdouts and segments are not for experiments to change."""

_FIXED = frozenset({"id", "salt", "scope", "only"})


def apply_overrides(
    document: PolicyDocument, overrides: Mapping[str, Any], *, field: str, roots: tuple[str, ...]
) -> PolicyDocument:
    """The document with settings changed, without experiments and cells of its own.

    `field` is where the overrides stand, for errors. Raises ContradictoryPolicy for a path that leads nowhere, that must
    not be overridden, or whose value is out of the setting's bounds.
    """
    data = document.model_dump(mode="json")
    data["experiments"], data["cells"] = [], None
    for path, value in overrides.items():
        _set(data, path, value, f"{field}.{path}", roots)
    try:
        return type(document).model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise ContradictoryPolicy(f"override gives {at}: {first['msg']}", field=field) from None
    except ContradictoryPolicy as error:
        raise ContradictoryPolicy(f"with the override, {error.message}", field=field, hint=error.hint) from None


def _set(data: Any, path: str, value: Any, field: str, roots: tuple[str, ...]) -> None:
    parts = path.split(".")
    if parts[0] not in roots:
        raise ContradictoryPolicy(
            f"{parts[0]!r} must not be overridden here", field=field, hint=f"one of {', '.join(roots)}"
        )
    if parts[-1] in _FIXED:
        raise ContradictoryPolicy(f"{parts[-1]!r} is not a setting to override", field=field)
    for depth, part in enumerate(parts[:-1]):
        data = _step(data, part, field, ".".join(parts[: depth + 1]))
    if not isinstance(data, dict) or parts[-1] not in data:
        known = ", ".join(sorted(data)) if isinstance(data, dict) else "nothing below it"
        raise ContradictoryPolicy(f"no such setting {parts[-1]!r}", field=field, hint=f"known here: {known}")
    if isinstance(data[parts[-1]], dict | list):
        raise ContradictoryPolicy("the path leads to a group of settings, not to one", field=field, hint="extend the path")
    data[parts[-1]] = copy.deepcopy(value)


def _step(data: Any, part: str, field: str, so_far: str) -> Any:
    if isinstance(data, dict) and part in data:
        return data[part]
    if isinstance(data, list):
        for one in data:
            if isinstance(one, dict) and one.get("id") == part:
                return one
        if part.isdigit() and int(part) < len(data):
            return data[int(part)]
        known = ", ".join(str(one.get("id")) for one in data if isinstance(one, dict)) or "none"
        raise ContradictoryPolicy(f"no element {part!r} at {so_far}", field=field, hint=f"ids there: {known}")
    raise ContradictoryPolicy(f"no such setting {so_far!r}", field=field)
