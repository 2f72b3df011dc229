"""What each user saw and bought last, as the log knew it when the release was built.

The server starts from these and adds the events it receives; requests carry them as `recents` and `bought`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Ragged, lengths_to_offsets
from serve_app.errors import DamagedArtifact

__all__ = ["BOUGHT_KEPT", "RECENTS_KEPT", "UserHistories"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

RECENTS_KEPT = 100
BOUGHT_KEPT = 500
_DTYPES = {
    "recent_offsets": "i8",
    "recent_items": "i4",
    "recent_at": "i8",
    "bought_offsets": "i8",
    "bought_items": "i4",
}


@dataclass(frozen=True, slots=True)
class UserHistories:
    """CSR over user rows. recent_items i32[k] with recent_at i64[k] (microseconds UTC) at recent_offsets[u]:[u + 1], oldest
    first, the last RECENTS_KEPT; bought_items i32[b], distinct, in order of the last purchase, the last BOUGHT_KEPT."""

    recent_offsets: I64
    recent_items: I32
    recent_at: I64
    bought_offsets: I64
    bought_items: I32

    def requests(self, user_rows: I32, decided_at: I64) -> dict[str, Ragged]:
        """The request columns recents, recents_age_s and bought of `user_rows` i32[n] (-1: empty) at `decided_at` i64[n]."""
        if len(user_rows) == 1:
            return self._of_one(int(user_rows[0]), decided_at)
        flat, offsets = _places(self.recent_offsets, user_rows)
        age = (np.repeat(decided_at, np.diff(offsets)) - self.recent_at[flat]) / 1e6
        bought, bought_offsets = _places(self.bought_offsets, user_rows)
        return {
            "recents": Ragged(self.recent_items[flat], offsets),
            "recents_age_s": Ragged(age.astype(np.float32), offsets),
            "bought": Ragged(self.bought_items[bought], bought_offsets),
        }

    def _of_one(self, row: int, decided_at: I64) -> dict[str, Ragged]:
        """`requests` of one user: a handful of array operations is most of what it costs."""
        recent, bought = _span(self.recent_offsets, row), _span(self.bought_offsets, row)
        age = ((decided_at - self.recent_at[recent]) / 1e6).astype(np.float32)
        offsets = np.array([0, len(age)], np.int64)
        return {
            "recents": Ragged(self.recent_items[recent].copy(), offsets),
            "recents_age_s": Ragged(age, offsets),
            "bought": Ragged(self.bought_items[bought].copy(), np.array([0, bought.stop - bought.start], np.int64)),
        }

    def save(self, folder: Path) -> None:
        """One .npy an array."""
        folder.mkdir(parents=True, exist_ok=True)
        for one in fields(self):
            np.save(folder / f"{one.name}.npy", np.ascontiguousarray(getattr(self, one.name)), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> UserHistories:
        """From a release's folder. DamagedArtifact names the file that is unreadable or does not fit."""
        out = cls(**{name: _read(folder / f"{name}.npy", dtype) for name, dtype in _DTYPES.items()})
        for kind, flat in (("recent", out.recent_items), ("bought", out.bought_items)):
            offsets: I64 = getattr(out, f"{kind}_offsets")
            if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(flat) or (np.diff(offsets) < 0).any():
                raise DamagedArtifact("does not fit its values", field=f"{folder.name}/{kind}_offsets.npy")
        if len(out.recent_at) != len(out.recent_items):
            raise DamagedArtifact("does not fit recent_items", field=f"{folder.name}/recent_at.npy")
        return out


def _span(offsets: I64, row: int) -> slice:
    """Where the list of `row` (-1: an empty one) lies."""
    return slice(int(offsets[row]), int(offsets[row + 1])) if row >= 0 else slice(0, 0)


def _places(offsets: I64, rows: I32) -> tuple[I64, I64]:
    """Flat positions of the lists of `rows` (-1: an empty one), one after the other, and their new offsets."""
    end = len(offsets) - 1
    known = np.where(rows >= 0, rows, end)  # the list behind the last one holds nothing
    starts = offsets[known]
    lengths = offsets[np.minimum(known + 1, end)] - starts
    out = lengths_to_offsets(lengths)
    return np.arange(out[-1], dtype=np.int64) + np.repeat(starts - out[:-1], lengths), out


def _read(path: Path, dtype: str) -> npt.NDArray[Any]:
    field = f"{path.parent.name}/{path.name}"
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DamagedArtifact(f"cannot be read: {error}", field=field) from error
    if values.dtype != np.dtype(dtype) or values.ndim != 1:
        raise DamagedArtifact(
            f"is {values.dtype}[{values.ndim}-d], must be {np.dtype(dtype)}", field=f"{path.parent.name}/{path.name}"
        )
    return values
