"""The ragged batch: requests, and their candidates as flat columns with offsets.

A batch of one is an HTTP request, a batch of thirty a micro-batch, a batch of a million a replay partition. Every stage
takes a batch and returns one. `candidates` row `c` belongs to request `r` where ``offsets[r] <= c < offsets[r + 1]``.
Which columns exist, their dtypes and meanings: `serve_app.columns`.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS, ColumnSpec
from serve_app.errors import InvalidInput
from serve_app.wire import pack, unpack

__all__ = ["Batch", "Columns", "Ragged", "lengths_to_offsets"]

I64 = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
_BUFFERS_APART = 5  # the protocol of pickles from which on they may lie beside it (PEP 574)


def lengths_to_offsets(lengths: npt.ArrayLike) -> I64:
    """i64[n] lengths -> i64[n + 1] offsets starting at 0."""
    lengths = np.asarray(lengths, np.int64)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _gather_index(offsets: I64, rows: I64) -> tuple[I64, I64]:
    """Flat positions of the segments `rows`, one after the other, and their new offsets."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    out = lengths_to_offsets(lengths)
    flat = np.arange(out[-1], dtype=np.int64) + np.repeat(starts - out[:-1], lengths)
    return flat, out


@dataclass(frozen=True, slots=True)
class Ragged:
    """One list per row: `values` flat (first axis), `offsets` i64[n + 1]."""

    values: Array
    offsets: I64

    def __post_init__(self) -> None:
        if len(self.offsets) == 0 or self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise InvalidInput("ragged offsets must start at 0 and end at the number of values", field="offsets")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Array:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[Array]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> I64:
        """i64[n]"""
        return np.diff(self.offsets)

    @classmethod
    def of(cls, lists: Sequence[npt.ArrayLike], dtype: npt.DTypeLike) -> Ragged:
        """From a Python sequence of lists."""
        arrays = [np.asarray(one, dtype) for one in lists]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype)
        return cls(values.astype(dtype, copy=False), lengths_to_offsets([len(a) for a in arrays]))

    @classmethod
    def empty(cls, rows: int, dtype: npt.DTypeLike) -> Ragged:
        """`rows` empty lists."""
        return cls(np.empty(0, dtype), np.zeros(rows + 1, np.int64))

    def take(self, rows: npt.ArrayLike) -> Ragged:
        """The lists of `rows`, in that order (rows may repeat)."""
        rows = np.asarray(rows, np.int64)
        if len(self) == 1 and not rows.any():  # one list again and again
            length = len(self.values)
            return Ragged(self.values[np.arange(length * len(rows)) % max(length, 1)], np.arange(len(rows) + 1) * length)
        flat, offsets = _gather_index(self.offsets, rows)
        return Ragged(self.values[flat], offsets)

    def slice(self, begin: int, end: int) -> Ragged:
        """The lists of rows begin..end, as views."""
        first, last = int(self.offsets[begin]), int(self.offsets[end])
        return Ragged(self.values[first:last], self.offsets[begin : end + 1] - first)


class Columns(Mapping[str, Any]):
    """Named columns of one length. Setting one checks name, dtype and length against its `ColumnSpec`."""

    __slots__ = ("_data", "_rows", "_specs")

    def __init__(self, rows: int, specs: Mapping[str, ColumnSpec], data: Mapping[str, Array | Ragged] | None = None) -> None:
        self._rows = rows
        self._specs = specs
        self._data: dict[str, Array | Ragged] = {}
        if data:
            for name, values in data.items():
                self[name] = values

    def __setitem__(self, name: str, values: Array | Ragged) -> None:
        spec = self._specs.get(name)
        if spec is None:
            raise InvalidInput("no such column", field=name, hint="declare it in serve_app/columns.py")
        if type(values) is np.ndarray and values.dtype is spec.dtype and len(values) == self._rows and not spec.ragged:
            self._data[name] = values  # as nearly all are
            return
        if len(values) != self._rows:
            raise InvalidInput(f"column has {len(values)} rows, the batch {self._rows}", field=name)
        flat = values.values if isinstance(values, Ragged) else values
        if spec.ragged is (flat is values):
            raise InvalidInput(f"column must be {'ragged' if spec.ragged else 'flat'}", field=name)
        if flat.dtype is not spec.dtype and flat.dtype != spec.dtype:
            raise InvalidInput(f"column is {flat.dtype}, declared {spec.dtype}", field=name)
        self._data[name] = values

    def __getitem__(self, name: str) -> Any:
        try:
            return self._data[name]
        except KeyError:
            raise InvalidInput("the batch has no such column", field=name, hint="an earlier stage must set it") from None

    def __contains__(self, name: object) -> bool:
        return name in self._data

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        """Number of columns (a mapping's length); rows are `rows`."""
        return len(self._data)

    def items(self) -> ItemsView[str, Any]:
        """Names with their columns, without a look-up each."""
        return self._data.items()

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._rows

    def as_dict(self) -> dict[str, Any]:
        """The same arrays by name."""
        return dict(self._data)

    def copy(self) -> Columns:
        """The same arrays, for columns to be set beside them; they were checked when first set."""
        out = Columns(self._rows, self._specs)
        out._data = self._data.copy()
        return out

    def only(self, names: Iterable[str]) -> Columns:
        """Some of the columns."""
        out = Columns(self._rows, self._specs)
        out._data = {name: self._data[name] for name in names}
        return out

    def beside(self, others: Columns) -> Columns:
        """The same arrays, and those of `others`, of as many rows, in place of any of the same name."""
        if others.rows != self._rows:
            raise InvalidInput(f"columns have {others.rows} rows, the batch {self._rows}", field="columns")
        out = Columns(self._rows, self._specs)
        out._data = {**self._data, **others._data}
        return out

    def take(self, rows: Array) -> Columns:
        """The given rows, in that order."""
        out = Columns(len(rows), self._specs)
        for name, values in self._data.items():
            out._data[name] = values.take(rows) if isinstance(values, Ragged) else values[rows]
        return out

    def slice(self, begin: int, end: int) -> Columns:
        """Rows begin..end, as views."""
        out = Columns(end - begin, self._specs)
        for name, values in self._data.items():
            out._data[name] = values.slice(begin, end) if isinstance(values, Ragged) else values[begin:end]
        return out

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        parts = {n: (v.values, v.offsets) if isinstance(v, Ragged) else (v, None) for n, v in self._data.items()}
        packed = pack(parts, apart=int(protocol) >= _BUFFERS_APART)
        return (_columns_from_wire, (self._specs is REQUEST_COLUMNS, self._rows, *packed))


