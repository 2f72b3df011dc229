"""YAML (1.2 core rules) or JSON into plain data, with the line of every key, duplicate keys refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.errors import InvalidInput

__all__ = ["Positions", "parse_text", "read_document"]

_LARGEST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Positions:
    """Line (from 1) of each path in a document."""

    lines: dict[tuple[int | str, ...], int]

    def text(self, path: tuple[int | str, ...]) -> str:
        """`` line 12`` of the path, or of its nearest known ancestor; empty when nothing is known. List elements may be
        given by position or, as dotted paths do, by number in text."""
        path = tuple(int(part) if isinstance(part, str) and part.isdigit() else part for part in path)
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f" line {line}"
        return ""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core scalars: `no` and `on` are text, and `21:00` is not a number in base 60."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
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
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", field="file", hint="check the path") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path.name} is not UTF-8 at byte {error.start}", field="file", hint="save it as UTF-8"
        ) from None
    return parse_text(text, path.name)


def parse_text(text: str, name: str) -> tuple[Any, Positions]:
    """Plain data and positions of YAML or JSON text. Raises InvalidInput naming the line."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise InvalidInput(f"{name} is empty", field="document", hint="start from serve_app/policy/default.yaml")
        lines: dict[tuple[int | str, ...], int] = {}
        _walk(root, (), lines, name, 0)
        return loader.construct_document(root), Positions(lines)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidInput(f"{name}{line}: {error.problem}", field="document", hint="fix the YAML") from None
    except yaml.YAMLError as error:
        raise InvalidInput(f"{name}: {error}", field="document", hint="fix the YAML") from None
    finally:
        loader.dispose()


def _walk(
    node: yaml.Node, path: tuple[int | str, ...], lines: dict[tuple[int | str, ...], int], name: str, depth: int
) -> None:
    if depth > 100:
        raise InvalidInput(f"{name}: nested deeper than 100", field="document")
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for position, child in enumerate(node.value):
            _walk(child, (*path, position), lines, name, depth + 1)
    elif isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            below = (*path, str(key.value))
            line = key.start_mark.line + 1
            if below in lines:
                raise InvalidInput(
                    f"{name} line {line}: the key stands twice, first in line {lines[below]}",
                    field=".".join(str(part) for part in below),
                    hint="keep one of them",
                )
            lines[below] = line
            _walk(child, below, lines, name, depth + 1)
