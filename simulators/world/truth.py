"""What the log must not show, kept aside under DATA/world/: parameters, latent values, probabilities, potential outcomes.

::

    world.json                         settings, seed, policy revision, counts
    behaviour.json                     the policy document that was in force
    users.parquet items.parquet ...    latent columns by hash of the id
    sends/day=YYYY-MM-DD.parquet       per (user, request_id, idx): p_* and potential outcomes of every candidate
    slates/day=YYYY-MM-DD.parquet      per (user, request_id, idx) logged: relevance
    activity/day=YYYY-MM-DD.parquet    per user: chance to have opened the app
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.log.rows import logged_in_full
from serve_app.log.writer import day_text
from simulators.world.driver import Day
from simulators.world.model import Model
from simulators.world.sends import Decided
from simulators.world.settings import DAY_US
from simulators.world.slates import Slate

__all__ = ["OUTCOME_BITS", "write_day_truth", "write_latent"]

OUTCOME_BITS = ("fail", "seen", "click", "convert", "optout", "dismiss")  # from bit 0 on
_PROBABILITIES = ("click", "convert", "optout", "dismiss")


def write_latent(model: Model, folder: Path) -> None:
    """Latent values of users, items, campaigns and widgets."""
    people, items, campaigns, widgets = model.population, model.items, model.campaigns, model.widgets
    names = ("activity", "hour", "responsiveness", "buying", "irritability", "price_level", "bot", "joined_day")
    _write(folder / "users.parquet", {"user": people.user, **_of(people, names), "taste": _lists(people.taste)})
    names = ("appeal", "popularity", "margin", "launch_day", "half_life_days", "sold_out_day", "restock_day", "line")
    _write(folder / "items.parquet", {"item": items.item, **_of(items, names), "vector": _lists(items.vector)})
    latent = {"campaign": campaigns.campaign, "appeal": campaigns.appeal, "vector": _lists(campaigns.vector)}
    _write(folder / "campaigns.parquet", latent)
    _write(folder / "widgets.parquet", {"widget": widgets.widget, "base": widgets.base, "vector": _lists(widgets.vector)})


def write_day_truth(model: Model, day: Day, folder: Path) -> None:
    """True probabilities and potential outcomes of one day."""
    name = f"day={day_text(model.settings.start_us // DAY_US + day.day)}.parquet"
    _write(folder / "sends" / name, _joined([_sends(one) for one in day.decided]))
    _write(folder / "slates" / name, _joined([_slates(one) for one in day.slates]))
    _write(folder / "activity" / name, {"user": model.population.user, "p_active": day.p_active.astype(np.float32)})


def _sends(decided: Decided) -> dict[str, Any]:
    truth = {f"p_{one}": getattr(decided.sent.truth, one).astype(np.float32) for one in _PROBABILITIES}
    return {**_keys(decided.batch), **truth, "outcomes": decided.sent.outcome.bits()}


def _slates(slate: Slate) -> dict[str, Any]:
    batch = slate.batch
    full = logged_in_full(batch.requests["request_id"], batch.requests["log_rate"])
    kept = full[batch.owner] | (batch.candidates["slot"] >= 0)
    every = {**_keys(batch), "relevance": slate.relevance.astype(np.float32)}
    return {name: values[kept] for name, values in every.items()}


def _keys(batch: Any) -> dict[str, Any]:
    owner = batch.owner
    idx = (np.arange(len(owner)) - batch.offsets[owner]).astype(np.int32)
    return {"user": batch.requests["user"][owner], "request_id": batch.requests["request_id"][owner], "idx": idx}


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.concatenate([one[name] for one in parts]) for name in parts[0]} if parts else {}


def _of(part: object, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(part, name) for name in names}


def _lists(matrix: npt.NDArray[np.float64]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def _write(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="zstd")
