"""Dotted-path overrides: what arms and cells may change, and how the changed document is made."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from serve_app.errors import ContradictoryPolicy, plain_words

if TYPE_CHECKING:
    from serve_app.policy.document import PolicyDocument

__all__ = ["CELL_ROOTS", "EXPERIMENT_ROOTS", "apply_overrides", "setting_of"]

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


_OPEN_MAPS = frozenset({"head_weights", "sources"})
"""Groups whose keys the team names: an override may add one."""


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
        group, key, _ = _find(data, path, f"{field}.{path}", roots)
        group[key] = copy.deepcopy(value)
    try:
        return type(document).model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        reason = plain_words(str(first["msg"]))
        hint = "override with a value the setting itself may have"
        raise ContradictoryPolicy(f"override gives {at}: {reason}", field=_blamed(field, overrides, at), hint=hint) from None
    except ContradictoryPolicy as error:
        raise ContradictoryPolicy(f"with the override, {error.message}", field=field, hint=error.hint) from None


def setting_of(document: PolicyDocument, path: str, *, field: str, roots: tuple[str, ...]) -> tuple[str, ...]:
    """The one name of the setting a path leads to, however it is spelt (`caps.0.limit`, `caps.day.limit`). Raises
    ContradictoryPolicy as `apply_overrides` does."""
    return _find(document.model_dump(mode="json"), path, field, roots)[2]


def _blamed(field: str, overrides: Mapping[str, Any], at: str) -> str:
    """The override that made the setting `at` invalid, if its last part tells."""
    last = at.rpartition(".")[2]
    blamed = [path for path in overrides if path.rpartition(".")[2] == last]
    return f"{field}.{blamed[0]}" if len(blamed) == 1 else field


def _find(data: Any, path: str, field: str, roots: tuple[str, ...]) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """(group, key, name) of a setting: the mapping it stands in, under which key, and its one name."""
    parts = path.split(".")
    if parts[0] not in roots:
        raise ContradictoryPolicy(
            f"{parts[0]!r} must not be overridden here", field=field, hint=f"one of {', '.join(roots)}"
        )
    if parts[-1] in _FIXED:
        hint = f"not to be overridden: {', '.join(sorted(_FIXED))}"
        raise ContradictoryPolicy(f"{parts[-1]!r} is not a setting to override", field=field, hint=hint)
    name: list[str] = []
    for depth, part in enumerate(parts[:-1]):
        data, spelt = _step(data, part, field, ".".join(parts[: depth + 1]))
        name.append(spelt)
    added = len(parts) > 1 and parts[-2] in _OPEN_MAPS
    if not isinstance(data, dict) or (parts[-1] not in data and not added):
        known = ", ".join(sorted(data)) if isinstance(data, dict) else "nothing below it"
        raise ContradictoryPolicy(f"no such setting {parts[-1]!r}", field=field, hint=f"known here: {known}")
    if _is_group(data.get(parts[-1]), top=len(parts) == 1):
        raise ContradictoryPolicy("the path leads to a group of settings, not to one", field=field, hint="extend the path")
    return data, parts[-1], (*name, parts[-1])


def _is_group(value: Any, *, top: bool) -> bool:
    """A list of names (channels, classes) is one setting, a list of parts is not."""
    return isinstance(value, dict) or (isinstance(value, list) and (top or any(isinstance(one, dict) for one in value)))


def _step(data: Any, part: str, field: str, so_far: str) -> tuple[Any, str]:
    """What stands below, and the part's one name: the id where it has one."""
    if isinstance(data, dict) and part in data:
        return data[part], part
    if isinstance(data, list):
        for one in data:
            if isinstance(one, dict) and one.get("id") == part:
                return one, part
        if part.isdecimal() and int(part) < len(data):
            one = data[int(part)]
            return one, str(one.get("id", part)) if isinstance(one, dict) else part
        known = ", ".join(str(one.get("id")) for one in data if isinstance(one, dict)) or "none"
        raise ContradictoryPolicy(f"no element {part!r} at {so_far}", field=field, hint=f"ids there: {known}")
    known = ", ".join(sorted(data)) if isinstance(data, dict) else "nothing below it"
    raise ContradictoryPolicy(f"no such setting {so_far!r}", field=field, hint=f"known here: {known}")
