"""Users of a holdout's trial kept one by one, so that a score fitted on some of them can be tried on the others.

Kept are the users of the lowest hashes, at most `MOST`: the same ones however the log is cut, and memory that does not grow
with it. What is known of a user at the trigger may enter a score; outcomes are those of the trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact
from serve_app.noise import hash_key, salt_of

__all__ = ["MOST", "TrialSample"]

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

MOST = 200_000
_ORDER = salt_of("users of an uplift sample")


@dataclass(frozen=True, slots=True)
class TrialSample:
    """user u64[n], sent bool[n], known f32[n, F] at the trigger, outcome f32[n, K] after it; users: of the whole trial."""

    user: U64
    sent: Bools
    known: F32
    outcome: F32
    users: int

    @classmethod
    def empty(cls, known: int, outcomes: int) -> TrialSample:
        """Without users."""
        none = np.zeros(0, np.uint64), np.zeros(0, np.bool_)
        return cls(*none, np.zeros((0, known), np.float32), np.zeros((0, outcomes), np.float32), 0)

    @classmethod
    def of(cls, user: U64, sent: Bools, known: npt.ArrayLike, outcome: npt.ArrayLike) -> TrialSample:
        """Of users, each once. Values that are missing or not finite are 0."""
        before, after = (np.nan_to_num(np.asarray(one, np.float32), posinf=0.0, neginf=0.0) for one in (known, outcome))
        return cls(user, sent, before, after, len(user))._lowest()

    def _lowest(self) -> TrialSample:
        """In the order of the hashes, at most MOST."""
        kept = np.lexsort((self.user, hash_key(_ORDER, self.user)))[:MOST]
        return TrialSample(self.user[kept], self.sent[kept], self.known[kept], self.outcome[kept], self.users)

    def __add__(self, other: TrialSample) -> TrialSample:
        return TrialSample(
            np.concatenate([self.user, other.user]), np.concatenate([self.sent, other.sent]),
            np.concatenate([self.known, other.known]), np.concatenate([self.outcome, other.outcome]),
            self.users + other.users,
        )._lowest()  # fmt: skip

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For a shard's file."""
        parts = {name: getattr(self, name) for name in ("user", "sent", "known", "outcome")}
        return {**parts, "users": np.array(self.users, np.int64)}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> TrialSample:
        """One with the users of `to_arrays`. Raises DamagedArtifact where it is of other columns."""
        try:
            found = TrialSample(
                arrays["user"], arrays["sent"], arrays["known"], arrays["outcome"], int(arrays["users"])
            )  # fmt: skip
        except KeyError as error:
            raise DamagedArtifact(f"holds no {error}", field="sample", hint="run that shard again") from None
        widths = found.known.shape[1:], found.outcome.shape[1:]
        if widths != (self.known.shape[1:], self.outcome.shape[1:]):
            raise DamagedArtifact("was saved under other settings", field="sample", hint="run that shard again")
        return found
