"""Decision rows as asked, as columns: what one call, and every form of a batch, becomes before anything is decided."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import xxhash

from serve_app.batch import lengths_to_offsets
from serve_app.clock import micros_of, text_of
from serve_app.ids import hash_ids
from serve_app.ingress.schemas_notify import DecideRow
from serve_app.vocabulary import Channel

__all__ = ["CHANNEL_CODES", "AskedRows", "Texts", "hash_texts"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I8 = npt.NDArray[np.int8]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

CHANNEL_CODES: Mapping[str | None, int] = {None: -1, **{one.name: int(one) for one in Channel}}
_DIGEST_BYTES = 16


def hash_texts(texts: Sequence[str]) -> U64:
    """`serve_app.ids.hash_ids`, quicker where all is ASCII (whose NFC form is itself)."""
    if "".join(texts).isascii():
        digest: Callable[[bytes], int] = xxhash.xxh3_64_intdigest
        return np.fromiter(map(digest, map(str.encode, texts)), np.uint64, len(texts))
    return hash_ids(texts)


@dataclass(frozen=True, slots=True)
class Texts:
    """A text column by its distinct values: names[codes[i]], code -1: none."""

    codes: I32
    names: Sequence[str]

    @classmethod
    def of(cls, values: Sequence[str | None]) -> Texts:
        """From text, None for none."""
        places: dict[str, int] = {}
        codes = [-1 if one is None else places.setdefault(one, len(places)) for one in values]
        return cls(np.array(codes, np.int32), list(places))

    @classmethod
    def of_arrow(cls, values: pa.Array) -> Texts:
        """From an Arrow array of strings."""
        encoded = values.dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return cls(codes, encoded.dictionary.to_pylist())

    def part(self, start: int, stop: int) -> Texts:
        """Rows start to stop; the names stay whole."""
        return Texts(self.codes[start:stop], self.names)

    def __getitem__(self, row: int) -> str | None:
        code = int(self.codes[row])
        return self.names[code] if code >= 0 else None


@dataclass(slots=True)
class AskedRows:
    """n decisions to make. Rows in `problems` are not what they should be; their columns mean nothing.

    users: ids as the caller knows them, user u64[n] their hashes. named bool[n]: candidates were named (else every live
    campaign is one); they lie flat at offsets i64[n + 1]: campaign, item, and channel i8 (-1: all the campaign allows).
    max_sends i32[n]. expires_at i64[n], 0: never. keys: idempotency keys by row, where any row has one.
    """

    users: Sequence[str]
    user: U64
    named: Bools
    offsets: I64
    campaign: Texts
    channel: I8
    item: Texts
    max_sends: I32
    expires_at: I64
    keys: Sequence[str | None] | None = None
    problems: dict[int, Exception] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def of_models(cls, rows: Sequence[DecideRow | Exception]) -> AskedRows:
        """From validated rows, and what is wrong with the others."""
        problems = {at: row for at, row in enumerate(rows) if isinstance(row, Exception)}
        good = [DecideRow(user="?") if isinstance(row, Exception) else row for row in rows]
        flat = [one for row in good for one in row.candidates or ()]
        users = [row.user for row in good]
        keys = [row.idempotency_key for row in good]
        return cls(
            users=users,
            user=hash_texts(users),
            named=np.array([row.candidates is not None for row in good], np.bool_),
            offsets=lengths_to_offsets([len(row.candidates or ()) for row in good]),
            campaign=Texts.of([one.campaign for one in flat]),
            channel=np.array([CHANNEL_CODES[one.channel and one.channel.value] for one in flat], np.int8),
            item=Texts.of([one.item for one in flat]),
            max_sends=np.array([row.max_sends for row in good], np.int32),
            expires_at=np.array([0 if row.expires_at is None else micros_of(row.expires_at) for row in good], np.int64),
            keys=keys if any(keys) else None,
            problems=problems,
        )

    def part(self, start: int, stop: int) -> AskedRows:
        """Rows start to stop."""
        low, high = int(self.offsets[start]), int(self.offsets[stop])
        return AskedRows(
            users=self.users[start:stop],
            user=self.user[start:stop],
            named=self.named[start:stop],
            offsets=self.offsets[start : stop + 1] - low,
            campaign=self.campaign.part(low, high),
            channel=self.channel[low:high],
            item=self.item.part(low, high),
            max_sends=self.max_sends[start:stop],
            expires_at=self.expires_at[start:stop],
            keys=self.keys[start:stop] if self.keys is not None else None,
            problems={at - start: why for at, why in self.problems.items() if start <= at < stop},
        )

    def idempotency(self, clients: Sequence[str]) -> tuple[list[bytes], list[bytes]] | None:
        """Per row 16 bytes that stand for (client, user, idempotency key), and 16 for what was asked however it was spelled;
        b"" where a row has no key. None where no row has one. clients: who asked, by row."""
        if self.keys is None:
            return None
        keys, digests = [b""] * len(self), [b""] * len(self)
        for row, key in enumerate(self.keys):
            if key is not None and row not in self.problems:
                scope = "\0".join((clients[row], self.users[row], key)).encode("utf-8", "surrogatepass")
                keys[row] = hashlib.blake2b(scope, digest_size=_DIGEST_BYTES).digest()
                body = orjson.dumps(self.document(row), option=orjson.OPT_SORT_KEYS)
                digests[row] = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
        return keys, digests

    def document(self, row: int) -> dict[str, Any]:
        """One row in the canonical form its digest is taken of."""
        expires = int(self.expires_at[row])
        return {
            "user": self.users[row],
            "candidates": list(self._candidates(row)) if self.named[row] else None,
            "max_sends": int(self.max_sends[row]),
            "expires_at": text_of(expires) if expires else None,
        }

    def _candidates(self, row: int) -> Iterator[dict[str, str | None]]:
        for at in range(int(self.offsets[row]), int(self.offsets[row + 1])):
            channel = int(self.channel[at])
            name = Channel(channel).name if channel >= 0 else None
            yield {"campaign": self.campaign[at], "item": self.item[at], "channel": name}
