"""An XGBoost model as flat arrays, walked by a kernel: the margins XGBoost gives, bit for bit, in a fifth of its time.

XGBoost's own prediction costs 85 microseconds a call before the first tree, and a row with missing values takes it twice as
long. Here every tree is a complete binary tree of one depth (a leaf above that depth is repeated below itself). Sixty-four
rows go through it together: every split is asked of all of them at once, and what comes out are bits, one a row (the idea of
QuickScorer, Lucchese et al. 2015, turned from many leaves of a row to many rows of a split). Few rows walk one by one, where
a step is arithmetic instead of a branch. Leaves are added in f32 in the order of the trees, as XGBoost does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

from serve_app.kernels import kernel
from serve_app.lanes import LANES, at_least, put_places, unknown

__all__ = ["DEEPEST", "Trees", "pack_trees"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

DEEPEST = 8
"""A complete tree of depth d has 2 ** d leaves: deeper ones would cost more memory than they save time."""

_ZERO, _ONE, _TWO, _BIT = np.uint64(0), np.uint64(1), np.uint64(2), np.uint32(1)
_LOGISTIC, _IDENTITY = "binary:logistic", "reg:squarederror"
_NONE, _ALL = np.uint64(0), np.uint64(0xFFFFFFFFFFFFFFFF)
_WORTH = 16
"""Rows that sooner go together, whether or not they fill the lanes, than one by one."""


@dataclass(frozen=True, slots=True)
class Splits:
    """The splits that tell rows apart, tree by tree and level by level: those of level l of tree t stand at
    levels[t, l]:levels[t, l + 1] (i64[T, depth + 1]). place u8: position in the complete tree; feature u32; missing u64: all
    bits where missing values go right, else none; threshold f32."""

    levels: I64
    place: U8
    feature: U32
    missing: U64
    threshold: F32

    @classmethod
    def of(cls, splits: U32, thresholds: F32, leaves: F32, depth: int) -> Splits:
        """From complete trees: a split whose leaves are all of the same bits tells nobody apart."""
        inner, bits = splits.shape[1], leaves.view(np.uint32)
        told = np.zeros(splits.shape, np.bool_)
        for at in range(inner):
            level = (at + 1).bit_length() - 1
            width = 1 << (depth - level)
            first = (at + 1 - (1 << level)) * width
            own = bits[:, first : first + width]
            told[:, at] = (own != own[:, :1]).any(axis=1)
        tree, place = np.nonzero(told)
        counts = np.bincount(tree, minlength=len(splits))
        starts = np.cumsum(counts) - counts
        levels = np.empty((len(splits), depth + 1), np.int64)
        for level in range(depth + 1):
            levels[:, level] = starts + np.count_nonzero(told[:, : (1 << level) - 1], axis=1)
        split = splits[tree, place]
        missing = np.where(split & _BIT, _ALL, _NONE)
        return cls(levels, place.astype(np.uint8), split >> _BIT, missing, thresholds[tree, place])


@dataclass(frozen=True, slots=True)
class Trees:
    """T trees of depth `depth`. splits u32[T, 2**depth - 1]: feature * 2 + (1 where missing goes right); thresholds f32 of
    the same shape (a value goes left if below); leaves f32[T, 2**depth]; output i32[T]: which output a tree adds to; base
    f32[outputs]: margin before the first tree; logistic: outputs are probabilities."""

    splits: U32
    thresholds: F32
    leaves: F32
    output: I32
    base: F32
    depth: int
    logistic: bool
    told: Splits

    def predict(self, matrix: F32, *, margin: bool = False) -> F32:
        """f32[n, F] contiguous -> f32[n, outputs]."""
        out = np.empty((len(matrix), len(self.base)), np.float32)
        rest = len(matrix) % LANES
        together = len(matrix) if rest >= _WORTH else len(matrix) - rest
        if together:
            own = self.told
            _pass(
                matrix[:together], own.levels, own.place, own.feature, own.missing, own.threshold, self.leaves, self.output,
                self.base, self.depth, out,
            )  # fmt: skip
        if together < len(matrix):
            few = matrix[together:]
            _walk(few, self.splits, self.thresholds, self.leaves, self.output, self.base, self.depth, out[together:])
        if self.logistic and not margin:
            _logistic(out)
        return out


@kernel
def _step(splits: U32, thresholds: F32, row: F32, node: np.uint64) -> np.uint64:
    """The child of `node` that the row goes to. (Unsigned throughout: an index that may be negative costs a test.)"""
    split = splits[node]
    x = row[split >> _BIT]
    right = np.uint64(x >= thresholds[node]) | (np.uint64(split & _BIT) & np.uint64(x != x))
    return _TWO * node + _ONE + right


@kernel
def _walk(matrix: F32, splits: U32, thresholds: F32, leaves: F32, output: I32, base: F32, depth: int, out: F32) -> None:
    inner, whole = np.uint64(splits.shape[1]), len(matrix) - len(matrix) % 8
    for i in range(len(matrix)):
        for k in range(len(base)):
            out[i, k] = base[k]
    for i in range(0, whole, 8):
        x0, x1, x2, x3 = matrix[i], matrix[i + 1], matrix[i + 2], matrix[i + 3]
        x4, x5, x6, x7 = matrix[i + 4], matrix[i + 5], matrix[i + 6], matrix[i + 7]
        for t in range(len(output)):
            s, h, leaf, k = splits[t], thresholds[t], leaves[t], output[t]
            a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = _ZERO
            for _ in range(depth):
                a0, a1, a2, a3 = _step(s, h, x0, a0), _step(s, h, x1, a1), _step(s, h, x2, a2), _step(s, h, x3, a3)
                a4, a5, a6, a7 = _step(s, h, x4, a4), _step(s, h, x5, a5), _step(s, h, x6, a6), _step(s, h, x7, a7)
            out[i, k] += leaf[a0 - inner]
            out[i + 1, k] += leaf[a1 - inner]
            out[i + 2, k] += leaf[a2 - inner]
            out[i + 3, k] += leaf[a3 - inner]
            out[i + 4, k] += leaf[a4 - inner]
            out[i + 5, k] += leaf[a5 - inner]
            out[i + 6, k] += leaf[a6 - inner]
            out[i + 7, k] += leaf[a7 - inner]
    for i in range(whole, len(matrix)):
        for t in range(len(output)):
            node = _ZERO
            for _ in range(depth):
                node = _step(splits[t], thresholds[t], matrix[i], node)
            out[i, output[t]] += leaves[t, node - inner]


@kernel
def _turned(matrix: F32, first: int, out: F32, missing: U64) -> None:
    """Rows from `first` on as columns, out f32[F, 64], and who lacks which feature, missing u64[F]. Where there are fewer
    rows, the last one stands for those that are not there."""
    last = len(matrix) - 1
    for row in range(LANES):
        own = matrix[min(first + row, last)]
        for f in range(len(own)):
            out[f, row] = own[f]
    for f in range(len(out)):
        missing[f] = unknown(out, np.uint64(f * LANES))


@kernel
def _pass(
    matrix: F32, levels: I64, place: U8, feature: U32, missing: U64, threshold: F32, leaves: F32, output: I32, base: F32,
    depth: int, out: F32,
) -> None:  # fmt: skip
    """Sixty-four rows a time through all trees. reach: who comes to each place of a complete tree; planes: who goes right,
    by level, which together are the number of the leaf."""
    columns, lacking = np.empty((matrix.shape[1], LANES), np.float32), np.empty(matrix.shape[1], np.uint64)
    reach, planes = np.zeros(2 ** (DEEPEST + 1), np.uint64), np.zeros(DEEPEST, np.uint64)
    leaf, total = np.empty(LANES, np.uint8), np.empty((len(base), LANES), np.float32)
    for first in range(0, len(matrix), LANES):
        _turned(matrix, first, columns, lacking)
        for k in range(len(base)):
            total[k, :] = base[k]
        for t in range(len(output)):
            reach[0] = _ALL
            for level in range(depth):
                right = _NONE
                for n in range(levels[t, level], levels[t, level + 1]):
                    f, at = np.uint64(feature[n]), np.uint64(place[n])
                    there = reach[at]
                    go = (at_least(columns, f * np.uint64(LANES), threshold[n]) | (lacking[f] & missing[n])) & there
                    reach[_TWO * at + _ONE], reach[_TWO * at + _TWO] = there ^ go, go
                    right |= go
                planes[level] = right
            put_places(planes, np.uint64(depth), leaf)
            own, sums = leaves[t], total[output[t]]
            for row in range(LANES):
                sums[row] += own[np.uint64(leaf[row])]
        for row in range(min(LANES, len(matrix) - first)):
            for k in range(len(base)):
                out[first + row, k] = total[k, row]


@kernel
def _logistic(out: F32) -> None:
    for i in range(out.shape[0]):
        for k in range(out.shape[1]):
            out[i, k] = np.float32(1.0) / (np.float32(1.0) + np.exp(min(-out[i, k], np.float32(88.7))))


def pack_trees(booster: xgboost.Booster) -> Trees | None:
    """The model as flat arrays; None for what they do not hold: deep trees, categories, vector leaves, dropout, or
    objectives other than logistic and squared error."""
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    objective, gradient = learner["objective"]["name"], learner["gradient_booster"]
    if objective not in (_LOGISTIC, _IDENTITY) or gradient["name"] != "gbtree":
        return None
    model = gradient["model"]
    trees = model["trees"]
    if any(int(tree["tree_param"].get("size_leaf_vector", "1")) > 1 or any(tree["split_type"]) for tree in trees):
        return None
    depth = max((_depth_of(tree) for tree in trees), default=0)
    if depth > DEEPEST:
        return None
    inner = 2**depth - 1
    splits, thresholds = np.zeros((len(trees), inner), np.uint32), np.zeros((len(trees), inner), np.float32)
    leaves = np.zeros((len(trees), inner + 1), np.float32)
    for tree, *arrays in zip(trees, splits, thresholds, leaves, strict=True):
        _fill(tree, 0, 0, inner, *arrays)
    base = np.atleast_1d(np.array(json.loads(learner["learner_model_param"]["base_score"]), np.float32))
    if objective == _LOGISTIC:
        # As XGBoost: kept off 0 and 1, odds in f32. The logarithm in f64, as those of f32 differ in the last bit.
        base = np.clip(base, np.float32(1e-6), np.float32(1.0) - np.float32(1e-6))
        base = -np.log((np.float32(1.0) / base - np.float32(1.0)).astype(np.float64))
    output = np.array(model["tree_info"], np.int32)
    told = Splits.of(splits, thresholds, leaves, depth)
    return Trees(splits, thresholds, leaves, output, base.astype(np.float32), depth, objective == _LOGISTIC, told)


def _depth_of(tree: dict[str, Any]) -> int:
    depth = [0] * len(tree["left_children"])
    for node, (left, right) in enumerate(zip(tree["left_children"], tree["right_children"], strict=True)):
        if left != -1:
            depth[left] = depth[right] = depth[node] + 1
    return max(depth)


def _fill(tree: dict[str, Any], node: int, place: int, inner: int, splits: U32, thresholds: F32, leaves: F32) -> None:
    """Put the subtree under `node` at `place` of the complete tree."""
    if place >= inner:
        leaves[place - inner] = tree["split_conditions"][node]
        return
    left, right = tree["left_children"][node], tree["right_children"][node]
    if left == -1:
        left = right = node  # whichever way a row goes from here, it ends in this leaf
    else:
        splits[place] = tree["split_indices"][node] * 2 + (0 if tree["default_left"][node] else 1)
        thresholds[place] = tree["split_conditions"][node]
    _fill(tree, left, 2 * place + 1, inner, splits, thresholds, leaves)
    _fill(tree, right, 2 * place + 2, inner, splits, thresholds, leaves)
