"""Columns that are made when somebody asks for them. A replay reads a third of what a log says; the rest stays packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsIndex

import numpy.typing as npt

from serve_app.batch import Columns, Ragged
from serve_app.columns import ColumnSpec

__all__ = ["LazyArrays", "LazyColumns", "replaced"]

Array = npt.NDArray[Any]
Source = Mapping[str, Callable[[], Array]]


class LazyColumns(Columns):
    """A batch's columns, of which each is made at its first use by the function `source` has for it."""

    __slots__ = ("_source",)

    def __init__(self, rows: int, specs: Mapping[str, ColumnSpec], source: Source) -> None:
        super().__init__(rows, specs)
        self._source = dict(source)

    def __getitem__(self, name: str) -> Any:
        if name not in self._data and name in self._source:
            self[name] = self._source[name]()
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        return name in self._data or name in self._source

    def __iter__(self) -> Iterator[str]:
        yield from self._source
        yield from (name for name in self._data if name not in self._source)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def copy(self) -> Columns:
        """All of them, now."""
        return self.made()

    def take(self, rows: Array) -> Columns:
        """The given rows, in that order."""
        return self.made().take(rows)

    def slice(self, begin: int, end: int) -> Columns:
        """Rows begin..end, as views."""
        return self.made().slice(begin, end)

    def made(self) -> Columns:
        """All of them, now."""
        return Columns(self._rows, self._specs, {name: self[name] for name in self})

    def replacing(self, columns: Mapping[str, Array | Ragged]) -> LazyColumns:
        """The same with some other columns."""
        out = LazyColumns(self._rows, self._specs, {name: one for name, one in self._source.items() if name not in columns})
        out._data = {name: one for name, one in self._data.items() if name not in columns}
        for name, one in columns.items():
            out[name] = one
        return out

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        return self.made().__reduce_ex__(protocol)


def replaced(columns: Columns, specs: Mapping[str, ColumnSpec], new: Mapping[str, Array | Ragged]) -> Columns:
    """The same columns with some others in place of their own."""
    if isinstance(columns, LazyColumns):
        return columns.replacing(new)
    return Columns(columns.rows, specs, dict(columns) | dict(new))


class LazyArrays(Mapping[str, Array]):
    """Arrays by name, each made at its first use."""

    def __init__(self, source: Source) -> None:
        self._source, self._data = dict(source), dict[str, Array]()

    def __getitem__(self, name: str) -> Array:
        if name not in self._data:
            self._data[name] = self._source[name]()
        return self._data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)
