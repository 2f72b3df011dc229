"""Training of the session embedding: a shallow normalised model of the next click.

query = unit(newest . W_last + weighted mean of recents . W_mean); score of item j = tau * query . z_j with unit z. Trained
by sampled softmax over in-batch targets and uniform negatives with inclusion-probability correction (Jean et al. 2015; unit
rows and a fixed temperature as in NISER, Gupta et al. 2019), Adam, gradients written out. Seeded; one thread gives the
same bits again.

The large matrix of a step (examples x sampled items) is passed over as seldom as can be: its bias rides in the product, its
row sums and their division in the small matrices. Unit rows bound the exponent, so no maximum need be taken off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel

__all__ = ["SessionEmbedding", "train_session_embedding"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SessionEmbedding:
    """vectors f32[n, d] with unit rows; last_map, mean_map f32[d, d]; step_weights f32[l], newest step first."""

    vectors: F32
    last_map: F32
    mean_map: F32
    step_weights: F32


_STEPS, _TEMPERATURE, _BATCH, _NEGATIVES, _DROP, _RATE = 12, 13.0, 1024, 2048, 0.35, 1e-2


@kernel
def _prefixes(items: I32, offsets: I64, padded: I32, target: I32) -> int:
    """Every (prefix, next click): padded[row] newest first, -1 beyond the session's start."""
    row = 0
    for s in range(len(offsets) - 1):
        for k in range(offsets[s] + 1, offsets[s + 1]):
            for d in range(min(padded.shape[1], k - offsets[s])):
                padded[row, d] = items[k - 1 - d]
            target[row] = items[k]
            row += 1
    return row


@kernel
def _scatter(gradient: F32, padded: I32, target: I32, g_newest: F32, g_mean: F32, g_target: F32, share: F32) -> None:
    """Add the gradients of the query's inputs to the rows they came from, and take that of the targets off theirs."""
    for b in range(len(padded)):
        for d in range(gradient.shape[1]):
            gradient[padded[b, 0], d] += g_newest[b, d]
            gradient[target[b], d] -= g_target[b, d]
        for k in range(padded.shape[1]):
            if padded[b, k] >= 0 and share[b, k] != 0.0:
                for d in range(gradient.shape[1]):
                    gradient[padded[b, k], d] += share[b, k] * g_mean[b, d]


@kernel
def _inner(a: F32, b: F32) -> np.float32:
    """Inner product in four running sums, which lets it run ahead of its own additions."""
    p0 = p1 = p2 = p3 = np.float32(0.0)
    whole = len(a) - len(a) % 4
    for d in range(0, whole, 4):
        p0 += a[d] * b[d]
        p1 += a[d + 1] * b[d + 1]
        p2 += a[d + 2] * b[d + 2]
        p3 += a[d + 3] * b[d + 3]
    for d in range(whole, len(a)):
        p0 += a[d] * b[d]
    return (p0 + p1) + (p2 + p3)


@kernel
def _adam_rows(raw: F32, unit: F32, gradient: F32, m: F32, v: F32, rows: I64, rate: np.float32, step: int) -> None:
    """Adam on raw rows whose unit copies received `gradient`; refreshes `unit` and clears the gradient."""
    one, tiny = np.float32(1.0), np.float32(1e-9)
    keep_m, keep_v = np.float32(0.9), np.float32(0.99)
    scale_m, scale_v = np.float32(1.0 / (1.0 - 0.9**step)), np.float32(1.0 / (1.0 - 0.99**step))
    for i in rows:
        own, direction, push = raw[i], unit[i], gradient[i]
        along = _inner(push, direction)
        shrink = one / (np.sqrt(_inner(own, own)) + tiny)
        for d in range(len(own)):
            g = (push[d] - along * direction[d]) * shrink
            m[i, d] = keep_m * m[i, d] + (one - keep_m) * g
            v[i, d] = keep_v * v[i, d] + (one - keep_v) * g * g
            own[d] -= rate * (m[i, d] * scale_m) / (np.sqrt(v[i, d] * scale_v) + np.float32(1e-8))
            push[d] = np.float32(0.0)
        shrink = one / (np.sqrt(_inner(own, own)) + tiny)
        for d in range(len(own)):
            direction[d] = own[d] * shrink


