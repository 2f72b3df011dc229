"""Compiled kernels: the one place that knows numba.

Kernels run in strict IEEE order (no `fastmath`), release the GIL, and are cached on disk, so a result never depends on
how many rows share a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

__all__ = ["kernel"]

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` at first use; arguments are numpy arrays and scalars only."""
    return cast("Callable[P, R]", numba.njit(cache=True, nogil=True, fastmath=False)(function))
