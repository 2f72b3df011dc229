"""The selector: lists made slot by slot, with the exact probability of every choice.

Slot t of a request draws one candidate from the softmax of ``score / temperature`` over the candidates that the rules
still allow, given the slots before it. Each slot draws fresh noise, a hash of (request id, salt, slot, candidate identity),
so slots are independent given the prefix and the logged propensity, that softmax, is exact; the list's is the product.
(One draw of noise reused over the slots is not: with diversity rules it was seen to claim .450 for .351.)

The draw is an exponential race (Gumbel-max after a monotone map): with ``E = -log(U)``, the least ``E / weight`` wins with
probability weight / sum of weights, and a weight that underflows to 0 neither wins nor has a propensity. Sums run over
the candidates in batch order, in f64. At temperature 0 ties go to the smaller identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.kernels import kernel
from serve_app.noise import absorb, mix, unit_interval
from serve_app.stages.ranking.settings import ListSettings, Redundancy, Relax

__all__ = ["Selection", "SelectorInput", "select"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

_NEARLY_ONE = 1.0 - 1e-9  # rounding in 1 - u must not skip a winner
_FAR = 20.0  # in temperatures: exp(20) either way costs no precision that matters
_BY_EMBEDDING, _END_LIST = int(Redundancy.embedding), int(Relax.end_list)


@dataclass(frozen=True, slots=True)
class SelectorInput:
    """One ragged batch to make lists from.

    offsets i64[n + 1]; request_id u64[n] keys the noise; slots i32[n] length asked for; setting i32[n] index into the
    settings. Per candidate: identity u64[m] (stable hash, distinct within a request), category u64[m] (0: none),
    value f64[m], allowed bool[m]. For cosine redundancy: vectors f32[rows, d] of unit length and their row per candidate
    (i32[m]; outside: similar to nothing).
    """

    offsets: I64
    request_id: U64
    slots: I32
    setting: I32
    identity: U64
    category: U64
    value: F64
    allowed: Bool
    vectors: F32 | None = None
    vector_row: I32 | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """slot i32[m] (-1: not chosen), p_slot f64[m] (NaN where not chosen), relaxed bool[m]: the window rule was relaxed for
    that slot. distributions: where asked for, per request f64[slots made, candidates], each row summing to 1."""

    slot: I32
    p_slot: F64
    relaxed: Bool
    distributions: list[F64] | None = None


@kernel
def _cosine(vectors: F32, a: int, b: int) -> float:
    """Dot product in one fixed order: four running sums, added in turn."""
    width = vectors.shape[1]
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    whole = width - width % 4
    for d in range(0, whole, 4):
        s0 += float(vectors[a, d]) * float(vectors[b, d])
        s1 += float(vectors[a, d + 1]) * float(vectors[b, d + 1])
        s2 += float(vectors[a, d + 2]) * float(vectors[b, d + 2])
        s3 += float(vectors[a, d + 3]) * float(vectors[b, d + 3])
    for d in range(whole, width):
        s0 += float(vectors[a, d]) * float(vectors[b, d])
    return min(1.0, max(0.0, ((s0 + s1) + s2) + s3))


@kernel
def _similar_category(begin: int, free: Bool, winner: int, category: U64, similar: F64) -> None:
    """Raise the redundancy of the free candidates to 1 where they share the winner's category."""
    own = category[begin + winner]
    for i in range(len(free)):
        if free[i] and own != 0 and category[begin + i] == own:
            similar[i] = 1.0


@kernel
def _similar_embedding(begin: int, free: Bool, winner: int, vectors: F32, vector_row: I32, similar: F64) -> None:
    """Raise the redundancy of the free candidates to their cosine with the winner."""
    rows, own = vectors.shape[0], vector_row[begin + winner]
    if own < 0 or own >= rows:
        return
    for i in range(len(free)):
        other = vector_row[begin + i]
        if free[i] and 0 <= other < rows:
            similar[i] = max(similar[i], _cosine(vectors, own, other))


@kernel
def _permit(free: Bool, blocked: I32, per_window: int, may: Bool) -> int:
    """Set `may` for the free candidates that exceed the window rule by the least; returns that excess, -1: none is free.
    blocked[i]: chosen candidates of its category among the last window - 1 slots."""
    least = -1
    for i in range(len(free)):
        if free[i]:
            excess = max(0, blocked[i] + 1 - per_window)
            if least < 0 or excess < least:
                least = excess
    for i in range(len(free)):
        may[i] = free[i] and max(0, blocked[i] + 1 - per_window) == least
    return least


