"""Random numbers as a pure function of their key: a counter-based hash, never a stateful generator.

`uniform(hash_key(salt, a, b, ...))` gives the same number in the server, in a replay and in the world, for a row alone or
among a million. The mixer is SplitMix64's finaliser (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators"), chained over the key's parts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

from serve_app.kernels import kernel

__all__ = ["absorb", "gumbel", "hash_key", "mix", "salt_of", "uniform", "unit_interval"]

U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_ULP = 1.0 / 9007199254740992.0  # 2**-53


@kernel
def mix(x: np.uint64) -> np.uint64:
    """Scalar mixer for use inside kernels: u64 -> u64, a bijection."""
    x = np.uint64(x + _GOLDEN)
    x = np.uint64((x ^ (x >> _S30)) * _M1)
    x = np.uint64((x ^ (x >> _S27)) * _M2)
    return np.uint64(x ^ (x >> _S31))


@kernel
def absorb(state: np.uint64, part: np.uint64) -> np.uint64:
    """Fold one more part into a key, for use inside kernels: `absorb(absorb(salt, a), b) == hash_key(salt, a, b)`."""
    return mix(np.uint64(state ^ mix(part)))


@kernel
def unit_interval(bits: np.uint64) -> float:
    """Scalar, inside kernels: u64 -> f64 strictly inside (0, 1)."""
    return (float(bits >> _S11) + 0.5) * _ULP


def _mix(x: U64) -> U64:
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> _S30)) * _M1
        x = (x ^ (x >> _S27)) * _M2
        return x ^ (x >> _S31)


def _as_u64(part: npt.ArrayLike) -> U64:
    values = np.asarray(part)
    if values.dtype == np.uint64:
        return values
    if values.dtype.kind in "iub":
        return values.astype(np.int64).view(np.uint64) if values.ndim else np.asarray(values, np.int64).view(np.uint64)
    raise TypeError(f"a key part must be integers, got {values.dtype}; hash text with salt_of() first")


def salt_of(text: str) -> np.uint64:
    """A stable 64-bit salt from text (XXH3)."""
    return np.uint64(xxhash.xxh3_64_intdigest(text.encode()))


def hash_key(salt: np.uint64 | int, *parts: npt.ArrayLike) -> U64:
    """Hash the broadcast `parts` (integers) under `salt`; returns u64 of the broadcast shape."""
    state = np.atleast_1d(np.asarray(salt, np.uint64))
    for part in parts:
        state = _mix(state ^ _mix(np.atleast_1d(_as_u64(part))))
    return state


def uniform(bits: U64) -> F64:
    """u64 -> f64 strictly inside (0, 1), 53 bits."""
    result: F64 = ((bits >> _S11).astype(np.float64) + 0.5) * _ULP
    return result


def gumbel(bits: U64) -> F64:
    """u64 -> standard Gumbel noise: argmax(log-weights + noise) draws from their softmax."""
    return -np.log(-np.log(uniform(bits)))
