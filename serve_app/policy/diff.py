"""What changed between two policies, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from serve_app.policy.base import Strict
from serve_app.policy.document import PolicyDocument
from serve_app.policy.rules import Cap, QuietHours
from serve_app.policy.trials import Cells, Experiment, Holdout

__all__ = ["policy_diff"]


def policy_diff(old: PolicyDocument, new: PolicyDocument) -> list[str]:
    """One line per change, in the document's order; empty when the two say the same."""
    lines: list[str] = []
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if name == "caps":
            alone = {cap.id for cap in before if [_scope(one) for one in before].count(_scope(cap)) == 1}
            lines += _parts(before, after, "cap", _cap_words, partial(_cap_change, alone))
        elif name == "quiet_hours":
            lines += _parts(before, after, "quiet hours", _quiet_words, _settings_change)
        elif name == "holdouts":
            lines += _parts(before, after, "holdout", _holdout_words, _settings_change)
        elif name == "experiments":
            lines += _parts(before, after, "experiment", _experiment_words, _settings_change)
        elif name == "segments":
            lines += _parts(before, after, "segment", lambda one: one.id, _settings_change)
        elif name == "cells" and (before is None or after is None):
            lines.append(f"{_cells_words(before or after)} {'added' if before is None else 'removed'}")
        elif name == "kill_switches":
            lines += _switches(before, after)
        else:
            lines += _walk(_plain(before), _plain(after), name.replace("_", " "))
    return lines


def _parts(
    old: tuple[Any, ...],
    new: tuple[Any, ...],
    kind: str,
    words: Callable[[Any], str],
    change: Callable[[str, Any, Any], list[str]],
) -> list[str]:
    before, after = {one.id: one for one in old}, {one.id: one for one in new}
    lines = [f"{kind} {words(one)} removed" for name, one in before.items() if name not in after]
    lines += [f"{kind} {words(one)} added" for name, one in after.items() if name not in before]
    for name, one in after.items():
        if name in before and before[name] != one:
            lines += change(f"{kind} {words(before[name])}", before[name], one)
    return lines + _order(kind, list(before), list(after))


def _order(kind: str, before: list[str], after: list[str]) -> list[str]:
    """Order matters: the first of several rules that apply speaks, and shares of users follow it."""
    stayed = [name for name in after if name in before]
    if stayed == [name for name in before if name in after]:
        return []
    return [f"{kind}: order changed to {', '.join(after)}"]


def _scope(cap: Cap) -> str:
    only = f" {', '.join(cap.only)}" if cap.only else ""
    return f"{cap.scope}{only}"


def _cap_words(cap: Cap) -> str:
    return f"{cap.id} ({_scope(cap)}, {cap.limit} per {cap.window})"


def _cap_change(alone: set[str], _: str, old: Cap, new: Cap) -> list[str]:
    """`global cap 3 -> 2 per rolling 24 h`; with its id where several caps have the scope."""
    lines = []
    name = f"{_scope(old)} cap" if old.id in alone else f"{_scope(old)} cap {old.id}"
    if old.limit != new.limit and old.window == new.window:
        lines.append(f"{name} {old.limit} -> {new.limit} per {old.window}")
    elif old.window != new.window:
        lines.append(f"{name} {old.limit} per {old.window} -> {new.limit} per {new.window}")
    skip = {"limit", "window"}
    before = {key: value for key, value in _plain(old).items() if key not in skip}
    after = {key: value for key, value in _plain(new).items() if key not in skip}
    return lines + _walk(before, after, name)


def _quiet_words(rule: QuietHours) -> str:
    return f"{rule.id} ({rule.start} to {rule.end}, {rule.action})"


def _holdout_words(holdout: Holdout) -> str:
    return f"{holdout.id} ({holdout.scope}, {holdout.percent:g} %)"


def _experiment_words(experiment: Experiment) -> str:
    return f"{experiment.id} ({', '.join(f'{arm.id} {arm.percent:g} %' for arm in experiment.arms)})"


def _cells_words(cells: Cells) -> str:
    shares = ", ".join(f"{one.id} {100 * one.probability:g} %" for one in cells.variants)
    return f"cells ({shares}; drawn anew every {cells.epoch_hours:g} h)"


def _settings_change(name: str, old: Strict, new: Strict) -> list[str]:
    return _walk(_plain(old), _plain(new), name)


def _switches(old: Any, new: Any) -> list[str]:
    lines = []
    if old.all != new.all:
        lines.append("kill switch: everything off" if new.all else "kill switch: everything on again")
    for name in ("channels", "categories", "campaigns"):
        before, after = set(getattr(old, name)), set(getattr(new, name))
        lines += [f"kill switch: {name} {one} off" for one in sorted(after - before)]
        lines += [f"kill switch: {name} {one} on again" for one in sorted(before - after)]
    return lines


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Strict) else _plain_inside(value)


def _plain_inside(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value


def _walk(old: Any, new: Any, name: str) -> list[str]:
    """Changes below a path; lists of named parts are compared by id."""
    lines: list[str] = []
    if isinstance(old, list) and isinstance(new, list) and _named(old) and _named(new):
        old, new = {one["id"]: one for one in old}, {one["id"]: one for one in new}
        lines = _order(name, list(old), list(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in new:
                lines.append(f"{name} {key}: {_shown(old[key])} removed")
            elif key not in old:
                lines.append(f"{name} {key}: {_shown(new[key])} added")
            elif old[key] != new[key]:
                lines += _walk(old[key], new[key], f"{name} {str(key).replace('_', ' ')}")
        return lines
    return [f"{name} {_shown(old)} -> {_shown(new)}"]


def _named(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(one, dict) and "id" in one for one in values)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "[" + ", ".join(_shown(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(one)}" for key, one in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
