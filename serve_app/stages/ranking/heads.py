"""Heads: what ranking predicts about a candidate, from boosters, calibrated; and their folder on disk.

A `HeadSet` serves one kind of candidate: it names the features it reads and the heads it gives. A head comes from an
XGBoost booster's output or is a feature as it stands (a score computed when the release was built). `Models` holds the
head set of each surface. Boosters are XGBoost's own binary JSON (.ubj), read from bytes after a checksum, never pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.stages.features import FeaturePlan, FeatureSpec
from serve_app.stages.ranking.calibration import Calibration, identity_calibration, interpolate
from serve_app.stages.ranking.predictor import Predictor
from serve_app.vocabulary import Surface

__all__ = ["Head", "HeadSet", "Models", "load_booster"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_SCHEMA = 1
_REBUILD = "build the release again"


@dataclass(frozen=True, slots=True)
class Head:
    """One calibrated output: column `output` of booster `booster`, or, where booster is -1, the feature `feature`."""

    name: str
    booster: int
    output: int
    calibration: Calibration
    feature: str = ""


@dataclass(frozen=True)
class HeadSet:
    """Boosters over one list of features, and the heads they give.

    features: names in the order of the boosters' columns; the feature `position`, where present, was the slot shown while
    training and is the constant `position` while serving. metrics: offline metrics by head, for the manifest.
    """

    features: tuple[str, ...]
    heads: tuple[Head, ...]
    boosters: tuple[xgboost.Booster, ...]
    position: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for booster in self.boosters:
            if booster.num_features() != len(self.features):
                raise DamagedArtifact(
                    f"booster reads {booster.num_features()} features, its description names {len(self.features)}",
                    field="features",
                    hint=_REBUILD,
                )
        names = [head.name for head in self.heads]
        for head in self.heads:
            if names.count(head.name) > 1:
                raise InvalidInput("is given twice", field=f"head {head.name}")
            if head.booster >= len(self.boosters) or (head.booster < 0 and head.feature not in self.features):
                raise DamagedArtifact("comes from nothing the model holds", field=f"head {head.name}", hint=_REBUILD)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Head names in column order."""
        return tuple(head.name for head in self.heads)

    @classmethod
    def of_feature(cls, name: str, feature: str) -> HeadSet:
        """A head that is a stored score, such as a review's helpfulness."""
        return cls((feature,), (Head(name, -1, 0, identity_calibration(), feature),), ())

    def with_heads_of(self, other: HeadSet) -> HeadSet:
        """Both sets as one; they must read the same features at the same position."""
        if other.features != self.features or other.position != self.position:
            raise InvalidInput("the two head sets read different features", field="features")
        shift = len(self.boosters)
        moved = tuple(
            Head(h.name, h.booster + shift if h.booster >= 0 else -1, h.output, h.calibration, h.feature)
            for h in other.heads
        )
        return HeadSet(
            self.features,
            self.heads + moved,
            self.boosters + other.boosters,
            self.position,
            {**self.metrics, **other.metrics},
        )

    @cached_property
    def _predictors(self) -> tuple[Predictor, ...]:
        return tuple(Predictor(booster) for booster in self.boosters)

    def predict(self, features: F32) -> F32:
        """features f32[m, F] in the order of `self.features` -> calibrated heads f32[m, H]. The bits of a row do not depend
        on m (XGBoost adds a row's trees in order)."""
        out = np.empty((len(features), len(self.heads)), np.float32)
        raw = [predict(features) for predict in self._predictors] if len(features) else []
        for column, head in enumerate(self.heads if len(features) else ()):
            source, at = (raw[head.booster], head.output) if head.booster >= 0 else (features, self._columns[head.feature])
            interpolate(source, at, head.calibration.x, head.calibration.y, out, column)
            if head.booster < 0:  # a model has learnt what a missing value means; a missing stored score is the least
                out[np.isnan(out[:, column]), column] = head.calibration.y[0]
        return out

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.features)}

    def save(self, folder: Path) -> None:
        """Write `heads.json` and one `booster-<i>.ubj` each into `folder` (created)."""
        folder.mkdir(parents=True, exist_ok=True)
        checksums = []
        for index, booster in enumerate(self.boosters):
            raw = bytes(booster.save_raw("ubj"))
            (folder / f"booster-{index}.ubj").write_bytes(raw)
            checksums.append(hashlib.sha256(raw).hexdigest())
        described = [
            {
                "name": head.name,
                "booster": head.booster,
                "output": head.output,
                "feature": head.feature,
                "x": head.calibration.x.tolist(),
                "y": head.calibration.y.tolist(),
            }
            for head in self.heads
        ]
        text = {
            "schema_version": _SCHEMA,
            "features": self.features,
            "position": self.position,
            "boosters": checksums,
            "heads": described,
            "metrics": self.metrics,
        }
        (folder / "heads.json").write_text(json.dumps(text, indent=1, allow_nan=False))

    @classmethod
    def load(cls, folder: Path) -> HeadSet:
        """Read a saved set. DamagedArtifact names the file that is missing, cut short, changed or of another version."""
        text = _read_json(folder / "heads.json")
        try:
            checksums = list(enumerate(text["boosters"]))
            boosters = tuple(load_booster(folder / f"booster-{i}.ubj", sha256) for i, sha256 in checksums)
            heads = tuple(_read_head(one) for one in text["heads"])
            loaded = cls(tuple(text["features"]), heads, boosters, float(text["position"]), text["metrics"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedArtifact(f"lacks or garbles {error}", field=str(folder / "heads.json"), hint=_REBUILD) from error
        assert len(loaded._predictors) == len(boosters)  # made now, not in the first request
        return loaded


@dataclass(frozen=True)
class Models:
    """The head set of each surface; surfaces may share one."""

    by_surface: Mapping[Surface, HeadSet]

    def __getitem__(self, surface: Surface) -> HeadSet:
        if surface not in self.by_surface:
            raise InvalidInput("no model serves this surface", field=f"surface {Surface(surface).name}")
        return self.by_surface[surface]

    def head_names(self) -> dict[str, tuple[str, ...]]:
        """Heads by surface name, as the policy compiler asks for them."""
        return {surface.name: heads.names for surface, heads in self.by_surface.items()}

    def plans(self, provided: Sequence[FeatureSpec]) -> dict[Surface, FeaturePlan]:
        """What each surface's heads read, compiled against what is provided. InvalidInput names a feature nobody
        provides."""
        return {
            surface: FeaturePlan.compile(heads.features, provided, position=heads.position)
            for surface, heads in self.by_surface.items()
        }

    def save(self, folder: Path) -> None:
        """Write `models.json` and one folder per head set."""
        folder.mkdir(parents=True, exist_ok=True)
        places: dict[int, str] = {}
        for surface, heads in self.by_surface.items():
            if id(heads) not in places:
                places[id(heads)] = surface.name
                heads.save(folder / surface.name)
        surfaces = {surface.name: places[id(heads)] for surface, heads in self.by_surface.items()}
        (folder / "models.json").write_text(json.dumps({"schema_version": _SCHEMA, "surfaces": surfaces}, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Models:
        """Read saved models; raises as `HeadSet.load`."""
        text = _read_json(folder / "models.json")
        try:
            places = {Surface[name]: str(place) for name, place in text["surfaces"].items()}
        except (AttributeError, KeyError) as error:
            raise DamagedArtifact(f"lacks or garbles {error}", field=str(folder / "models.json"), hint=_REBUILD) from error
        known = {surface.name for surface in Surface}
        if not set(places.values()) <= known:
            raise DamagedArtifact("names a folder outside itself", field=str(folder / "models.json"), hint=_REBUILD)
        sets = {place: HeadSet.load(folder / place) for place in sorted(set(places.values()))}
        return cls({surface: sets[place] for surface, place in places.items()})


def load_booster(path: Path, sha256: str) -> xgboost.Booster:
    """A booster from a .ubj file whose bytes have this SHA-256. (XGBoost reads some truncated files without a word.)"""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DamagedArtifact(f"cannot be read: {error}", field=str(path), hint=_REBUILD) from error
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise DamagedArtifact("is not the file its description was written for", field=str(path), hint=_REBUILD)
    try:
        booster = xgboost.Booster()
        booster.load_model(bytearray(raw))
    except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
        raise DamagedArtifact(f"is no XGBoost model: {error}", field=str(path), hint=_REBUILD) from error
    return booster


def _read_head(one: Mapping[str, Any]) -> Head:
    knots = Calibration(np.array(one["x"], np.float64), np.array(one["y"], np.float64))
    return Head(str(one["name"]), int(one["booster"]), int(one["output"]), knots, str(one["feature"]))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DamagedArtifact(f"cannot be read: {error}", field=str(path), hint=_REBUILD) from error
    if not isinstance(text, dict) or text.get("schema_version") != _SCHEMA:
        raise DamagedArtifact(f"is not schema version {_SCHEMA}", field=str(path), hint=_REBUILD)
    return text
