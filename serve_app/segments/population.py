"""Users and what segments may ask of them, as columns. Row = rank of the user's hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Population", "Text"]

Bools = npt.NDArray[np.bool_]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Text:
    """A column of few distinct texts: names[codes[r]], codes i32[n]; -1: unknown."""

    codes: I32
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Population:
    """n users. Names of the columns are those of `serve_app.policy.segment_attributes.ATTRIBUTES`.

    users: u64[n], sorted, distinct. texts: `zone`, `region` (upper case). flags: bool[n], known of everybody. created_at:
    i64[n] microseconds UTC, 0: unknown.
    """

    users: U64
    texts: Mapping[str, Text]
    flags: Mapping[str, Bools]
    created_at: I64

    def __len__(self) -> int:
        return len(self.users)