class _Trainer:
    """State of one training run."""

    def __init__(self, item_count: int, dimensions: int, seed: int, start: SessionEmbedding | None) -> None:
        self.rng = np.random.default_rng(seed)
        raw = self.rng.standard_normal((item_count, dimensions)).astype(np.float32)
        self.raw = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        if start is not None:
            self.raw[: len(start.vectors)] = start.vectors
        self.unit = self.raw.copy()
        self.gradient, self.m, self.v = (np.zeros_like(raw) for _ in range(3))
        eye = np.eye(dimensions, dtype=np.float32) * np.float32(0.5)
        self.small = [eye, eye.copy(), (0.8 ** np.arange(_STEPS)).astype(np.float32)]
        if start is not None:
            self.small = [start.last_map.copy(), start.mean_map.copy(), start.step_weights.copy()]
        self.small_m, self.small_v = ([np.zeros_like(x) for x in self.small] for _ in range(2))
        self.step = 0

    def batch(self, padded: I32, target: I32, log_included: F32, rate: float) -> None:
        """One step of sampled softmax."""
        last_map, mean_map, weights = self.small
        mask = (padded >= 0) & (self.rng.random(padded.shape, dtype=np.float32) > _DROP)
        mask[:, 0] = True
        weighted = mask * weights
        total = weighted.sum(1, keepdims=True)
        share = (weighted / total).astype(np.float32)
        inputs = self.unit[np.maximum(padded, 0)]
        newest, mean = inputs[:, 0], np.matmul(share[:, None, :], inputs)[:, 0]
        query = newest @ last_map + mean @ mean_map
        norm = np.linalg.norm(query, axis=1, keepdims=True) + 1e-9
        unit_query = query / norm
        drawn = self.rng.integers(0, len(self.unit), _NEGATIVES, dtype=np.int32)
        chosen = np.unique(np.concatenate([target, drawn]))
        column, rows = np.searchsorted(chosen, target), np.arange(len(target))
        vectors = self.unit[chosen]
        odds = np.empty((len(target), len(chosen)), np.float32)
        biased = np.concatenate([vectors, -log_included[chosen][:, None]], axis=1)
        np.matmul(np.concatenate([unit_query * _TEMPERATURE, np.ones_like(norm)], axis=1), biased.T, out=odds)
        np.exp(odds, out=odds)
        odds[rows, column] *= np.exp(log_included[target])
        scale = (_TEMPERATURE / np.matmul(odds, np.ones(len(chosen), np.float32)))[:, None]
        g_unit = np.matmul(odds, vectors) * scale - self.unit[target] * np.float32(_TEMPERATURE)
        self.gradient[chosen] += np.matmul(odds.T, unit_query * scale)
        g_query = ((g_unit - unit_query * (unit_query * g_unit).sum(1, keepdims=True)) / norm).astype(np.float32)
        g_newest, g_mean = g_query @ last_map.T, g_query @ mean_map.T
        inner = np.matmul(inputs, g_mean[:, :, None])[:, :, 0] - (mean * g_mean).sum(1, keepdims=True)
        gradients = [newest.T @ g_query, mean.T @ g_query, (mask * inner / total).sum(0)]
        g_target = unit_query * np.float32(_TEMPERATURE)
        _scatter(self.gradient, padded, target, g_newest, g_mean, g_target, share)
        touched = np.union1d(chosen, padded[padded >= 0])
        self.step += 1
        row_rate = np.float32(rate * len(last_map) ** -0.5 * 8)
        _adam_rows(self.raw, self.unit, self.gradient, self.m, self.v, touched, row_rate, self.step)
        self._adam_small([g / len(target) for g in gradients], rate)

    def _adam_small(self, gradients: list[F32], rate: float) -> None:
        for k, g in enumerate(gradients):
            self.small_m[k] = 0.9 * self.small_m[k] + 0.1 * g
            self.small_v[k] = 0.99 * self.small_v[k] + 0.01 * g * g
            m, v = self.small_m[k] / (1 - 0.9**self.step), self.small_v[k] / (1 - 0.99**self.step)
            self.small[k] = (self.small[k] - rate * m / (np.sqrt(v) + 1e-8)).astype(np.float32)
        self.small[2] = np.maximum(self.small[2], np.float32(1e-3))


def train_session_embedding(
    items: I32, offsets: I64, item_count: int, *, dimensions: int, epochs: int, seed: int,
    start: SessionEmbedding | None = None, progress: Callable[[str], None] = lambda _: None,
) -> SessionEmbedding:  # fmt: skip
    """items i32[k] of sessions offsets i64[s + 1] in click order. Items never seen keep a random unit row: give them their
    category's mean where that matters. start: an earlier embedding of the same dimensions whose item rows are the first
    ones here; training goes on from it."""
    examples = len(items) - (len(offsets) - 1)
    padded = np.full((max(examples, 0), _STEPS), -1, np.int32)
    target = np.empty(max(examples, 0), np.int32)
    _prefixes(items, offsets, padded, target)
    state = _Trainer(item_count, dimensions, seed, start)
    batch = min(_BATCH, max(examples, 1))
    share = np.bincount(target, minlength=item_count) / max(examples, 1)
    included = 1 - (1 - share) ** batch * (1 - 1 / item_count) ** _NEGATIVES
    log_included = np.log(included + 1e-12).astype(np.float32)
    steps = max(epochs * (examples // batch), 1)
    for epoch in range(epochs):
        progress(f"session embedding, epoch {epoch + 1} of {epochs}")
        order = state.rng.permutation(examples)
        for begin in range(0, examples - batch + 1, batch):
            rows = order[begin : begin + batch]
            rate = _RATE * max(0.02, 1 - state.step / steps)
            state.batch(padded[rows], target[rows], log_included, rate)
    return SessionEmbedding(state.unit, state.small[0], state.small[1], state.small[2])
