"""Thinning of negatives for training: a share of the easy ones, each standing for those left out.

Without the weights the trained model takes what was thinned for rare and puts it too high; with them its scores keep the
level and the order of training on everything.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.noise import hash_key, uniform

__all__ = ["thin_negatives"]

Bools = npt.NDArray[np.bool_]


def thin_negatives(
    request: npt.NDArray[np.uint64], item: npt.NDArray[np.int32], always: Bools, *, share: float, seed: int
) -> tuple[Bools, npt.NDArray[np.float32]]:
    """Candidates to train on, bool[m], and the weight of each candidate, f32[m].

    Where `always` (positives, and negatives hard to tell from them) a candidate stays with weight 1; of the others a `share`
    stays, by a seeded hash of its request id and item row, with weight 1 / share.
    """
    draw = uniform(hash_key(seed, request, item))
    weight = np.where(always, 1.0, 1.0 / share).astype(np.float32)
    return always | (draw < share), weight