def _columns_from_wire(of_requests: bool, rows: int, *packed: Any) -> Columns:
    specs = REQUEST_COLUMNS if of_requests else CANDIDATE_COLUMNS
    out = Columns(rows, specs)
    for name, (values, offsets) in unpack(packed, rows, specs).items():  # checked when first set
        out._data[name] = values if offsets is None else Ragged(values, offsets)
    return out


@dataclass(slots=True)
class Batch:
    """Requests (n rows), candidates (m rows), `offsets` i64[n + 1]. `meta` holds small facts of the whole batch
    (release version, head names, feature plan) and travels with it."""

    requests: Columns
    candidates: Columns
    offsets: I64
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.offsets) != self.requests.rows + 1 or self.offsets[0] != 0 or self.offsets[-1] != self.candidates.rows:
            raise InvalidInput("offsets do not fit requests and candidates", field="offsets")

    @classmethod
    def of_requests(cls, **columns: Array | Ragged) -> Batch:
        """A batch of requests that have no candidates yet."""
        rows = len(next(iter(columns.values()))) if columns else 0
        return cls(Columns(rows, REQUEST_COLUMNS, columns), Columns(0, CANDIDATE_COLUMNS), np.zeros(rows + 1, np.int64))

    def with_candidates(self, offsets: I64, **columns: Array | Ragged) -> Batch:
        """The same requests with a new set of candidates."""
        rows = int(offsets[-1])
        return Batch(self.requests, Columns(rows, CANDIDATE_COLUMNS, columns), offsets, self.meta)

    def __len__(self) -> int:
        return self.requests.rows

    @property
    def owner(self) -> I64:
        """i64[m]: the request row of each candidate."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    def take(self, rows: npt.ArrayLike) -> Batch:
        """The given requests with their candidates, in that order."""
        rows = np.asarray(rows, np.int64)
        flat, offsets = _gather_index(self.offsets, rows)
        return Batch(self.requests.take(rows), self.candidates.take(flat), offsets, self.meta)

    def slice(self, begin: int, end: int) -> Batch:
        """Requests begin..end with their candidates, as views."""
        first, last = int(self.offsets[begin]), int(self.offsets[end])
        offsets = self.offsets[begin : end + 1] - first
        return Batch(self.requests.slice(begin, end), self.candidates.slice(first, last), offsets, self.meta)

    def select(self, keep: npt.NDArray[np.bool_]) -> Batch:
        """All requests, with only the candidates where `keep` (bool[m]); where that is all of them, nothing is copied."""
        if keep.all():
            return Batch(self.requests, self.candidates, self.offsets, self.meta)
        counts = np.zeros(len(keep) + 1, np.int64)
        np.cumsum(keep, out=counts[1:])
        return Batch(self.requests, self.candidates.take(np.flatnonzero(keep)), counts[self.offsets], self.meta)

    def reorder(self, order: I64) -> Batch:
        """Candidates permuted by `order` (i64[m], a permutation within each request)."""
        return Batch(self.requests, self.candidates.take(order), self.offsets, self.meta)

    @classmethod
    def concat(cls, batches: Sequence[Batch]) -> Batch:
        """Requests of all batches one after the other; column sets must agree."""
        if not batches:
            raise InvalidInput("cannot join zero batches", field="batches")
        if len(batches) == 1:
            return batches[0]
        offsets = lengths_to_offsets(np.concatenate([np.diff(b.offsets) for b in batches]))
        requests = _concat_columns([b.requests for b in batches])
        return cls(requests, _concat_columns([b.candidates for b in batches]), offsets, dict(batches[0].meta))


def _concat_columns(parts: Sequence[Columns]) -> Columns:
    names = set(parts[0])
    for part in parts[1:]:
        if set(part) != names:
            raise InvalidInput("batches have different columns", field=", ".join(sorted(names ^ set(part))))
    out = Columns(sum(part.rows for part in parts), parts[0]._specs)
    for name in parts[0]:
        values = [part[name] for part in parts]
        if isinstance(values[0], Ragged):
            joined = np.concatenate([v.values for v in values])
            out._data[name] = Ragged(joined, lengths_to_offsets(np.concatenate([v.lengths for v in values])))
        else:
            out._data[name] = np.concatenate(values)
    return out
