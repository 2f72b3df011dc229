"""YAML (1.2 core rules) or JSON into plain data, with the line of every key, duplicate keys refused.

A document is bounded before it is built: bytes, values (aliases counted as often as they are used, so that a small file
cannot unfold into a large one), depth, and digits of a number.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.errors import InvalidInput

__all__ = ["Positions", "parse_text", "read_document"]

_LARGEST_BYTES = 4 * 1024 * 1024
_MOST_VALUES = 400_000
_DEEPEST = 100
_LONGEST_NUMBER = 100
_START = "start from serve_app/policy/default.yaml"

Path_ = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Positions:
    """Line (from 1) of each path in a document."""

    lines: dict[Path_, int]

    def text(self, path: Path_) -> str:
        """`` line 12`` of the path, or of its nearest known ancestor; empty when nothing is known."""
        line = self.line(path)
        return f" line {line}" if line else ""

    def line(self, path: Path_) -> int:
        """The same as a number, 0 when nothing is known. List elements may be given by position or, as dotted paths do, by
        number in text; a key that has dots itself may be given in parts."""
        path = tuple(int(part) if isinstance(part, str) and part.isdecimal() else part for part in path)
        for length in range(len(path), 0, -1):
            whole = (*path[: length - 1], ".".join(str(part) for part in path[length - 1 :]))
            line = self.lines.get(path[:length], self.lines.get(whole))
            if line is not None:
                return line
        return 0


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core scalars: `no` and `on` are text, and `21:00` is not a number in base 60."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
):
    _firsts = list(_first.replace("\0", "")) + ([""] if "\0" in _first else [])
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _firsts)


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


def read_document(path: Path) -> tuple[Any, Positions]:
    """Plain data and positions of a file. Raises InvalidInput when it cannot be read or parsed."""
    try:
        size = path.stat().st_size
        if size > _LARGEST_BYTES:
            raise InvalidInput(f"{path.name} has {size} bytes, more than {_LARGEST_BYTES}", field="file")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", field="file", hint="check the path") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path.name} is not UTF-8 at byte {error.start}", field="file", hint="save it as UTF-8"
        ) from None
    return parse_text(text, path.name)


def parse_text(text: str, name: str) -> tuple[Any, Positions]:
    """Plain data and positions of YAML or JSON text. Raises InvalidInput naming the line."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError):
            return _read_yaml(text, name)
        # JSON is YAML but for tabs between its tokens (inside its strings it has none) and surrogate pairs.
        return plain, _read_yaml(text.replace("\t", " "), name)[1]
    return _read_yaml(text, name)


def _read_yaml(text: str, name: str) -> tuple[Any, Positions]:
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise InvalidInput(f"{name} is empty", field="document", hint=_START)
        walk = _Walk(name)
        walk.visit(root, (), 0)
        return loader.construct_document(root), Positions(walk.lines)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidInput(f"{name}{line}: {error.problem}", field="document", hint="fix the YAML") from None
    except yaml.YAMLError as error:
        raise InvalidInput(f"{name}: {error}".splitlines()[0], field="document", hint="fix the YAML") from None
    except RecursionError:
        raise InvalidInput(f"{name}: nested deeper than {_DEEPEST}", field="document", hint="flatten it") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Walk:
    """Lines of all paths of a node tree; refuses what is too much, stands twice, or is of no type a document has."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Path_, int] = {}
        self.values = 0

    def visit(self, node: yaml.Node, path: Path_, depth: int) -> None:
        """One value and what is below it."""
        line = node.start_mark.line + 1
        self.values += 1
        if depth > _DEEPEST:
            raise self._refused(line, f"nested deeper than {_DEEPEST}", path, "flatten it")
        if self.values > _MOST_VALUES:
            raise self._refused(line, f"more than {_MOST_VALUES} values, aliases unfolded", path, "use fewer aliases")
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node, path, line)
        elif isinstance(node, yaml.SequenceNode):
            self._check_tag(node, "seq", path, line)
            for position, child in enumerate(node.value):
                self.visit(child, (*path, position), depth + 1)
        elif isinstance(node, yaml.MappingNode):
            self._check_tag(node, "map", path, line)
            self._visit_keys(node, path, depth)

    def _visit_keys(self, node: yaml.MappingNode, path: Path_, depth: int) -> None:
        for key, child in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise self._refused(line, "a key is a list or a mapping", path, "keys are text")
            below = (*path, str(key.value))
            if below in self.lines:
                message = f"the key stands twice, first in line {self.lines[below]}"
                raise self._refused(line, message, below, "keep one of them")
            self.lines[below] = line
            self.visit(child, below, depth + 1)

    def _check_scalar(self, node: yaml.ScalarNode, path: Path_, line: int) -> None:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in ("bool", "int", "float", "null", "str"):
            raise self._refused(line, f"the tag {node.tag} is not read here", path, "remove the tag")
        pattern = _IMPLIED.get(kind)
        if pattern is not None and not pattern.match(node.value):
            raise self._refused(line, f"{node.value[:60]!r} is no {kind}", path, "remove the tag")
        if kind in ("int", "float") and len(node.value) > _LONGEST_NUMBER:
            raise self._refused(line, f"a number of {len(node.value)} digits", path, "write it shorter")

    def _check_tag(self, node: yaml.Node, kind: str, path: Path_, line: int) -> None:
        if node.tag != f"tag:yaml.org,2002:{kind}":
            raise self._refused(line, f"the tag {node.tag} is not read here", path, "remove the tag")

    def _refused(self, line: int, message: str, path: Path_, hint: str) -> InvalidInput:
        field = ".".join(str(part) for part in path[:12]) or "document"
        return InvalidInput(f"{self.name} line {line}: {message}", field=field, hint=hint)


_IMPLIED = {
    tag.removeprefix("tag:yaml.org,2002:"): pattern
    for found in _Loader.yaml_implicit_resolvers.values()
    for tag, pattern in found
}
