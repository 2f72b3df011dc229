"""Features nobody stores: computed from the request's own columns and the items' categories and prices.

`COMPUTED` declares them; the kernels below compute them for a whole ragged batch, candidate by candidate in fixed order.
Only the newest `RECENTS_READ` recents count, so a user with ten thousand events costs no more than one with fifty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.stages.features.tables import Entity, FeatureSpec

__all__ = ["COMPUTED", "RECENTS_READ", "REQUEST_FEATURES", "USER_ITEM_FEATURES", "source_specs"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

RECENTS_READ = 50

# Order is the kernels' order. Unknown values are NaN, hence missing, unless a default is declared.
USER_ITEM_FEATURES: tuple[FeatureSpec, ...] = tuple(
    FeatureSpec(name, Entity.user_item, dtype, default, writer="request: recents, bought, anchor")
    for name, dtype, default in (
        ("recent_category_count", "i4", 0.0),  # recents in the candidate's category
        ("recent_category_share", "f4", None),  # that, over the number of recents; unknown without recents
        ("recent_price_ratio", "f4", None),  # candidate's price over the recents' mean price
        ("in_recents", "bool", 0.0),
        ("recent_steps", "i4", None),  # items seen since its last occurrence; 0: it is the newest
        ("recent_age_s", "f4", None),  # seconds since its last occurrence
        ("last_same_category", "bool", None),  # the newest recent is of the candidate's category
        ("bought_before", "bool", 0.0),
        ("bought_category_count", "i4", 0.0),
        ("anchor_same_category", "bool", None),
        ("anchor_price_ratio", "f4", None),
    )
)

REQUEST_FEATURES: tuple[FeatureSpec, ...] = tuple(
    FeatureSpec(name, Entity.request, dtype, None, writer="request")
    for name, dtype in (
        ("context_hour", "i4"),
        ("context_device", "i4"),
        ("surface", "i4"),
        ("region", "i4"),
        ("recents_count", "i4"),
        ("bought_count", "i4"),
        ("cold", "bool"),
    )
)

COMPUTED: tuple[FeatureSpec, ...] = USER_ITEM_FEATURES + REQUEST_FEATURES


def source_specs(sources: Sequence[str]) -> tuple[FeatureSpec, ...]:
    """Specs of what retrieval provides: `source_<name>` for each column of `source_scores` (unknown where the source did
    not give the candidate), `retrieval_score`, and `source_count` (in how many sources it was found)."""
    writer = "retrieval"
    scores = [FeatureSpec(f"source_{name}", Entity.source, writer=writer) for name in sources]
    scores.append(FeatureSpec("retrieval_score", Entity.source, writer=writer))
    scores.append(FeatureSpec("source_count", Entity.source, "i4", writer=writer))
    return tuple(scores)


@kernel
def _matches(items: I32, first: int, last: int, item: int, group: int, category: I32) -> tuple[int, int]:
    """Of items[first:last]: how many are of category `group`, and where `item` stands last (-1: nowhere)."""
    same, seen = 0, -1
    for i in range(first, last):
        if items[i] == item:
            seen = i
        if group >= 0 and 0 <= items[i] < len(category) and category[items[i]] == group:
            same += 1
    return same, seen


@kernel
def _mean_price(items: I32, first: int, last: int, price: F32) -> float:
    total, priced = 0.0, 0
    for i in range(first, last):
        if 0 <= items[i] < len(price) and price[items[i]] > 0:
            total += float(price[items[i]])
            priced += 1
    return total / priced if priced > 0 else np.nan


@kernel
def _agree(one: int, group: int, category: I32) -> float:
    """1 if item `one` is of category `group`, 0 if not, NaN where either is unknown."""
    if group < 0 or one < 0 or one >= len(category):
        return np.nan
    return 1.0 if category[one] == group else 0.0


@kernel
def user_item(
    offsets: I64,
    item: I32,
    recents: I32,
    recents_at: I64,
    ages: F32,
    bought: I32,
    bought_at: I64,
    anchor: I32,
    category: I32,
    price: F32,
    columns: I32,
    out: F32,
) -> None:
    """Fill the user-item columns of `out` f32[m, F]; columns i32[11] gives each feature's column, -1 where not wanted."""
    values = np.empty(11, np.float32)
    for r in range(len(offsets) - 1):
        last, last_bought = recents_at[r + 1], bought_at[r + 1]
        first, first_bought = max(recents_at[r], last - RECENTS_READ), max(bought_at[r], last_bought - RECENTS_READ)
        mean = _mean_price(recents, first, last, price)
        newest = recents[last - 1] if last > first else -1
        anchor_price = float(price[anchor[r]]) if 0 <= anchor[r] < len(price) else np.nan
        for c in range(offsets[r], offsets[r + 1]):
            known = 0 <= item[c] < len(category)
            group = category[item[c]] if known else -1
            cost = float(price[item[c]]) if known and price[item[c]] > 0 else np.nan
            same, seen = _matches(recents, first, last, item[c], group, category)
            same_bought, seen_bought = _matches(bought, first_bought, last_bought, item[c], group, category)
            values[0] = same
            values[1] = same / (last - first) if last > first and group >= 0 else np.nan
            values[2] = cost / mean
            values[3] = 1.0 if seen >= 0 else 0.0
            values[4] = last - 1 - seen if seen >= 0 else np.nan
            values[5] = ages[seen] if 0 <= seen < len(ages) else np.nan
            values[6] = _agree(newest, group, category)
            values[7] = 1.0 if seen_bought >= 0 else 0.0
            values[8] = same_bought
            values[9] = _agree(anchor[r], group, category)
            values[10] = cost / anchor_price if anchor_price > 0 else np.nan
            for k in range(11):
                if columns[k] >= 0:
                    out[c, columns[k]] = values[k]


@kernel
def request_features(
    offsets: I64,
    hour: I8,
    device: I8,
    surface: I8,
    region: npt.NDArray[np.int16],
    recents_at: I64,
    bought_at: I64,
    cold: npt.NDArray[np.bool_],
    columns: I32,
    out: F32,
) -> None:
    """Fill the request columns of `out` f32[m, F]; columns i32[7] as in `user_item`."""
    values = np.empty(7, np.float32)
    for r in range(len(offsets) - 1):
        values[0] = hour[r] if hour[r] >= 0 else np.nan
        values[1] = device[r]
        values[2] = surface[r]
        values[3] = region[r] if region[r] >= 0 else np.nan
        values[4] = recents_at[r + 1] - recents_at[r]
        values[5] = bought_at[r + 1] - bought_at[r]
        values[6] = 1.0 if cold[r] else 0.0
        for c in range(offsets[r], offsets[r + 1]):
            for k in range(7):
                if columns[k] >= 0:
                    out[c, columns[k]] = values[k]


@kernel
def source_features(
    scores: F32, blended: F64, sources: npt.NDArray[np.uint32], from_columns: I32, columns: I32, out: F32
) -> None:
    """Fill retrieval's columns: from_columns[k] is a column of `scores`, -1 for the blended score, -2 for the count of
    sources; columns[k] is where it goes."""
    for c in range(len(blended)):
        for k in range(len(columns)):
            if from_columns[k] >= 0:
                out[c, columns[k]] = scores[c, from_columns[k]]
            elif from_columns[k] == -1:
                out[c, columns[k]] = blended[c]
            else:
                bits, count = sources[c], 0
                while bits:
                    count += bits & np.uint32(1)
                    bits >>= np.uint32(1)
                out[c, columns[k]] = count
