"""Packed columns come back to the bit, whatever they hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.batch import Columns
from serve_app.columns import REQUEST_COLUMNS
from serve_app.errors import DamagedArtifact
from simulators.replay.pack_columns import Decoder, encode
from simulators.replay.pack_files import read_encoded, write_encoded
from simulators.replay.pack_lazy import LazyArrays, LazyColumns, replaced

DTYPES = ("u8", "i8", "i4", "u2", "i2", "i1", "u1", "?", "f8", "f4")


def _column(rng: np.random.Generator, rows: int, dtype: str, shape: str) -> npt.NDArray[Any]:
    values = rng.integers(0, 256, 8 * max(rows, 1), dtype=np.uint8).view(np.dtype(dtype) if dtype != "?" else np.uint8)[
        :rows
    ]
    values = values % 2 == 0 if dtype == "?" else values
    if shape == "one value":
        values = np.repeat(values[:1], rows)
    elif shape == "few values":
        values = values[rng.integers(0, min(max(rows, 1), 5), rows)] if rows else values
    elif shape == "runs":
        values = np.sort(values)[np.sort(rng.integers(0, max(rows, 1), rows)) // 20] if rows else values
    elif shape == "rarely another":
        values = np.where(np.arange(rows) % 97 == 5, values, values[:1]) if rows else values
    return np.ascontiguousarray(values)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.sampled_from([0, 1, 2, 70, 3_000]),
    kinds=st.lists(
        st.tuples(st.sampled_from(DTYPES), st.sampled_from(["any", "one value", "few values", "runs", "rarely another"])),
        min_size=1,
        max_size=8,
    ),
)
def test_what_was_packed_comes_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, kinds: list[tuple[str, str]]
) -> None:
    rng = np.random.default_rng(seed)
    columns = {f"c{place}": _column(rng, rows, *kind) for place, kind in enumerate(kinds)}
    columns["again"] = columns["c0"].copy()
    folder = tmp_path_factory.mktemp("pack")
    decoder = read_encoded(folder, "t", write_encoded(folder, "t", encode(columns, rows)))
    for name, values in columns.items():
        back = decoder.column(name)
        assert back.dtype == values.dtype
        assert back.tobytes() == values.tobytes()
        assert back.flags.writeable, "kernels take what they are given to be theirs"


def test_columns_that_follow_from_each_other_take_the_room_of_one() -> None:
    rng = np.random.default_rng(1)
    campaign = rng.integers(0, 24, 10_000)
    names = rng.integers(0, 2**63, 24, dtype=np.uint64)
    encoded = encode({"campaign": names[campaign], "channel": (campaign % 3).astype(np.int8)}, 10_000)
    assert {name: one.dtype for name, one in encoded.main.items()} == {"codes 0": np.dtype(np.uint8)}


def test_a_users_state_is_kept_once_a_run() -> None:
    zone = np.repeat(np.arange(100, dtype=np.int16), 80)
    encoded = encode({"zone": zone, "consent": zone.astype(np.int64) * 7}, len(zone))
    assert not encoded.main
    assert len(encoded.side["runs"]) == 100


def test_codes_say_what_the_column_says() -> None:
    rng = np.random.default_rng(2)
    values = rng.integers(0, 2**63, 9, dtype=np.uint64)[rng.integers(0, 9, 5_000)]
    encoded = encode({"campaign": values, "channel": rng.integers(0, 3, 5_000).astype(np.int8)}, 5_000)
    decoder = Decoder(5_000, encoded.said, encoded.main.__getitem__, encoded.side)
    coded = decoder.coded("campaign")
    assert coded is not None
    assert np.array_equal(coded[0][coded[1]], values)


@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_file_that_is_not_what_was_written_is_refused(tmp_path: Path, harm: str) -> None:
    said = write_encoded(tmp_path, "t", encode({"x": np.random.default_rng(3).random(1_000)}, 1_000))
    path = tmp_path / "t.parquet"
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[:100] if harm == "cut" else content)
    if harm == "remove":
        path.unlink()
    with pytest.raises(DamagedArtifact):
        read_encoded(tmp_path, "t", said)


def test_a_lazy_column_is_made_once_and_only_when_asked_for() -> None:
    made: list[str] = []

    def one(name: str) -> npt.NDArray[Any]:
        made.append(name)
        return np.arange(3)

    columns = LazyColumns(3, REQUEST_COLUMNS, {name: lambda name=name: one(name) for name in ("decided_at", "env_seq")})
    assert "env_seq" in columns
    assert len(columns) == 2
    assert columns["decided_at"] is columns["decided_at"]
    other = replaced(columns, REQUEST_COLUMNS, {"env_seq": np.zeros(3, np.int64)})
    assert other["env_seq"].sum() == 0
    assert other["decided_at"].tolist() == [0, 1, 2]
    assert made == ["decided_at"]
    taken = columns.take(np.array([2]))
    assert type(taken) is Columns
    assert {name: taken[name].tolist() for name in taken} == {"decided_at": [2], "env_seq": [2]}
    assert LazyArrays({"x": lambda: np.ones(2)})["x"].sum() == 2


@pytest.mark.parametrize("protocol", [4, 5])
def test_lazy_columns_travel_as_they_would_be_made(protocol: int) -> None:
    made = {"decided_at": np.arange(900, dtype=np.int64), "slots": np.full(900, 3, np.int32)}
    columns = LazyColumns(900, REQUEST_COLUMNS, {name: lambda name=name: made[name] for name in made})
    came = pickle.loads(pickle.dumps(columns, protocol))
    assert came.rows == 900
    assert {name: came[name].tolist() for name in came} == {name: values.tolist() for name, values in made.items()}
