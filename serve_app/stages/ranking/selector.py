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
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.kernels import kernel
from serve_app.noise import absorb, mix, unit_interval
from serve_app.stages.ranking.settings import ListSettings, Redundancy, Relax

__all__ = ["Selection", "SelectorInput", "dense", "frozen", "select"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

_NEARLY_ONE = 1.0 - 1e-9  # rounding in 1 - u must not skip a winner
_FAR = 20.0  # in temperatures: exp(20) either way costs no precision that matters
_TAKEN = 1 << 30  # far above any count of a window
_BY_EMBEDDING, _END_LIST = int(Redundancy.embedding), int(Relax.end_list)


@dataclass(frozen=True, slots=True)
class SelectorInput:
    """One ragged batch to make lists from.

    offsets i64[n + 1]; request_id u64[n] keys the noise; slots i32[n] length asked for; setting i32[n] index into the
    settings. Per candidate: identity u64[m] (stable hash, distinct within a request), category u64[m] (0: none),
    value f64[m], allowed bool[m]. For cosine redundancy: vectors f32[rows, d] of unit length and their row per candidate
    (i32[m]; outside: similar to nothing). Lists that stand on one page hold nothing twice: page i32[n] (-1: on none), in
    order of row, and thing i32[m], what a candidate is. What stands in an earlier list of its page is not allowed.
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
    page: I32 | None = None
    thing: I32 | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """slot i32[m] (-1: not chosen), p_slot f64[m] (NaN where not chosen), relaxed bool[m]: the window rule was relaxed for
    that slot. repeated bool[m]: the candidate stands in an earlier list of its page. distributions: where asked for, per
    request f64[slots made, candidates], each row summing to 1."""

    slot: I32
    p_slot: F64
    relaxed: Bool
    repeated: Bool
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
def _slide_window(begin: int, category: U64, chosen: I64, made: int, window: int, blocked: I32) -> None:
    """Slot `made` was filled: count its category in, and the one that leaves the window out."""
    newest = category[chosen[made]]
    oldest = category[chosen[made - window + 1]] if made - window + 1 >= 0 else np.uint64(0)
    if newest != oldest:
        for i in range(len(blocked)):
            own = category[begin + i]
            if own != 0:
                blocked[i] += (1 if own == newest else 0) - (1 if own == oldest else 0)


@kernel
def _rescore(
    begin: int, winner: int, candidates: tuple[U64, U64, F64, Bool, F32, I32], rates: F64, by_embedding: bool, state: F64
) -> None:
    """Raise the redundancy of the candidates like the winner; set their scores and weights anew.
    rates: temperature, lambda, penalty, reference. state rows: score, weight, redundancy."""
    category, value, vectors, vector_row = candidates[1], candidates[2], candidates[4], candidates[5]
    temperature, lam, penalty, reference = rates[0], rates[1], rates[2], rates[3]
    newest, rows = category[begin + winner], vectors.shape[0]
    row = vector_row[begin + winner] if by_embedding else -1
    for i in range(state.shape[1]):
        like = 0.0
        if by_embedding:
            other = vector_row[begin + i]
            if 0 <= row < rows and 0 <= other < rows:
                like = _cosine(vectors, row, other)
        elif newest != 0 and category[begin + i] == newest:
            like = 1.0
        if like > state[2, i]:
            state[2, i] = like
            state[0, i] = lam * value[begin + i] - penalty * like
            if temperature > 0:
                state[1, i] = np.exp((state[0, i] - reference) / temperature)


@kernel
def _best(begin: int, blocked: I32, limit: int, score: F64, identity: U64) -> int:
    """The allowed candidate with the highest score, of equal ones that with the smallest identity; -1: none is allowed."""
    best = -1
    for i in range(len(blocked)):
        if blocked[i] <= limit:
            tied = best >= 0 and score[i] == score[best]
            if best < 0 or score[i] > score[best] or (tied and identity[begin + i] < identity[begin + best]):
                best = i
    return best


@kernel
def _race(blocked: I32, limit: int, score: F64, weight: F64, mixed: U64, key: np.uint64) -> tuple[int, float, float]:
    """Winner of one slot's exponential race among the allowed (-1: none), the sum of their weights, their best score.
    ``-log(u) >= 1 - u`` spares most logarithms."""
    winner, total, top, least = -1, 0.0, -np.inf, np.inf
    for i in range(len(blocked)):
        if blocked[i] <= limit:
            w = weight[i]
            total += w
            top = max(top, score[i])
            u = unit_interval(mix(np.uint64(key ^ mixed[i])))
            if (1.0 - u) * _NEARLY_ONE < least * w:
                time = -np.log(u) / w
                if time < least:
                    least, winner = time, i
    return winner, total, top


@kernel
def _weigh(score: F64, reference: float, temperature: float, weight: F64) -> None:
    for i in range(len(score)):
        weight[i] = np.exp((score[i] - reference) / temperature)


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
def _fill_slot(
    begin: int, blocked: I32, limit: int, identity: U64, mixed: U64, key: np.uint64, rates: F64, state: F64
) -> tuple[int, float]:
    """Choose for one slot among the candidates with blocked <= limit: (index or -1, sum of weights). Weights stand
    relative to the score `rates[3]`, and are set anew when the best allowed score has moved so far from it that they
    might lose precision."""
    score, weight, temperature = state[0], state[1], rates[0]
    if temperature == 0:
        best = _best(begin, blocked, limit, score, identity)
        weight[:] = 0.0
        if best >= 0:
            weight[best] = 1.0
        return best, 1.0
    winner, total, top = _race(blocked, limit, score, weight, mixed, key)
    if top > -np.inf and not abs(top - rates[3]) < _FAR * temperature:
        rates[3] = top
        _weigh(score, top, temperature, weight)
        winner, total, top = _race(blocked, limit, score, weight, mixed, key)
    return winner, total


@kernel
def _start(begin: int, end: int, candidates: tuple[U64, U64, F64, Bool, F32, I32], real: F64) -> tuple[I32, U64, F64, F64]:
    """blocked (candidates of its category in the window; _TAKEN: not to be had), mixed identities, rates, state."""
    identity, value, allowed, count = candidates[0], candidates[2], candidates[3], end - begin
    blocked, mixed, state = np.zeros(count, np.int32), np.empty(count, np.uint64), np.zeros((3, count))
    rates = np.array([real[0], real[1], (1.0 - real[1]) * _spread(begin, end, allowed, value), np.inf])
    for i in range(count):
        blocked[i] = 0 if allowed[begin + i] else _TAKEN
        mixed[i] = mix(identity[begin + i])
        state[0, i] = real[1] * value[begin + i]
    return blocked, mixed, rates, state


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
    f64[slots, candidates] takes the distributions (no rows: not wanted)."""
    identity, category = candidates[0], candidates[1]
    slot, p_slot, relaxed = out
    window, most = whole[0], whole[1] - 1 if whole[0] > 0 else 0
    blocked, mixed, rates, state = _start(begin, end, candidates, real)
    chosen = np.empty(length, np.int64)
    for made in range(length):
        slot_key, limit = absorb(key, np.uint64(made)), most
        winner, total = _fill_slot(begin, blocked, limit, identity, mixed, slot_key, rates, state)
        if winner < 0:
            limit = blocked.min()
            if limit >= _TAKEN - length or whole[3] == _END_LIST:
                break
            winner, total = _fill_slot(begin, blocked, limit, identity, mixed, slot_key, rates, state)
        if made < len(table):
            table[made, :] = np.where(blocked <= limit, state[1], 0.0) / total
        if len(follow) > 0:
            winner = _followed(begin, end, follow, made)
            if winner < 0:
                break
        p = state[1, winner] / total if blocked[winner] <= limit else 0.0
        slot[begin + winner], p_slot[begin + winner], relaxed[begin + winner] = made, p, limit > most
        chosen[made], blocked[winner] = begin + winner, _TAKEN
        if window > 0:
            _slide_window(begin, category, chosen, made, window, blocked)
        if rates[2] > 0.0:
            _rescore(begin, winner, candidates, rates, whole[2] == _BY_EMBEDDING, state)


@kernel
def _strike_repeats(r: int, offsets: I64, pages: tuple[I32, I32, Bool], slot: I32, value: F64, allowed: Bool) -> None:
    """What stands in an earlier list of its page is not to be had by request r."""
    page, thing, repeated = pages
    for q in range(r):
        if page[q] == page[r]:
            for c in range(offsets[q], offsets[q + 1]):
                if slot[c] >= 0:
                    for own in range(offsets[r], offsets[r + 1]):
                        if thing[own] == thing[c]:
                            repeated[own], allowed[own], value[own] = True, False, np.nan


@kernel
def _make_lists(
    offsets: I64,
    requests: tuple[U64, I32, I32],
    pages: tuple[I32, I32, Bool],
    candidates: tuple[U64, U64, F64, Bool, F32, I32],
    settings: tuple[U64, F64, I32],
    follow: I32,
    out: tuple[I32, F64, Bool],
    tables: F64,
    tables_at: I64,
) -> None:
    """requests: request_id, slots, setting. pages: page (empty: none), thing, repeated. settings: salt u64[k],
    real f64[k, 2], whole i32[k, 4]. tables: flat, those of request r at tables_at[r]:tables_at[r + 1]."""
    request_id, slots, setting = requests
    salt, real, whole = settings
    for r in range(len(offsets) - 1):
        begin, end, k = offsets[r], offsets[r + 1], setting[r]
        key = absorb(salt[k], request_id[r])
        table = tables[tables_at[r] : tables_at[r + 1]].reshape(-1, max(end - begin, 1))
        if len(pages[0]) and pages[0][r] >= 0:
            _strike_repeats(r, offsets, pages, out[0], candidates[2], candidates[3])
        length = min(end - begin, max(slots[r], 0))
        _one_list(begin, end, length, key, candidates, real[k], whole[k], follow, out, table)


@lru_cache(maxsize=64)
def _settings_arrays(settings: tuple[ListSettings, ...]) -> tuple[U64, F64, I32]:
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
    value, allowed, repeated = given.value, given.allowed, np.zeros(count, np.bool_)
    page = thing = np.empty(0, np.int32)
    if given.page is not None and given.thing is not None:
        page, thing, value, allowed = dense(given.page), dense(given.thing), value.copy(), allowed.copy()
    at = np.zeros(len(given.offsets), np.int64)
    if distributions:
        lengths = np.diff(given.offsets)
        wanted = np.minimum(lengths, given.slots.clip(0)).astype(np.int64)
        np.cumsum(wanted * lengths, out=at[1:])
    tables = np.full(at[-1], np.nan)
    vectors = np.empty((0, 1), np.float32) if given.vectors is None else given.vectors
    rows = np.empty(0, np.int32) if given.vector_row is None else given.vector_row
    _make_lists(
        dense(given.offsets),
        (dense(given.request_id), dense(given.slots), dense(given.setting)),
        (page, thing, repeated),
        (*map(dense, (given.identity, given.category, value, allowed)), frozen(vectors), dense(rows)),  # type: ignore[arg-type]
        _settings_arrays(tuple(settings)),
        np.empty(0, np.int32) if follow is None else dense(follow),
        (slot, p_slot, relaxed),
        tables,
        at,
    )
    if not distributions:
        return Selection(slot, p_slot, relaxed, repeated)
    each = [tables[at[r] : at[r + 1]].reshape(wanted[r], lengths[r]) for r in range(len(lengths))]
    return Selection(slot, p_slot, relaxed, repeated, [table[~np.isnan(table).any(axis=1)] for table in each])


def dense(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Contiguous and writable, as the kernels were compiled for; columns that came over the wire may be neither."""
    return array if array.flags.carray else np.require(array, requirements=["C", "W"])


def frozen(table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A contiguous, read-only view of what every batch reads: kernels see one type of it, whether it is mapped from a file
    or held in memory, and nothing is copied."""
    view = np.ascontiguousarray(table).view(np.ndarray)
    view.flags.writeable = False
    return view