@kernel
def _slide_window(category: U64, begin: int, chosen: I64, made: int, window: int, blocked: I32) -> None:
    """Slot `made` was filled: count its category in, and the one that leaves the window out."""
    newest = category[chosen[made]]
    oldest = category[chosen[made - window + 1]] if made - window + 1 >= 0 else np.uint64(0)
    for i in range(len(blocked)):
        own = category[begin + i]
        if own != 0:
            blocked[i] += (1 if own == newest else 0) - (1 if own == oldest else 0)


@kernel
def _best(may: Bool, score: F64, identity: U64, begin: int) -> int:
    best = -1
    for i in range(len(may)):
        if may[i]:
            tied = best >= 0 and score[i] == score[best]
            if best < 0 or score[i] > score[best] or (tied and identity[begin + i] < identity[begin + best]):
                best = i
    return best


@kernel
def _weigh(score: F64, free: Bool, reference: float, temperature: float, weight: F64) -> None:
    for i in range(len(score)):
        if free[i]:
            weight[i] = np.exp((score[i] - reference) / temperature)


@kernel
def _race(may: Bool, weight: F64, mixed: U64, key: np.uint64, best: int) -> tuple[int, float]:
    """Winner of one slot's exponential race, and the sum of the weights. ``-log(u) >= 1 - u`` spares most logarithms."""
    total, winner, least = 0.0, best, np.inf
    for i in range(len(may)):
        if may[i]:
            w = weight[i]
            total += w
            u = unit_interval(mix(np.uint64(key ^ mixed[i])))
            if (1.0 - u) * _NEARLY_ONE < least * w:
                time = -np.log(u) / w
                if time < least:
                    least, winner = time, i
    return winner, total


@kernel
def _spread(begin: int, end: int, allowed: Bool, value: F64) -> float:
    low, high = np.inf, -np.inf
    for c in range(begin, end):
        if allowed[c]:
            low, high = min(low, value[c]), max(high, value[c])
    return high - low if high > low else 0.0


@kernel
def _followed(begin: int, end: int, follow: I32, made: int) -> int:
    for c in range(begin, end):
        if follow[c] == made:
            return c - begin
    return -1


@kernel
def _rescore(
    begin: int,
    free: Bool,
    value: F64,
    lam: float,
    penalty: float,
    temperature: float,
    reference: float,
    state: tuple[F64, F64, F64],
) -> None:
    """Scores and weights of the candidates whose redundancy rose."""
    similar, score, weight = state
    for i in range(len(score)):
        new = lam * value[begin + i] - penalty * similar[i]
        if free[i] and new != score[i]:
            score[i] = new
            if temperature > 0:
                weight[i] = np.exp((new - reference) / temperature)


@kernel
def _one_list(
    begin: int,
    end: int,
    length: int,
    key: np.uint64,
    candidates: tuple[U64, U64, F64, Bool, F32, I32],
    real: F64,
    whole: I32,
    follow: I32,
    out: tuple[I32, F64, Bool],
    table: F64,
) -> None:
    """One request's list. real f64[2]: temperature, lambda. whole i32[4]: window, per_window, redundancy, relax. table
    f64[slots, candidates] takes the distributions (no rows: not wanted).

    Weights are kept from slot to slot, relative to the score `reference`, and set anew when the best allowed score has
    moved away from it so far that they might lose precision.
    """
    identity, category, value, allowed = candidates[0], candidates[1], candidates[2], candidates[3]
    slot, p_slot, relaxed = out
    temperature, lam, count = real[0], real[1], end - begin
    penalty = (1.0 - lam) * _spread(begin, end, allowed, value)
    free, may, blocked = allowed[begin:end].copy(), np.zeros(count, np.bool_), np.zeros(count, np.int32)
    score, similar, weight = lam * value[begin:end], np.zeros(count), np.zeros(count)
    mixed, chosen = np.empty(count, np.uint64), np.empty(length, np.int64)
    for i in range(count):
        mixed[i] = mix(identity[begin + i])
    reference = np.inf
    for made in range(length):
        excess = _permit(free, blocked, whole[1] if whole[0] > 0 else length, may)
        if excess < 0 or (excess > 0 and whole[3] == _END_LIST):
            break
        best = _best(may, score, identity, begin)
        if temperature == 0:
            weight[:] = 0.0
            weight[best], winner, total = 1.0, best, 1.0
        else:
            if not abs(score[best] - reference) < _FAR * temperature:
                reference = score[best]
                _weigh(score, free, reference, temperature, weight)
            winner, total = _race(may, weight, mixed, absorb(key, np.uint64(made)), best)
        if made < len(table):
            table[made, :] = np.where(may, weight, 0.0) / total
        if len(follow) > 0:
            winner = _followed(begin, end, follow, made)
            if winner < 0:
                break
        p = weight[winner] / total if may[winner] else 0.0
        slot[begin + winner], p_slot[begin + winner], relaxed[begin + winner] = made, p, excess > 0
        chosen[made], free[winner] = begin + winner, False
        if whole[0] > 0:
            _slide_window(category, begin, chosen, made, whole[0], blocked)
        if penalty > 0.0:
            if whole[2] == _BY_EMBEDDING:
                _similar_embedding(begin, free, winner, candidates[4], candidates[5], similar)
            else:
                _similar_category(begin, free, winner, category, similar)
            _rescore(begin, free, value, lam, penalty, temperature, reference, (similar, score, weight))


