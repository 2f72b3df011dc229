"""Columns of a log, narrow: what a column repeats is said once, what is left is one or two columns of codes.

A replay's columns follow from little: most hold one value but for a few rows, a user's state stands still over many
requests, what is known of a message follows from its campaign and channel, outcomes are few. `encode` finds that out, and
`Decoder` gives each column back, to the bit, when it is first asked for. A column is kept in one of four ways:

- *sparse*: one value, or another column's, in all rows but a few, which are listed;
- *runs*: values that stand still over neighbouring rows, once a run; all such columns share their runs;
- *codes*: few distinct values; columns that follow from each other share one column of codes and a table of tuples;
- *plain*: as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["Decoder", "Encoded", "encode"]

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]

_RARE = 64  # sparse: at most one row in so many differs
_STILL = 12  # runs: at most one row in so many begins a new run
_SAMPLE = 20_000
_MOST_CODES = 65_536
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass
class Encoded:
    """main: arrays of one value a row; side: arrays of any length; said: how to put them together (JSON)."""

    rows: int
    said: dict[str, dict[str, Any]] = field(default_factory=dict)
    main: dict[str, Array] = field(default_factory=dict)
    side: dict[str, Array] = field(default_factory=dict)


def encode(columns: Mapping[str, Array], rows: int) -> Encoded:
    """Flat columns of `rows` values each, of fixed-width dtypes."""
    out = Encoded(rows)
    begins, left = np.zeros(rows, np.bool_), dict[str, Array]()
    for name, values in columns.items():
        bits = _bits(values)
        if not _sparse(out, name, values, bits, {one: columns[one] for one in out.main}):
            left[name] = bits
            if not _few(bits) and not _still(bits):
                _plain(out, name, values)
    rest = [name for name in left if name not in out.said]
    still = _with_shared_runs({name: left[name] for name in rest}, begins)
    if still:
        _runs(out, {name: columns[name] for name in still}, begins)
    for name in _codes(out, {name: columns[name] for name in rest if name not in still}):
        _plain(out, name, columns[name])
    return out


def _plain(out: Encoded, name: str, values: Array) -> None:
    out.said[name] = {"kind": "plain"}
    out.main[name] = values


def _bits(values: Array) -> Array:
    """The same as integers: NaN equals itself, -0.0 is not 0.0."""
    return np.ascontiguousarray(values).view(_BITS[values.dtype.itemsize])


def _sparse(out: Encoded, name: str, values: Array, bits: Array, others: Mapping[str, Array]) -> bool:
    """Keep it so where it is; a column without rows is, too."""
    if not len(values):
        out.said[name] = {"kind": "sparse", "dtype": values.dtype.str}
        return True
    some = bits[:: max(len(bits) // 1024, 1)]
    distinct, counts = np.unique(some, return_counts=True)
    base = distinct[counts.argmax()]
    at = np.flatnonzero(bits != base) if counts.max() * 2 > len(some) else None
    if at is not None and len(at) * _RARE <= len(bits):
        out.said[name] = {"kind": "sparse"}
        out.side[f"{name}/base"] = np.array([base]).view(values.dtype)
        return _note_exceptions(out, name, values, at)
    for other, theirs in others.items():
        if theirs.dtype == values.dtype:
            at = (
                np.flatnonzero(_bits(theirs) != bits)
                if (some == _bits(theirs)[:: max(len(bits) // 1024, 1)]).any()
                else None
            )
            if at is not None and len(at) * 4 <= len(bits):
                out.said[name] = {"kind": "sparse", "of": other}
                return _note_exceptions(out, name, values, at)
    return False


def _note_exceptions(out: Encoded, name: str, values: Array, at: I64) -> bool:
    if len(at):
        out.side[f"{name}/at"], out.side[f"{name}/is"] = at.astype(np.uint32), values[at]
    return True


def _few(bits: Array) -> bool:
    some = np.unique(bits[:: max(len(bits) // _SAMPLE, 1)])
    return len(some) * 8 <= min(len(bits), _SAMPLE)


def _still(bits: Array) -> bool:
    return bool(np.count_nonzero(bits[1:] != bits[:-1]) * _STILL <= len(bits))


def _with_shared_runs(columns: Mapping[str, Array], begins: npt.NDArray[np.bool_]) -> list[str]:
    """Names of columns that stand still, and still do so together: the stillest first. begins bool[n]: set where a run of
    any of them begins."""
    changes = {name: np.count_nonzero(bits[1:] != bits[:-1]) for name, bits in columns.items() if _still(bits)}
    chosen = []
    for name in sorted(changes, key=lambda one: changes[one]):
        together = begins.copy()
        together[0] = True
        together[1:] |= columns[name][1:] != columns[name][:-1]
        if np.count_nonzero(together) * _STILL <= len(begins):
            begins[:] = together
            chosen.append(name)
    return chosen


def _runs(out: Encoded, columns: Mapping[str, Array], begins: npt.NDArray[np.bool_]) -> None:
    at = np.flatnonzero(begins)
    out.side["runs"] = np.diff(np.append(at, out.rows)).astype(np.uint32)
    for name, values in columns.items():
        out.said[name] = {"kind": "runs"}
        out.side[f"{name}/runs"] = values[at]


@dataclass
class _Group:
    names: list[str]
    codes: npt.NDArray[np.int32]
    first: I64  # a row of each code


def _codes(out: Encoded, columns: Mapping[str, Array]) -> list[str]:
    """Names that have too many values after all."""
    groups: list[_Group] = []
    refused: list[str] = []
    found = {name: _coded(_bits(values)) for name, values in columns.items()}
    for name in sorted(found, key=lambda one: len(found[one][1])):
        codes, first = found[name]
        if len(first) > min(_MOST_CODES, max(out.rows // 8, 256)):
            refused.append(name)
            continue
        alone = _Group([name], codes, first)
        for group in groups:
            if _joined(group, alone):
                break
        else:
            groups.append(alone)
    for number, group in enumerate(groups):
        kept = np.uint8 if len(group.first) <= 256 else np.uint16
        out.main[f"codes {number}"] = group.codes.astype(kept)
        for name in group.names:
            out.said[name] = {"kind": "codes", "codes": number}
            out.side[f"{name}/codes"] = columns[name][group.first]
    return refused


def _joined(group: _Group, one: _Group) -> bool:
    """Take `one` into the group where that saves room."""
    width = len(one.first)
    codes, first = _coded(group.codes.astype(np.int64) * width + one.codes)
    most = 2 ** (_width(len(group.first)) + _width(width) - 1)
    if len(first) > max(256, min(most, _MOST_CODES, len(codes) // 8)):
        return False
    group.names += one.names
    group.codes, group.first = codes, first
    return True


def _width(values: int) -> int:
    """Bits that tell so many values apart."""
    return max(values - 1, 1).bit_length()


def _coded(bits: Array) -> tuple[npt.NDArray[np.int32], I64]:
    """(codes in order of first appearance, the first row of each)."""
    encoded = pa.array(bits).dictionary_encode()
    codes: npt.NDArray[np.int32] = encoded.indices.to_numpy(zero_copy_only=False)
    first = np.full(len(encoded.dictionary), len(codes), np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    return codes, first


class Decoder:
    """Columns of one `Encoded`, each made when asked for. main: reads one array of it by name."""

    def __init__(
        self, rows: int, said: Mapping[str, Mapping[str, Any]], main: Callable[[str], Array], side: Mapping[str, Array]
    ) -> None:
        self.rows, self._said, self._main, self._side = rows, said, main, side
        self._kept: dict[str, Array] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._said

    @property
    def names(self) -> Sequence[str]:
        """In the order they were given."""
        return list(self._said)

    def column(self, name: str) -> Array:
        """All its rows, an array of the caller's own."""
        said = self._said[name]
        if said["kind"] == "plain":
            return self._main(name)
        if said["kind"] == "runs":
            return np.repeat(self._side[f"{name}/runs"], self._runs())
        if said["kind"] == "codes":
            table = self._side[f"{name}/codes"]
            return table[self._codes(said["codes"])]
        return self._of_sparse(name, said)

    def coded(self, name: str) -> tuple[Array, Array] | None:
        """(values, codes): the column is values[codes]; values may repeat. None where it is not kept so."""
        said = self._said[name]
        if said["kind"] == "codes":
            return self._side[f"{name}/codes"], self._codes(said["codes"])
        if said["kind"] == "sparse" and f"{name}/base" in self._side and f"{name}/at" not in self._side:
            return self._side[f"{name}/base"], np.zeros(self.rows, np.uint8)
        return None

    def _of_sparse(self, name: str, said: Mapping[str, Any]) -> Array:
        if "dtype" in said:
            return np.empty(0, np.dtype(said["dtype"]))
        if "of" in said:
            out = self.column(said["of"]).copy()
        else:
            base = self._side[f"{name}/base"]
            out = np.full(self.rows, base[0], base.dtype)
        if f"{name}/at" in self._side:
            out[self._side[f"{name}/at"]] = self._side[f"{name}/is"]
        return out

    def _runs(self) -> I64:
        if "runs" not in self._kept:
            self._kept["runs"] = self._side["runs"].astype(np.int64)
        return self._kept["runs"]

    def _codes(self, number: int) -> Array:
        name = f"codes {number}"
        if name not in self._kept:
            self._kept[name] = self._main(name)
        return self._kept[name]
