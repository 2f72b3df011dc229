"""Identifiers: text outside, unsigned 64-bit inside, one stable hash for all of them.

The canonical form of an id is its NFC text, stripped of nothing; hash = XXH3-64 of its UTF-8 bytes. At 50 M users the
chance that any two share a hash is below 1e-4.
"""

from __future__ import annotations

import os
import struct
import unicodedata
from collections.abc import Iterable
from itertools import repeat

import numpy as np
import numpy.typing as npt
import xxhash

from serve_app.errors import InvalidInput

__all__ = [
    "BUCKETS",
    "bucket_of",
    "decision_id_text",
    "decision_id_texts",
    "fresh_id",
    "hash_id",
    "hash_ids",
    "hex_texts",
    "parse_decision_id",
]

BUCKETS = 4096
_BUCKET_SHIFT = np.uint64(52)
_FEW = 16  # texts that are sooner made one by one


def hash_id(text: str) -> int:
    """Stable u64 of one id."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


_FRESH: list[int] = []
_AT_ONCE = 512
os.register_at_fork(after_in_child=_FRESH.clear)


def fresh_id() -> int:
    """A random u64 but 0, from the system's source: asked for many at once, as to ask takes as long as to read a body."""
    try:
        return _FRESH.pop()  # of two threads each gets its own
    except IndexError:
        one, *others = (value for (value,) in struct.iter_unpack("<Q", os.urandom(8 * _AT_ONCE)) if value)
        _FRESH.extend(others)
        return int(one)


def hash_ids(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Stable u64 of each id, in order."""
    return np.fromiter((hash_id(text) for text in texts), np.uint64)


def bucket_of(users: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint16]:
    """The fixed bucket (0..4095) of each user hash: its top twelve bits."""
    return (users >> _BUCKET_SHIFT).astype(np.uint16)


def decision_id_text(user: int, request_id: int, slot: int) -> str:
    """The public id of a decision. It embeds the user's hash, hence the bucket, so that a look-up needs no index."""
    return f"d{user:016x}{request_id:016x}{slot:04x}"


_HEX = np.array([f"{byte:02x}" for byte in range(256)], "S2")


def _hex(values: npt.NDArray[np.generic], big: str) -> npt.NDArray[np.bytes_]:
    """[n, 2 * itemsize] single characters."""
    width = np.dtype(big).itemsize
    raw = np.ascontiguousarray(values.astype(big)).view(np.uint8).reshape(len(values), width)
    return _HEX[raw].view("S1").reshape(len(values), 2 * width)


def hex_texts(values: npt.NDArray[np.uint64]) -> list[str]:
    """16 hex digits of each u64."""
    if len(values) <= _FEW:
        return [f"{value:016x}" for value in values.tolist()]
    texts: list[str] = _hex(values, ">u8").view("S16")[:, 0].astype("U16").tolist()
    return texts


def decision_id_texts(
    users: npt.NDArray[np.uint64], request_ids: npt.NDArray[np.uint64], slots: npt.NDArray[np.integer] | int = 0
) -> list[str]:
    """`decision_id_text` of each row; slots below 65,536."""
    if len(users) <= _FEW:
        places = slots.tolist() if isinstance(slots, np.ndarray) else repeat(slots)
        return list(map(decision_id_text, users.tolist(), request_ids.tolist(), places))
    out = np.empty((len(users), 37), "S1")
    out[:, 0] = b"d"
    out[:, 1:17], out[:, 17:33] = _hex(users, ">u8"), _hex(request_ids, ">u8")
    out[:, 33:] = _hex(np.broadcast_to(np.asarray(slots), (len(users),)), ">u2")
    texts: list[str] = out.view("S37")[:, 0].astype("U37").tolist()
    return texts


def parse_decision_id(text: str) -> tuple[int, int, int]:
    """(user, request_id, slot) of a public decision id; InvalidInput when it is not one."""
    try:
        if len(text) != 37 or text[0] != "d" or text != text.lower():
            raise ValueError(text)
        return int(text[1:17], 16), int(text[17:33], 16), int(text[33:37], 16)
    except ValueError:
        raise InvalidInput(
            f"{text[:60]!r} is not a decision id",
            field="decision_id",
            hint="send the id as the decision's answer gave it",
        ) from None
