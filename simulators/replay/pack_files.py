"""Encoded columns as Parquet files: encodings chosen by what a sample shrinks to, checksums, columns read one by one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from serve_app.errors import DamagedArtifact
from simulators.replay.pack_columns import Decoder, Encoded

__all__ = ["read_encoded", "write_encoded"]

Array = npt.NDArray[Any]

_SAMPLE = 65_536
_GAIN = 0.93  # what decoding costs more must save at least this share


def write_encoded(folder: Path, name: str, encoded: Encoded) -> dict[str, Any]:
    """Write ``name.parquet`` (a value a row) and ``name.side.parquet`` (one row of lists) into `folder`, where there is
    something to write. Returns what `read_encoded` needs, as JSON has it."""
    said: dict[str, Any] = {"rows": encoded.rows, "columns": encoded.said, "files": {}}
    if encoded.main:
        fields = [pa.field(one, pa.from_numpy_dtype(values.dtype), nullable=False) for one, values in encoded.main.items()]
        table = pa.table([pa.array(values) for values in encoded.main.values()], schema=pa.schema(fields))
        said["files"]["main"] = _written(folder / f"{name}.parquet", table, _chosen(encoded.main))
    if encoded.side:
        lists = [pa.ListArray.from_arrays([0, len(values)], pa.array(values)) for values in encoded.side.values()]
        table = pa.table(lists, names=list(encoded.side))
        said["files"]["side"] = _written(
            folder / f"{name}.side.parquet", table, {"compression": "lz4", "use_dictionary": False}
        )
    return said


def read_encoded(folder: Path, name: str, said: Mapping[str, Any]) -> Decoder:
    """Raises DamagedArtifact where a file is not what was written."""
    files = {
        kind: _opened(folder / f"{name}{end}", said["files"][kind]) for kind, end in _ENDS.items() if kind in said["files"]
    }
    side: dict[str, Array] = {}
    if "side" in files:
        row = files["side"].read(use_threads=False)
        side = {one: row[one].chunk(0).flatten().to_numpy(zero_copy_only=False) for one in row.column_names}

    def main(column: str) -> Array:
        return _writable(files["main"].read(columns=[column], use_threads=False)[column].combine_chunks())

    return Decoder(said["rows"], said["columns"], main, side)


def _writable(column: pa.Array) -> Array:
    """As an array that compiled kernels take for what it is elsewhere; the memory is the reader's own, where it can be."""
    if pa.types.is_boolean(column.type):
        return np.require(column.to_numpy(zero_copy_only=False), requirements="W")
    values = np.frombuffer(
        column.buffers()[1], column.type.to_pandas_dtype(), len(column), column.offset * column.type.byte_width
    )
    return values if values.flags.writeable else values.copy()


_ENDS = {"main": ".parquet", "side": ".side.parquet"}


def _written(path: Path, table: pa.Table, how: Mapping[str, Any]) -> dict[str, Any]:
    content = _parquet(table, how)
    path.write_bytes(content)
    return {"bytes": len(content), "xxh3": f"{xxhash.xxh3_64_intdigest(content):016x}"}


def _parquet(table: pa.Table, how: Mapping[str, Any]) -> pa.Buffer:
    out = pa.BufferOutputStream()
    pq.write_table(table, out, row_group_size=max(len(table), 1), write_statistics=False, **how)
    return out.getvalue()


def _opened(path: Path, said: Mapping[str, Any]) -> pq.ParquetFile:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedArtifact(f"a file of a pack cannot be read: {error}", field=str(path), hint="delete the pack") from None
    if len(content) != said["bytes"] or f"{xxhash.xxh3_64_intdigest(content):016x}" != said["xxh3"]:
        raise DamagedArtifact("a file of a pack is not what was written", field=str(path), hint="delete the pack")
    return pq.ParquetFile(pa.py_buffer(content))


def _chosen(columns: Mapping[str, Array]) -> dict[str, Any]:
    """How to write each column: codes by dictionary, the rest as a sample of it becomes smallest."""
    coded = [name for name, values in columns.items() if name.startswith("codes ")]
    compression, encoding = dict.fromkeys(coded, "none"), {}
    for name, values in columns.items():
        if name not in compression:
            compression[name], chosen = _smallest(values)
            if chosen != "PLAIN":
                encoding[name] = chosen
    return {"use_dictionary": coded, "compression": compression, "column_encoding": encoding or None}


def _smallest(values: Array) -> tuple[str, str]:
    """(compression, encoding) that a stretch from the middle shrinks to with, quick ones first."""
    middle = max(len(values) // 2 - _SAMPLE // 2, 0)
    table = pa.table({"x": pa.array(values[middle : middle + _SAMPLE])})
    ways = [("none", "PLAIN"), ("lz4", "PLAIN")]
    if values.dtype.kind in "iu":
        ways += [("none", "DELTA_BINARY_PACKED"), ("lz4", "DELTA_BINARY_PACKED")]
    if values.dtype.kind in "iuf" and values.dtype.itemsize > 2:
        ways.append(("lz4", "BYTE_STREAM_SPLIT"))
    best, least = ways[0], float("inf")
    for compression, encoding in ways:
        how: dict[str, Any] = {"use_dictionary": False, "compression": compression}
        if encoding != "PLAIN":
            how["column_encoding"] = {"x": encoding}
        size = len(_parquet(table, how))
        if size < least * _GAIN:
            best, least = (compression, encoding), float(size)
    return best
