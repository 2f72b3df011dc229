"""Compiled kernels: the one place that knows numba.

Kernels run in strict IEEE order (no `fastmath`), release the GIL, and are cached on disk, so a result never depends on
how many rows share a call.

numba's cache looks at the file a kernel stands in, not at the files of what it calls or of the constants it uses. A stale
cache would silently serve an old rule, so a file's cache stands in a folder named by a digest of all that its kernels rest
on. A change compiles what follows from it and nothing else; another checkout of the same sources compiles nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numba.extending
import numpy as np
import xxhash
from numba.core.caching import _CacheLocator

from serve_app.kernel_sources import digest_of_kernels, rests_on

__all__ = ["DigestLocator", "cache_folder", "inlined", "kernel", "pointer_to"]

P = ParamSpec("P")
R = TypeVar("R")

_PACKAGES = Path(__file__).resolve().parent.parent
_KEPT_S = 14 * 86_400  # unused caches of earlier sources


@cache
def _cache_root() -> Path:
    """Per user; in the temporary folder where the home folder cannot be written."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(given)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hindcast"
    try:
        home.mkdir(parents=True, exist_ok=True)
        writable = os.access(home, os.W_OK)
    except OSError:
        writable = False
    return (home if writable else Path(tempfile.gettempdir()) / f"hindcast-{os.getuid()}") / "kernels"


@cache
def cache_folder(module: str) -> Path:
    """Where the kernels of an imported module are cached. Folders of its earlier sources go after two weeks without use."""
    path = Path(cast("str", sys.modules[module].__file__)).resolve()
    folder = _cache_root() / f"{module}-{_digest(module, path)}"
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.parent.glob(f"{module}-*"):
            if old.stat().st_mtime < time.time() - _KEPT_S:
                shutil.rmtree(old, ignore_errors=True)
    os.utime(folder)
    return folder


def _digest(module: str, path: Path) -> str:
    """The digest of a module's kernels; as noted at the last start where no file has changed since (following names through
    forty modules takes half a second)."""
    root = _PACKAGES if path.is_relative_to(_PACKAGES) else path.parent
    note = _cache_root() / "sources" / f"{module}-{xxhash.xxh3_64_hexdigest(str(path).encode())}.json"
    try:
        digest, files = json.loads(note.read_bytes())
        if all(_stamp(Path(file)) == stamp for file, stamp in files.items()):
            return cast("str", digest)
    except (OSError, ValueError, TypeError):  # no note, or one that cannot be read: work it out
        pass
    files = {str(file): _stamp(file) for file in sorted(rests_on(path, root))}
    digest = digest_of_kernels(path, root)
    note.parent.mkdir(parents=True, exist_ok=True)
    aside = note.with_name(f"{note.name}.{os.getpid()}")
    aside.write_text(json.dumps([digest, files]))
    aside.replace(note)
    return digest


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_mtime_ns, found.st_size]


class DigestLocator(_CacheLocator):
    """Tells numba that compiled kernels stand in `cache_folder`, and that its digest is all their freshness depends on.

    numba's own locators add the path of the source file and a hash of its whole text, so that every checkout, and every
    change of a docstring, would compile anew.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._folder, self._line = cache_folder(function.__module__), function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        """The folder."""
        return str(self._folder)

    def get_source_stamp(self) -> str:
        """Never another one in this folder."""
        return self._folder.name

    def get_disambiguator(self) -> str:
        """Tells functions of one name apart."""
        return str(self._line)

    @classmethod
    def from_function(cls, function: Callable[..., Any], _file: str) -> DigestLocator:
        """Called by numba when a kernel is decorated."""
        return cls(function)


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` at first use; arguments are numpy arrays and scalars only."""
    return _compiled(function)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """A kernel that becomes part of each kernel that calls it: one row of a rule, shared by the loop over a batch and by
    loops that walk users. What a caller does not use of its result costs nothing there."""
    return _compiled(function, forceinline=True)


def _compiled(function: Callable[P, R], **how: bool) -> Callable[P, R]:
    """numba reads the locator's name while it decorates; other users of numba in this process keep theirs."""
    before = numba.config.CACHE_LOCATOR_CLASSES
    numba.config.CACHE_LOCATOR_CLASSES = f"{DigestLocator.__module__}.{DigestLocator.__name__}"
    try:
        return cast("Callable[P, R]", numba.njit(cache=True, nogil=True, fastmath=False, **how)(function))
    finally:
        numba.config.CACHE_LOCATOR_CLASSES = before


def pointer_to(dtype: str) -> Callable[[int], Any]:
    """Inside kernels: from an address, values of `dtype` that are indexed like a flat array, without length and bounds.

    A kernel of a hundred columns takes them so: each is one machine word, which compiles ten times as fast as an array.
    Whoever calls keeps the memory. Booleans are bytes ("u1").
    """
    kind = numba.from_dtype(np.dtype(dtype))

    @numba.extending.intrinsic
    def pointer(_: Any, _address: Any) -> Any:
        def made(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return numba.types.CPointer(kind)(numba.types.int64), made

    return cast("Callable[[int], Any]", pointer)
