"""What a file's kernels rest on: the files whose text decides their compiled code.

A kernel's code follows from its own body, the kernels it calls and the constants it names, wherever these come from.
`rests_on` follows exactly those names through the imports of our packages; a name from elsewhere (numpy) ends the walk.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import xxhash

__all__ = ["digest_of_kernels", "rests_on"]

Definitions = dict[str, ast.AST]


def digest_of_kernels(path: Path, root: Path) -> str:
    """Digest of the text of every file that the kernels in `path` rest on. `root` is the folder of our packages."""
    state = xxhash.xxh3_64()
    for file in sorted(rests_on(path, root)):
        state.update(str(file.relative_to(root)).encode())
        state.update(file.read_bytes())
    return state.hexdigest()


def rests_on(path: Path, root: Path) -> set[Path]:
    """The files below `root` that decide what the kernels in `path` compile to, itself included."""
    definitions, kernels = _parsed(path)
    seen: set[tuple[Path, str]] = set()
    waiting = [(path, name) for node in kernels for name in _names(node) if name in definitions]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += _needs(*one, root)
    return {path, *(file for file, _ in seen)}


def _needs(path: Path, name: str, root: Path) -> list[tuple[Path, str]]:
    """Where the definition of `name` in `path` leads next."""
    definitions, _ = _parsed(path)
    node = definitions.get(name)
    if isinstance(node, ast.ImportFrom):
        original = next(one.name for one in node.names if (one.asname or one.name) == name)
        file = _module(root, node.module or "")
        submodule = _module(root, f"{node.module}.{original}")
        return [(one, original) for one in (submodule, file) if one is not None][:1]
    if node is None or isinstance(node, ast.Import):
        return []
    return [(path, one) for one in _names(node) if one in definitions]


def _module(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    return next((one for one in (base.with_suffix(".py"), base / "__init__.py") if one.is_file()), None)


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


@cache
def _parsed(path: Path) -> tuple[Definitions, list[ast.FunctionDef]]:
    """Definitions at module level by name, and the kernels among them or nested in functions."""
    tree = ast.parse(path.read_bytes())
    definitions: Definitions = {}
    for node in tree.body:
        for name in _defined(node):
            definitions[name] = node
    return definitions, [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and _is_kernel(node)]


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [one.asname or one.name.split(".")[0] for one in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]


def _is_kernel(node: ast.FunctionDef) -> bool:
    return any(isinstance(one, ast.Name) and one.id in ("kernel", "inlined") for one in node.decorator_list)
