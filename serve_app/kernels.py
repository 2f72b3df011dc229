"""Compiled kernels: the one place that knows numba.

Kernels run in strict IEEE order (no `fastmath`), release the GIL, and are cached on disk, so a result never depends on
how many rows share a call.

numba's cache looks at the file a kernel stands in, not at the files of what it calls or of the constants it uses. A stale
cache would silently serve an old rule, so the cache's folder is named by a digest of all source files that kernels rest on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import numba
import xxhash

__all__ = ["kernel", "source_digest"]

P = ParamSpec("P")
R = TypeVar("R")

# Shells around the kernels: nothing in them is compiled, so editing them need not compile anything anew.
_SHELLS = {"ingress", "serving", "running", "release", "log"}


def source_digest(roots: list[Path]) -> str:
    """Digest of every source file below the packages `roots`, shells left out."""
    state = xxhash.xxh3_64()
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root)
            if inside.parts[0] not in _SHELLS:
                state.update(f"{root.name}/{inside}".encode())
                state.update(path.read_bytes())
    return state.hexdigest()


def _cache_folder() -> Path:
    """Per user and per source; in the temporary folder where the home folder cannot be written."""
    package = Path(__file__).parent
    beside = package.parent / "simulators"
    name = f"kernels-{source_digest([package, *([beside] if beside.is_dir() else [])])}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hindcast"
    try:
        home.mkdir(parents=True, exist_ok=True)
        writable = os.access(home, os.W_OK)
    except OSError:
        writable = False
    return (home if writable else Path(tempfile.gettempdir()) / f"hindcast-{os.getuid()}") / name


if "NUMBA_CACHE_DIR" not in os.environ:
    numba.config.CACHE_DIR = str(_cache_folder())


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` at first use; arguments are numpy arrays and scalars only."""
    return cast("Callable[P, R]", numba.njit(cache=True, nogil=True, fastmath=False)(function))