@kernel
def _make_lists(
    offsets: I64,
    requests: tuple[U64, I32, I32],
    candidates: tuple[U64, U64, F64, Bool, F32, I32],
    settings: tuple[U64, F64, I32],
    follow: I32,
    out: tuple[I32, F64, Bool],
    tables: F64,
    tables_at: I64,
) -> None:
    """requests: request_id, slots, setting. settings: salt u64[k], real f64[k, 2], whole i32[k, 4]. tables: flat, those of
    request r at tables_at[r]:tables_at[r + 1]."""
    request_id, slots, setting = requests
    salt, real, whole = settings
    for r in range(len(offsets) - 1):
        begin, end, k = offsets[r], offsets[r + 1], setting[r]
        key = absorb(salt[k], request_id[r])
        table = tables[tables_at[r] : tables_at[r + 1]].reshape(-1, max(end - begin, 1))
        length = min(end - begin, max(slots[r], 0))
        _one_list(begin, end, length, key, candidates, real[k], whole[k], follow, out, table)


def _settings_arrays(settings: Sequence[ListSettings]) -> tuple[U64, F64, I32]:
    salt = np.array([s.salt for s in settings], np.uint64)
    real = np.array([(s.temperature, s.mmr_lambda) for s in settings], np.float64).reshape(-1, 2)
    whole = np.array([(s.window, s.per_window, s.redundancy, s.relax) for s in settings], np.int32).reshape(-1, 4)
    return salt, real, whole


def select(
    given: SelectorInput, settings: Sequence[ListSettings], *, follow: I32 | None = None, distributions: bool = False
) -> Selection:
    """Make every request's list.

    follow i32[m]: slots of lists already made (-1: not in it); nothing is drawn, and `p_slot` is the propensity of each of
    their choices, given the prefix, under these settings (0 where the rules would not have allowed it).
    distributions: also return every slot's whole distribution (for explain and tests).
    """
    if given.vector_row is None and any(s.redundancy == Redundancy.embedding and s.mmr_lambda < 1 for s in settings):
        raise InvalidInput("redundancy by embedding needs the items' embeddings", field="redundancy")
    count = len(given.identity)
    slot, p_slot, relaxed = np.full(count, -1, np.int32), np.full(count, np.nan), np.zeros(count, np.bool_)
    lengths = np.diff(given.offsets)
    wanted = np.minimum(lengths, given.slots.clip(0)).astype(np.int64) if distributions else np.zeros_like(lengths)
    at = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(wanted * lengths, out=at[1:])
    tables = np.full(at[-1], np.nan)
    vectors = np.empty((0, 1), np.float32) if given.vectors is None else given.vectors
    rows = np.empty(0, np.int32) if given.vector_row is None else given.vector_row
    _make_lists(
        _dense(given.offsets),
        (_dense(given.request_id), _dense(given.slots), _dense(given.setting)),
        (*map(_dense, (given.identity, given.category, given.value, given.allowed, vectors, rows)),),  # type: ignore[arg-type]
        _settings_arrays(settings),
        np.empty(0, np.int32) if follow is None else _dense(follow),
        (slot, p_slot, relaxed),
        tables,
        at,
    )
    if not distributions:
        return Selection(slot, p_slot, relaxed)
    each = [tables[at[r] : at[r + 1]].reshape(wanted[r], lengths[r]) for r in range(len(lengths))]
    return Selection(slot, p_slot, relaxed, [table[~np.isnan(table).any(axis=1)] for table in each])


def _dense(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Contiguous and writable, as the kernels were compiled for; columns that came over the wire may be neither."""
    return np.require(array, requirements=["C", "W"])
