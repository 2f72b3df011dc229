"""Frames come out as they went in, however their bytes are cut, and what was read stays as it was."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.batch import Batch, Columns
from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS
from serve_app.serving.line_frames import Frames, framed, send_all, unsent
from serve_app.wire import LARGE

SIZES = st.one_of(st.integers(0, 40), st.integers(LARGE - 3, LARGE + 3), st.integers(LARGE, 200_000))
SAID = st.recursive(
    st.one_of(st.none(), st.integers(), st.binary(max_size=300), SIZES.map(lambda n: np.arange(n, dtype=np.uint8))),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


def received(frames: Frames, content: bytes, cuts: list[int]) -> list[Any]:
    """What comes of the bytes, given in pieces no larger than the room and than the cuts, over and over."""
    said, at, turn = [], 0, 0
    while at < len(content):
        room = frames.room()
        count = min(len(room), len(content) - at, cuts[turn % len(cuts)])
        assert count
        room[:count] = content[at : at + count]
        said += frames.received(count)
        at, turn = at + count, turn + 1
    return said


def same(left: Any, right: Any) -> bool:
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.dtype == right.dtype and np.array_equal(left, right)
    return type(left) is type(right) and bool(left == right)


@given(st.lists(SAID, min_size=1, max_size=5), st.lists(st.integers(1, 1 << 18), min_size=1, max_size=5))
def test_what_is_framed_is_read_however_it_is_cut(said: list[Any], cuts: list[int]) -> None:
    content = b"".join(part for one in said for part in framed(one))
    frames = Frames()
    first = received(frames, content, cuts)
    assert same(first, said)
    # What comes later does not write over it.
    assert same(received(frames, content[::1], cuts[::-1]), said)
    assert same(first, said)


@given(st.lists(SAID, max_size=3), st.data())
def test_parts_left_unsent_are_the_bytes_after_those_sent(said: list[Any], data: st.DataObject) -> None:
    parts = framed(said)
    whole = b"".join(parts)
    sent = data.draw(st.integers(0, len(whole)))
    left = unsent(parts, sent)
    assert b"".join(left) == whole[sent:]
    assert all(len(part) for part in left)


@pytest.mark.parametrize("before", [0, 1, 3])
def test_arrays_are_writable_aligned_and_not_copied_into_the_pickle(before: int) -> None:
    values = np.arange(50_000, dtype=np.float64)
    parts = framed([b"x" * before, values])
    assert any(isinstance(part, memoryview) and part.nbytes == values.nbytes for part in parts)
    assert sum(len(part) for part in parts) < values.nbytes + 1000
    # Behind another frame too, whatever its length.
    _, said = received(Frames(), b"".join([*framed(b"y" * before), *parts]), [1 << 18])
    assert np.array_equal(said[1], values)
    assert said[1].flags.writeable
    assert said[1].flags.aligned
    said[1][0] = 5.0
    assert values[0] == 0.0


def batch_of(requests: int, each: int) -> Batch:
    rows = requests * each
    candidates = {
        "item": np.arange(rows, dtype=np.int32),
        "category": np.arange(rows, dtype=np.uint64),
        "source_scores": np.arange(rows * 41, dtype=np.float32).reshape(rows, 41),
    }
    asked = {"request_id": np.arange(requests, dtype=np.uint64), "slots": np.full(requests, 10, np.int32)}
    return Batch(
        Columns(requests, REQUEST_COLUMNS, asked),
        Columns(rows, CANDIDATE_COLUMNS, candidates),
        np.arange(requests + 1, dtype=np.int64) * each,
    )


@pytest.mark.parametrize(("requests", "each"), [(1, 0), (1, 3), (1, 200), (8, 300)])
def test_a_batch_of_any_size_arrives_with_its_columns(requests: int, each: int) -> None:
    batch = batch_of(requests, each)
    [arrived] = received(Frames(), b"".join(framed(batch)), [7_000])
    assert len(arrived) == requests
    assert np.array_equal(arrived.offsets, batch.offsets)
    for name, values in batch.candidates.items():
        assert arrived.candidates[name].dtype is values.dtype
        assert np.array_equal(arrived.candidates[name], values)
        assert arrived.candidates[name].flags.aligned


_IN_A_CYCLE = """
import gc
from serve_app.serving.line_frames import Frames, framed, unsent
from tests.unit.test_serving_line_frames import batch_of, received
batch = batch_of(8, 300)
[arrived] = received(Frames(), b"".join(framed(batch)), [7_000])
for one in (batch, arrived):
    for made in (
        framed,
        lambda batch: unsent(framed(batch), 9_000),
        lambda batch: [batch.candidates.__reduce_ex__(5)],
        lambda batch: [batch],
    ):
        held = made(one)
        held.append(held)
        del held
        gc.collect()
"""


def test_what_is_sent_may_end_as_garbage() -> None:
    """An error's traceback holds the frame that sent the call, and that frame the answer with the error. The process that
    collects such a cycle must live: hence a process of its own."""
    done = subprocess.run([sys.executable, "-c", _IN_A_CYCLE], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_frame_larger_than_the_line_takes_at_once_is_sent_whole() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    batch = batch_of(64, 300)
    sender = threading.Thread(target=send_all, args=(one, framed(batch)))
    with one, other:
        sender.start()
        frames, said = Frames(), list[Any]()
        while not said:
            said = frames.received(other.recv_into(frames.room()))
        sender.join()
    assert np.array_equal(said[0].candidates["source_scores"], batch.candidates["source_scores"])
