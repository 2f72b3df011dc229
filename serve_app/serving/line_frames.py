"""What travels over a line (see `local_rpc`), as bytes: frames, made without copying large arrays and read without it.

Words: a *frame* is a head (u32 bytes of its pickle, u32 number of arrays, u32 bytes of each), a pickle (protocol 5), and the
arrays that were too large to lie in it (`LARGE` bytes or more; PEP 574, "out-of-band"). Every part begins at a multiple of
sixteen, where no kernel minds it. All numbers are little endian.

A micro-batch's candidates are hundreds of kilobytes. Inside a pickle their bytes are copied twice on each side, into memory
that is new each time; apart, the system copies them into the socket and out of it, and nobody else.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from serve_app.wire import LARGE

__all__ = ["Frames", "Parts", "framed", "send", "send_all", "unsent"]

_HEAD = struct.Struct("<II")
_PROTOCOL = 5
_ALIGNED = 16
_PADS = tuple(bytes(n) for n in range(_ALIGNED))
_ROOM = 1 << 16
_MOST_ROOM = 1 << 20
_PARTS = 512  # of a message at once; Linux takes 1024

Parts = list[bytes | memoryview]


def _pad(size: int) -> int:
    return -size % _ALIGNED


def framed(said: Any) -> Parts:
    """One frame, in parts to be sent one after the other. Those of large arrays show what the arrays hold when they are
    sent: nobody may write to them before."""
    arrays: list[memoryview] = []

    def lies_inside(array: pickle.PickleBuffer) -> bool:
        raw = array.raw()
        if raw.nbytes < LARGE:
            return True
        arrays.append(raw)
        return False

    content = pickle.dumps(said, _PROTOCOL, buffer_callback=lies_inside)
    head = struct.pack(f"<{2 + len(arrays)}I", len(content), len(arrays), *(one.nbytes for one in arrays))
    parts: Parts = [b"".join((head, _PADS[_pad(len(head))], content, _PADS[_pad(len(content))]))]
    for one in arrays:
        parts.append(one)
        if over := _pad(one.nbytes):
            parts.append(_PADS[over])
    return parts


def send(line: socket.socket, parts: Parts) -> Parts:
    """Send what the line takes now; what is left of the parts."""
    return unsent(parts, line.sendmsg(parts[:_PARTS]))


def send_all(line: socket.socket, parts: Parts) -> None:
    """Send the parts over a line that waits."""
    while parts:
        parts = send(line, parts)


def unsent(parts: Parts, sent: int) -> Parts:
    """What is left of the parts once so many bytes of them are sent."""
    for at, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:], *parts[at + 1 :]]
        sent -= len(part)
    return []


class Frames:
    """Cuts what is received into frames: bytes go to `room`, `received` is told how many they were."""

    def __init__(self) -> None:
        self._room_for, self._end = _ROOM, 0
        self._held = _memory(_ROOM)

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._held[self._end :]

    def received(self, count: int) -> list[Any]:
        """What the frames say that are whole now. Large arrays of it are views of memory that nobody writes to later."""
        self._end += count
        said, at, wanted, given = [], 0, 0, False
        while self._end - at >= _HEAD.size:
            size, arrays = _HEAD.unpack_from(self._held, at)
            begin = at + _HEAD.size + 4 * arrays
            if begin > self._end:
                wanted = begin + _pad(begin) - at
                break
            sizes = struct.unpack_from(f"<{arrays}I", self._held, at + _HEAD.size)
            places = list(_places(begin, (size, *sizes)))
            if places[-1] > self._end:
                wanted = places[-1] - at
                break
            apart = [self._held[low : low + length] for low, length in zip(places[1:], sizes, strict=False)]
            said.append(pickle.loads(self._held[places[0] : places[0] + size], buffers=apart))  # noqa: S301 - our own user's
            self._room_for = min(max(places[-1] - at, _ROOM), _MOST_ROOM)
            at, given = places[-1], given or bool(arrays)
        self._keep(at, wanted, given=given)
        return said

    def _keep(self, at: int, wanted: int, *, given: bool) -> None:
        """Bytes from `at` on begin a frame of `wanted` bytes (0: not known). given: what is held belongs to others now."""
        rest = self._end - at
        if given or wanted > len(self._held) or len(self._held) > max(wanted, _MOST_ROOM):
            held = _memory(max(wanted, self._room_for, rest + _HEAD.size))
            held[:rest] = self._held[at : self._end]
            self._held = held
        elif at and rest:
            self._held[:rest] = bytes(self._held[at : self._end])
        self._end = rest


def _places(begin: int, sizes: Sequence[int]) -> accumulate[int]:
    """Where parts of these sizes begin, the first after `begin`, and where the last ends."""
    return accumulate((size + _pad(size) for size in sizes), initial=begin + _pad(begin))


def _memory(size: int) -> memoryview:
    """Bytes that nobody has set: `bytearray` would write zeros first."""
    return np.empty(size, np.uint8).data
