"""Declared features and the columnar tables their values lie in.

A feature says what it is (`FeatureSpec`): entity, dtype, default, maximum age, and who writes it. A `FeatureTable` holds
the features of one entity kind: one f32 row per entity, the time each value was computed, and NaN where nothing is known.
Tables lie on disk as `.npy` files beside one JSON file, are mapped into memory, and are never pickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact, InvalidInput

__all__ = ["TABLE_ENTITIES", "Entity", "FeatureSpec", "FeatureTable"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_SCHEMA = 1
_DTYPES = ("f4", "i4", "bool")
_EXACT = float(2**24)  # integers above this are not exact in f32


class Entity(StrEnum):
    """What a feature describes, hence where its value is read."""

    item = "item"
    user = "user"
    review = "review"
    widget = "widget"
    campaign = "campaign"
    user_item = "user_item"  # computed from the request's recents and the candidate
    request = "request"  # computed from the request alone
    source = "source"  # a column of the candidates' source scores, or of retrieval's verdict
    position = "position"  # the slot shown in while training, a constant while serving


TABLE_ENTITIES = frozenset({Entity.item, Entity.user, Entity.review, Entity.widget, Entity.campaign})
"""Entities whose features are stored; the others are computed from the request."""


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """One declared feature.

    default: used where nothing is known; None means the model reads NaN. max_age_s: a value older than this, counted
    from the request's `decided_at`, is flagged stale (and still used); None: never. writer: the part that computes it.
    dtype: "f4", "i4" (exact up to 2**24) or "bool"; every value travels as f32.
    """

    name: str
    entity: Entity
    dtype: str = "f4"
    default: float | None = None
    max_age_s: float | None = None
    writer: str = "release"

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InvalidInput(f"{self.name!r} is not a feature name", field="name", hint="letters, digits and _")
        if self.entity not in set(Entity):
            raise InvalidInput(f"{self.entity!r} is no entity", field=self.name, hint=f"one of {', '.join(Entity)}")
        object.__setattr__(self, "entity", Entity(self.entity))
        if self.dtype not in _DTYPES:
            raise InvalidInput(f"dtype {self.dtype!r} is not one of {', '.join(_DTYPES)}", field=self.name)
        if self.default is not None and not math.isfinite(self.default):
            raise InvalidInput("a default must be finite", field=self.name, hint="None lets the model read NaN")
        if self.max_age_s is not None and not self.max_age_s > 0:
            raise InvalidInput("the maximum age must be above 0 seconds", field=self.name)


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Features of one entity kind.

    keys u64[rows]: identity hash of each row. values f32[rows, k], NaN where nothing is known. as_of i64[rows, 1] (one
    time a row) or i64[rows, k] (one a value), microseconds UTC. specs: k features of this entity, in column order.
    """

    entity: Entity
    specs: tuple[FeatureSpec, ...]
    keys: U64
    values: F32
    as_of: I64

    def __post_init__(self) -> None:
        object.__setattr__(self, "entity", Entity(self.entity))
        object.__setattr__(self, "specs", tuple(self.specs))
        if self.entity not in TABLE_ENTITIES:
            raise InvalidInput(f"{self.entity} features are computed, not stored", field="entity")
        if self.as_of.ndim == 1:
            object.__setattr__(self, "as_of", self.as_of.reshape(-1, 1))
        self._check_shapes()

    def _check_shapes(self) -> None:
        rows, width = len(self.keys), len(self.specs)
        wanted: list[tuple[str, npt.NDArray[Any], str, list[tuple[int, ...]]]] = [
            ("keys", self.keys, "u8", [(rows,)]),
            ("values", self.values, "f4", [(rows, width)]),
            ("as_of", self.as_of, "i8", [(rows, 1), (rows, width)]),
        ]
        for name, array, dtype, shapes in wanted:
            if array.dtype != np.dtype(dtype) or array.shape not in shapes:
                raise InvalidInput(
                    f"{name} is {array.dtype}{list(array.shape)}, wanted {np.dtype(dtype)}{list(shapes[-1])}",
                    field=f"{self.entity} features",
                )
        names = [spec.name for spec in self.specs]
        for spec in self.specs:
            if spec.entity != self.entity:
                raise InvalidInput(f"is a feature of {spec.entity}, the table of {self.entity}", field=spec.name)
            if names.count(spec.name) > 1:
                raise InvalidInput("is declared twice", field=spec.name)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def names(self) -> tuple[str, ...]:
        """Feature names in column order."""
        return tuple(spec.name for spec in self.specs)

    def column(self, name: str) -> F32:
        """f32[rows] of one feature."""
        if name not in self.names:
            raise InvalidInput("the table has no such feature", field=name, hint=f"it has {', '.join(self.names)}")
        column: F32 = self.values[:, self.names.index(name)]
        return column

    def check_values(self) -> FeatureTable:
        """Refuse infinities, and values that do not fit the declared dtype; for writers, before `save`."""
        for index, spec in enumerate(self.specs):
            known = self.values[:, index]
            known = known[~np.isnan(known)]
            if np.isinf(known).any():
                raise InvalidInput("holds an infinite value", field=spec.name, hint="write NaN for unknown")
            if spec.dtype == "bool" and not np.isin(known, (0.0, 1.0)).all():
                raise InvalidInput("a bool must be 0 or 1", field=spec.name)
            if spec.dtype == "i4" and not ((known == np.floor(known)) & (np.abs(known) <= _EXACT)).all():
                raise InvalidInput("an i4 must be whole and at most 2**24", field=spec.name)
        return self

    def save(self, folder: Path) -> None:
        """Write `values.npy`, `as_of.npy`, `keys.npy` and `table.json` into `folder` (created)."""
        self.check_values()
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in (("values", self.values), ("as_of", self.as_of), ("keys", self.keys)):
            np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
        head = {
            "schema_version": _SCHEMA,
            "entity": self.entity,
            "rows": len(self),
            "features": [asdict(s) for s in self.specs],
        }
        (folder / "table.json").write_text(json.dumps(head, indent=1))

    @classmethod
    def load(cls, folder: Path) -> FeatureTable:
        """Map a saved table into memory (copy on write: pages are shared). DamagedArtifact where it does not fit."""
        head = _read_head(folder)
        arrays = {name: _map_array(folder / f"{name}.npy") for name in ("keys", "values", "as_of")}
        try:
            table = cls(Entity(head["entity"]), _read_specs(head["features"]), **arrays)
        except (InvalidInput, KeyError, TypeError, ValueError) as error:
            raise DamagedArtifact(f"{folder.name} does not fit its description: {error}", field=str(folder)) from error
        if len(table) != head.get("rows"):
            raise DamagedArtifact(f"has {len(table)} rows, its description {head.get('rows')}", field=str(folder))
        return table


def _read_head(folder: Path) -> dict[str, Any]:
    path = folder / "table.json"
    try:
        head: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DamagedArtifact(f"cannot be read: {error}", field=str(path), hint="build the release again") from error
    if not isinstance(head, dict) or head.get("schema_version") != _SCHEMA:
        raise DamagedArtifact(f"is not schema version {_SCHEMA}", field=str(path), hint="build the release again")
    return head


def _read_specs(features: Sequence[dict[str, Any]]) -> tuple[FeatureSpec, ...]:
    return tuple(FeatureSpec(**one) for one in features)


def _map_array(path: Path) -> npt.NDArray[Any]:
    """The array as plain ndarray over a private mapping; kernels then see one type, whether mapped or in memory."""
    try:
        if path.stat().st_size > 0 and 0 in np.load(path, mmap_mode="c", allow_pickle=False).shape:
            return np.load(path, allow_pickle=False)
        return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DamagedArtifact(f"cannot be read: {error}", field=str(path), hint="build the release again") from error
