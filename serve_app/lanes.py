"""Sixty-four rows at once inside kernels: comparisons give a bit a row, in one u64.

LLVM finds no such code by itself in a loop, but turns it into whatever the processor has (one instruction for sixteen rows
with AVX-512, four with SSE). These are exact comparisons and choices: no result depends on the processor.
"""

from __future__ import annotations

from typing import Any

import numba
import numba.extending
from llvmlite import ir
from numba.core import cgutils

__all__ = ["LANES", "at_least", "put_places", "unknown"]

LANES = 64
_BITS = ir.IntType(LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)
_BYTES = ir.VectorType(ir.IntType(8), LANES)


def _address(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """Of element `at` of the memory of a contiguous array."""
    data = context.make_array(kind)(context, builder, value=array).data
    return builder.gep(data, [at])


def _lanes(builder: Any, address: Any, kind: Any) -> Any:
    found = builder.load(builder.bitcast(address, kind.as_pointer()))
    found.align = 1
    return found


def _everywhere(builder: Any, value: Any, kind: Any) -> Any:
    """A vector of one value."""
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    places = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
    return builder.shuffle_vector(one, nothing, places)


@numba.extending.intrinsic
def at_least(_: Any, values: Any, at: Any, least: Any) -> Any:  # noqa: ARG001 - numba matches types by these names
    """Bit l: values[at + l] >= least, of the flat memory of a contiguous f32 array. NaN is not."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        lanes = _lanes(builder, _address(context, builder, signature.args[0], given[0], given[1]), _FLOATS)
        return builder.bitcast(builder.fcmp_ordered(">=", lanes, _everywhere(builder, given[2], _FLOATS)), _BITS)

    return numba.types.uint64(values, numba.types.uint64, numba.types.float32), made


@numba.extending.intrinsic
def unknown(_: Any, values: Any, at: Any) -> Any:  # noqa: ARG001 - numba matches types by these names
    """Bit l: values[at + l] is NaN, of the flat memory of a contiguous f32 array."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        lanes = _lanes(builder, _address(context, builder, signature.args[0], given[0], given[1]), _FLOATS)
        return builder.bitcast(builder.fcmp_unordered("uno", lanes, lanes), _BITS)

    return numba.types.uint64(values, numba.types.uint64), made


@numba.extending.intrinsic
def put_places(_: Any, planes: Any, count: Any, out: Any) -> Any:  # noqa: ARG001 - numba matches types by these names
    """out[l] = the number whose binary digits are bit l of planes[0], ... planes[count - 1], the highest first; out u8[64],
    planes u64[8]."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        total = cgutils.alloca_once_value(builder, ir.Constant(_BYTES, None))
        with cgutils.for_range(builder, given[1], intp=ir.IntType(64)) as loop:
            plane = builder.load(_address(context, builder, signature.args[0], given[0], loop.index))
            doubled = builder.load(total)
            doubled = builder.add(doubled, doubled)
            builder.store(builder.add(doubled, builder.zext(builder.bitcast(plane, _MASK), _BYTES)), total)
        address = _address(context, builder, signature.args[2], given[2], ir.Constant(ir.IntType(64), 0))
        stored = builder.store(builder.load(total), builder.bitcast(address, _BYTES.as_pointer()))
        stored.align = 1
        return context.get_dummy_value()

    return numba.types.void(planes, numba.types.uint64, out), made
