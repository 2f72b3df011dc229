"""Exact sums: addition of doubles that is associative and commutative in bits.

An estimate is a sum over users, made in pieces: shards, buckets, restarts. Floating-point addition depends on the order
and on where the pieces were cut; these sums do not. Each is a fixed-point number of 13 limbs of 32 bits, from 2**-192 up
(Kulisch's accumulator; Neal 2015, "Fast exact summation using small and large superaccumulators", arXiv:1505.05571, cut to
the range needed here). In canonical form every limb but the last lies in [0, 2**32), so equal sums are equal bytes.

A term below 2**-192 (about 1e-58) is cut off, one of magnitude 2**160 (about 1e48) or more is refused.

Limbs are slow to add to. `nearly` keeps the running sum as two doubles and the error of each addition exactly (Knuth's
two-sum); only what does not fit into both goes to the limbs at once, so the result is the same number, hence the same bytes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel

__all__ = [
    "LIMBS",
    "add_exactly",
    "as_float",
    "as_floats",
    "canonical",
    "is_summable",
    "nearly",
    "nearly_each",
    "settle",
    "zeros",
]

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

LIMBS = 13
_LOWEST = 192  # limb 0 starts at 2**-192
_LARGEST = 2.0**160
_ALL_BITS_KEPT = 2.0 ** (53 - _LOWEST)  # from here on no bit of a double is below the lowest limb
_MASK = np.int64(0xFFFFFFFF)
_FRACTION = np.int64((1 << 52) - 1)
_HIDDEN = np.int64(1 << 52)


@kernel
def is_summable(x: float) -> bool:
    """Scalar, inside kernels: finite and small enough to be added."""
    return -_LARGEST < x < _LARGEST


@kernel
def add_exactly(limbs: I64, x: float) -> None:
    """Add x to one sum (i64[LIMBS]), inside kernels. A sum takes 2**30 terms before it must be made canonical."""
    if x == 0.0:
        return
    bits = np.float64(x).view(np.int64)
    fraction = (bits & _FRACTION) | _HIDDEN
    place = ((bits >> 52) & 0x7FF) - 1075 + _LOWEST
    if place < 0:
        if place < -52:
            return
        fraction, place = fraction >> -place, np.int64(0)
    limb, shift = place >> 5, place & 31
    low = (fraction & _MASK) << shift
    high = ((fraction >> 32) << shift) + (low >> 32)
    if bits < 0:
        limbs[limb] -= low & _MASK
        limbs[limb + 1] -= high & _MASK
        limbs[limb + 2] -= high >> 32
    else:
        limbs[limb] += low & _MASK
        limbs[limb + 1] += high & _MASK
        limbs[limb + 2] += high >> 32


@kernel
def nearly(head: float, tail: float, x: float) -> tuple[float, float, float]:
    """(head, tail, rest), scalars inside kernels: head + tail + rest is exactly the given head + tail + x. What the rest
    holds, mostly 0, goes to the limbs at once; head and tail when all has been added."""
    if -_ALL_BITS_KEPT < x < _ALL_BITS_KEPT:
        return head, tail, x
    total = head + x
    back = total - head
    error = (head - (total - back)) + (x - back)
    whole = tail + error
    back = whole - tail
    return total, whole, (tail - (whole - back)) + (error - back)


@kernel
def nearly_each(heads: F64, tails: F64, times: F64, value: float, rest: F64) -> bool:
    """`nearly` of times[b] * value for each of B sums, vectorized: all f64[B]. False: every rest is 0."""
    spilt = np.int64(0)
    tiny = -_ALL_BITS_KEPT < value < _ALL_BITS_KEPT
    for b in range(0 if tiny else len(times)):
        term, head, tail = times[b] * value, heads[b], tails[b]
        total = head + term
        back = total - head
        error = (head - (total - back)) + (term - back)
        whole = tail + error
        back = whole - tail
        rest[b] = (tail - (whole - back)) + (error - back)
        spilt |= np.int64(rest[b] != 0.0)
        heads[b], tails[b] = total, whole
    for b in range(len(times) if tiny else 0):
        rest[b] = times[b] * value
    return tiny or spilt != 0


@kernel
def settle(near: F64, sums: I64) -> None:
    """Move heads and tails into the limbs: near f64[n, 2], sums i64[n, LIMBS]."""
    for row in range(sums.shape[0]):
        add_exactly(sums[row], near[row, 0])
        add_exactly(sums[row], near[row, 1])
        near[row, 0], near[row, 1] = 0.0, 0.0


@kernel
def canonical(sums: I64) -> None:
    """Carry in place, so that equal sums are equal bytes: sums i64[n, LIMBS]."""
    for row in range(sums.shape[0]):
        carry = np.int64(0)
        for limb in range(sums.shape[1] - 1):
            carry += sums[row, limb]
            sums[row, limb] = carry & _MASK
            carry >>= 32
        sums[row, sums.shape[1] - 1] += carry


def zeros(n: int) -> I64:
    """n sums of nothing."""
    return np.zeros((n, LIMBS), np.int64)


def as_float(limbs: I64) -> float:
    """The correctly rounded double of one sum."""
    whole = 0
    for limb in reversed(limbs.tolist()):
        whole = (whole << 32) + limb
    return math.ldexp(float(whole), -_LOWEST)


def as_floats(sums: I64) -> F64:
    """f64[n] of sums i64[n, LIMBS]."""
    out = np.zeros(len(sums))
    for row in np.flatnonzero(sums.any(axis=1)).tolist():
        out[row] = as_float(sums[row])
    return out
