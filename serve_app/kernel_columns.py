# ruff: noqa: ARG001  (numba reads the names of the arguments)
"""Tables by address, beside `serve_app.kernels.pointer_to` for flat columns: for kernels that take a hundred of them.

An array is seven machine words and a reference count: passing it down costs two locked instructions a call where numba
cannot prove them away, and minutes of compilation where there are many. What stands here is indexed like an array, without
bounds, negative places or counts. Whoever calls keeps the memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import numba
import numba.extending
import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin, lower_getattr
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr, infer_global, signature

__all__ = ["table_to"]


class _Table(types.Type):
    def __init__(self, dtype: Any, axes: int) -> None:
        self.dtype, self.axes, self.pointer = dtype, axes, types.CPointer(dtype)
        super().__init__(name=f"table({dtype}, {axes})")

    @property
    def key(self) -> Any:
        return self.dtype, self.axes


@numba.extending.register_model(_Table)
class _TableModel(numba.extending.models.StructModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        members = [("data", kind.pointer), ("rows", types.int64), ("width", types.int64), ("depth", types.int64)]
        super().__init__(manager, kind, members)


def table_to(dtype: str, axes: int) -> Callable[[int, int, int, int], Any]:
    """Inside kernels, table(address, rows, width, depth): the values of an array of two or three axes (depth: 1 for two)."""
    kind = _Table(numba.from_dtype(np.dtype(dtype)), axes)

    @numba.extending.intrinsic
    def table(_: Any, address: Any, rows: Any, width: Any, depth: Any) -> Any:
        def made(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            out = cgutils.create_struct_proxy(kind)(context, builder)
            out.data = builder.inttoptr(values[0], context.get_value_type(kind.pointer))
            out.rows, out.width, out.depth = values[1:]
            return out._getvalue()

        return kind(types.int64, types.int64, types.int64, types.int64), made

    return cast("Callable[[int, int, int, int], Any]", table)


def _index(kind: Any, place: Any) -> Any:
    fits = isinstance(kind, _Table) and isinstance(place, types.BaseTuple) and len(place) == kind.axes
    return types.UniTuple(types.int64, kind.axes) if fits else None


@infer_global(operator.getitem)
class _Get(AbstractTemplate):
    def generic(self, args: Any, _: Any) -> Any:
        index = _index(*args)
        return None if index is None else signature(args[0].dtype, args[0], index)


@infer_global(operator.setitem)
class _Set(AbstractTemplate):
    def generic(self, args: Any, _: Any) -> Any:
        index = _index(*args[:2])
        return None if index is None else signature(types.none, args[0], index, args[0].dtype)


@infer_getattr
class _Attributes(AttributeTemplate):
    key = _Table

    def resolve_shape(self, kind: Any) -> Any:
        return types.UniTuple(types.int64, kind.axes)


def _place(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    kind = sig.args[0]
    table = cgutils.create_struct_proxy(kind)(context, builder, value=args[0])
    place = builder.extract_value(args[1], 0)
    for axis, size in zip(range(1, kind.axes), (table.width, table.depth), strict=False):
        place = builder.add(builder.mul(place, size), builder.extract_value(args[1], axis))
    return builder.gep(table.data, [place])


@lower_builtin(operator.getitem, _Table, types.UniTuple)
def _get(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.load(_place(context, builder, sig, args))


@lower_builtin(operator.setitem, _Table, types.UniTuple, types.Any)
def _set(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    builder.store(args[2], _place(context, builder, sig, args))
    return context.get_dummy_value()


@lower_getattr(_Table, "shape")
def _shape(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    table = cgutils.create_struct_proxy(kind)(context, builder, value=value)
    sizes = (table.rows, table.width, table.depth)[: kind.axes]
    return context.make_tuple(builder, types.UniTuple(types.int64, kind.axes), sizes)
