"""Item embeddings from co-visitation: truncated SVD of the shifted positive pointwise mutual information.

Levy and Goldberg (2014, "Neural word embedding as implicit matrix factorization") show skip-gram with negative sampling
factorises this matrix; the SVD gives the like of item2vec without sampling noise, and the same bits for the same seed.
New items, and items nothing is known of, get the mean vector of their category (the cold-start rule).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from serve_app.stages.retrieval.covisit import Covisits

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["build_embeddings", "category_means", "normalise_rows"]

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


def normalise_rows(vectors: npt.NDArray[np.floating]) -> F32:
    """Unit length rows; zero rows stay zero."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return np.ascontiguousarray(vectors / np.where(norms > 0, norms, 1.0)[:, None], np.float32)


def category_means(vectors: F32, category: I32, categories: int) -> F32:
    """f32[categories + 1, d]: unit mean vector per category; the last row is the mean over all items."""
    known = np.einsum("ij,ij->i", vectors, vectors) > 0
    means = np.zeros((categories + 1, vectors.shape[1]), np.float64)
    np.add.at(means, category[known & (category >= 0)], vectors[known & (category >= 0)])
    means[-1] = vectors[known].sum(axis=0) if known.any() else 0.0
    empty = np.einsum("ij,ij->i", means, means) == 0
    means[empty] = means[-1]
    return normalise_rows(means)


def _truncated_svd(matrix: csr_matrix, rank: int, seed: int) -> tuple[F64, F64]:
    """Left singular vectors [n, k] and values [k] by randomised subspace iteration (Halko, Martinsson, Tropp 2011), seeded;
    much quicker than Lanczos where the spectrum is flat. Signs are fixed by the largest entry of each vector."""
    width = min(rank + 16, matrix.shape[0])
    sketch = matrix @ np.random.default_rng(seed).normal(size=(matrix.shape[0], width))
    for _ in range(4):
        sketch, _ = np.linalg.qr(matrix @ (matrix.T @ sketch))
    basis, _ = np.linalg.qr(sketch)
    inner, values, _ = np.linalg.svd((matrix.T @ basis).T, full_matrices=False)
    left = basis @ inner[:, :rank]
    signs = np.sign(left[np.argmax(np.abs(left), axis=0), np.arange(left.shape[1])])
    return left * signs, values[:rank]


def build_embeddings(covisits: Covisits, category: I32, *, categories: int, dimensions: int, shift: float, seed: int) -> F32:
    """f32[n, dimensions], unit rows. `shift` is SGNS's number of negative samples; seed fixes the start vector."""
    from scipy.sparse import csr_matrix  # here: replicas import this module and never build

    count = len(covisits.offsets) - 1
    matrix = csr_matrix((covisits.weights.astype(np.float64), covisits.neighbours, covisits.offsets), shape=(count, count))
    matrix = (matrix + matrix.T).tocoo()
    vectors = np.zeros((count, dimensions), np.float32)
    rank = min(dimensions, count - 2)
    if rank >= 1 and matrix.nnz:
        row_total = np.bincount(matrix.row, weights=matrix.data, minlength=count)
        smoothed = row_total**0.75  # context smoothing of Levy, Goldberg, Dagan (2015)
        scale = smoothed.sum() / (row_total[matrix.row] * smoothed[matrix.col])
        pmi = np.log(matrix.data * scale) - np.log(shift)
        keep = pmi > 0
        if keep.any():
            ppmi = csr_matrix((pmi[keep], (matrix.row[keep], matrix.col[keep])), shape=(count, count))
            left, values = _truncated_svd(ppmi, rank, seed)
            vectors[:, : len(values)] = left * np.sqrt(values)
    vectors = normalise_rows(vectors)
    unknown = np.einsum("ij,ij->i", vectors, vectors) == 0
    if unknown.any():
        means = category_means(vectors, category, categories)
        vectors[unknown] = means[category[unknown]]
    if not np.einsum("ij,ij->i", vectors, vectors).any():
        vectors[:, 0] = 1.0  # a catalogue without any co-visit: all alike
    return vectors
