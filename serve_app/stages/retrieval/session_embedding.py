"""Session query vectors: unit(newest . W_last + weighted mean of recents . W_mean), in a fixed order of accumulation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel

__all__ = ["session_queries"]

F32 = npt.NDArray[np.float32]


@kernel
def session_queries(
    vectors: F32, last_map: F32, mean_map: F32, step_weights: F32,
    recents: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], out: F32,
) -> None:  # fmt: skip
    """vectors f32[n, d]; maps f32[d, d]; step_weights f32[l], newest first; recents oldest first. out f32[q, d], zero rows
    for requests without recents."""
    d = vectors.shape[1]
    mean = np.empty(d, np.float32)
    for r in range(len(offsets) - 1):
        query = out[r]
        query[:] = np.float32(0.0)
        n = offsets[r + 1] - offsets[r]
        if n == 0:
            continue
        mean[:] = np.float32(0.0)
        total = np.float32(0.0)
        for k in range(min(n, len(step_weights))):
            row = vectors[recents[offsets[r + 1] - 1 - k]]
            total += step_weights[k]
            for j in range(d):
                mean[j] += step_weights[k] * row[j]
        newest = vectors[recents[offsets[r + 1] - 1]]
        for i in range(d):
            a, b = newest[i], mean[i] / total
            left, right = last_map[i], mean_map[i]
            for j in range(d):
                query[j] += a * left[j] + b * right[j]
        norm = np.float32(0.0)
        for j in range(d):
            norm += query[j] * query[j]
        scale = np.float32(1.0) / (np.sqrt(norm) + np.float32(1e-9))
        for j in range(d):
            query[j] *= scale
