"""What a policy's randomization says of a user, in a form that outlives the policy: names, shares, and bits.

Experiments and holdouts are assigned by salted hashes (`assign`, `holdouts`); a log or a decision record that keeps only the
bits could not be read without the policy. `Trials` is the key to those bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.holdouts import HoldoutArrays, is_held

__all__ = ["Trials", "held_bits", "trials_of"]

U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trials:
    """experiments: (id, probability of each arm) in the order of the `arms` bits; holdouts: (id, share held out) in the
    order of the `held` bits; flip_salt: what flips are drawn with."""

    experiments: tuple[tuple[str, tuple[float, ...]], ...] = ()
    holdouts: tuple[tuple[str, float], ...] = ()
    flip_salt: int = 0

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "experiments": [[name, list(shares)] for name, shares in self.experiments],
            "holdouts": [[name, share] for name, share in self.holdouts],
            "flip_salt": self.flip_salt,
        }

    @classmethod
    def of_document(cls, said: Mapping[str, Any]) -> Trials:
        """The reverse of `document`."""
        return cls(
            tuple((name, tuple(shares)) for name, shares in said["experiments"]),
            tuple((name, share) for name, share in said["holdouts"]),
            int(said["flip_salt"]),
        )


def trials_of(policy: CompiledPolicy) -> Trials:
    """The key to a policy's bits; made once a policy."""
    return _trials(_ByIdentity(policy))


class _ByIdentity:
    """A compiled policy (arrays, hence unhashable) as a key of a cache."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self.policy = policy

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.policy is self.policy

    def __hash__(self) -> int:
        return id(self.policy)


@lru_cache(maxsize=64)
def _trials(key: _ByIdentity) -> Trials:
    document, own = key.policy.document, key.policy.holdouts
    return Trials(
        tuple((one.id, tuple(round(arm.percent * 100) / 10_000 for arm in one.arms)) for one in document.experiments),
        tuple(zip(own.ids, own.share.tolist(), strict=True)),
        int(key.policy.rules.flip_salt),
    )


@kernel
def _held_bits(users: U64, salts: U64, share: F64, out: U64) -> None:
    for r in range(len(users)):
        bits = np.uint64(0)
        for h in range(len(salts)):
            if is_held(h, users[r], salts, share):
                bits |= np.uint64(1) << np.uint64(h)
        out[r] = bits


def held_bits(holdouts: HoldoutArrays, users: U64) -> U64:
    """u64[n]: bit h is set where holdout h (of the first 64) holds the user out, whether or not it is in force."""
    out = np.zeros(len(users), np.uint64)
    if len(holdouts):
        _held_bits(users, holdouts.salts[:64], holdouts.share[:64], out)
    return out
