"""The outcome model (q-hat): expected rewards of a choice, cross-fitted over users; what DM, DR and their kin need.

It is fitted before the evaluation pass on a seeded sample of users. Users fall into K = 3 folds by hash; the model of fold k
has seen no user of fold k, so a row is always predicted by a model that never saw its user (cross-fitting: Chernozhukov et
al. 2018, "Double/debiased machine learning"). Only what was known at decision time may enter: features come with the time
they were known at, and a later one is an error. Saved as XGBoost's JSON with a checksum, never pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.noise import hash_key, salt_of, uniform
from simulators.estimators.logistic import LogisticModel, fit_logistic, load_logistic, save_logistic

if TYPE_CHECKING:
    import xgboost

__all__ = ["OutcomeModel", "OutcomeSettings", "fit_outcome_model", "load_outcome_model", "sampled_users"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

_SCHEMA = 1
_FOLD, _SAMPLE = salt_of("estimators.outcome.fold"), salt_of("estimators.outcome.sample")


@dataclass(frozen=True, slots=True)
class OutcomeSettings:
    """folds K; share of users the fit sees; kind: `trees` (XGBoost) or `logistic` (0 / 1 rewards only; linear otherwise)."""

    folds: int = 3
    sample: float = 1.0
    seed: int = 0
    kind: str = "trees"
    trees: int = 60
    depth: int = 5
    learning_rate: float = 0.1
    min_child_weight: float = 1.0
    l2: float = 1.0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise InvalidInput(f"{self.folds}", field="folds", hint="cross-fitting needs two at least")
        if not 0 < self.sample <= 1:
            raise InvalidInput(f"{self.sample}", field="sample", hint="a share of users in (0, 1]")
        if self.kind not in ("trees", "logistic"):
            raise InvalidInput(f"{self.kind!r}", field="kind", hint="trees or logistic")


def fold_of(users: U64, settings: OutcomeSettings) -> I64:
    """i64[n]: the fold of each user."""
    return (hash_key(_FOLD, settings.seed, users) % np.uint64(settings.folds)).astype(np.int64)


def sampled_users(users: U64, settings: OutcomeSettings) -> Bool:
    """bool[n]: whose rows the fit sees."""
    return np.asarray(uniform(hash_key(_SAMPLE, settings.seed, users)) < settings.sample)


class OutcomeModel:
    """K models a metric. predict(users, features) -> f64[n, M] of a choice described by its features."""

    def __init__(
        self,
        settings: OutcomeSettings,
        features: Sequence[str],
        metrics: Sequence[str],
        models: Sequence[Sequence[xgboost.Booster | LogisticModel]],
    ) -> None:
        """models: [fold][metric]."""
        self.settings, self.features, self.metrics = settings, tuple(features), tuple(metrics)
        self._models = [list(row) for row in models]

    def predict(self, users: U64, features: npt.ArrayLike) -> F64:
        """f64[n, M]: by the model that saw no row of the user's fold. features f32[n, F] of any choice, logged or not."""
        matrix = _matrix(features, len(self.features))
        fold = fold_of(np.asarray(users, np.uint64), self.settings)
        out = np.empty((len(matrix), len(self.metrics)))
        for k, row in enumerate(self._models):
            mine = np.flatnonzero(fold == k)
            if len(mine):
                for m, model in enumerate(row):
                    out[mine, m] = _predicted(model, matrix[mine])
        return out

    def save(self, folder: Path) -> str:
        """Write model files and `outcome.json` with their checksums; returns the checksum of that file (SHA-256)."""
        folder.mkdir(parents=True, exist_ok=True)
        files: dict[str, str] = {}
        for k, row in enumerate(self._models):
            for m, model in enumerate(row):
                linear = isinstance(model, LogisticModel)
                data = save_logistic(model) if isinstance(model, LogisticModel) else bytes(model.save_raw("ubj"))
                name = f"fold-{k}.metric-{m}.{'json' if linear else 'ubj'}"
                (folder / name).write_bytes(data)
                files[name] = hashlib.sha256(data).hexdigest()
        head = {"schema": _SCHEMA, "settings": asdict(self.settings), "features": self.features, "metrics": self.metrics}
        text = json.dumps({**head, "files": files}, indent=1, sort_keys=True)
        (folder / "outcome.json").write_text(text)
        return hashlib.sha256(text.encode()).hexdigest()


def fit_outcome_model(
    users: U64,
    features: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    feature_names: Sequence[str],
    metrics: Sequence[str],
    settings: OutcomeSettings | None = None,
    known_at: npt.ArrayLike | None = None,
    decided_at: npt.ArrayLike | None = None,
    weight: npt.ArrayLike | None = None,
) -> OutcomeModel:
    """Fit on rows of logged choices.

    users u64[n]; features f32[n, F] of the choice and its context, NaN where missing; reward f64[n, M]; known_at i64[n] or
    i64[n, F]: when the features were known, with decided_at i64[n]: a later one is InvalidInput. weight f64[n]: of rows.
    Same arguments, same model. InvalidInput also where a fold has no rows to learn from.
    """
    settings = settings or OutcomeSettings()
    matrix, y = _matrix(features, len(feature_names)), np.asarray(reward, np.float64).reshape(len(users), len(metrics))
    _only_the_past(known_at, decided_at, feature_names)
    own = np.ascontiguousarray(users, np.uint64)
    fold, seen = fold_of(own, settings), sampled_users(own, settings)
    mass = np.ones(len(own)) if weight is None else np.asarray(weight, np.float64)
    models: list[list[xgboost.Booster | LogisticModel]] = []
    for k in range(settings.folds):
        rows = np.flatnonzero(seen & (fold != k))
        if not len(rows):
            raise InvalidInput(f"no row to fit fold {k} on", field="users", hint="give more users, or a larger sample")
        models.append([_fitted(matrix[rows], y[rows, m], mass[rows], settings) for m in range(len(metrics))])
    return OutcomeModel(settings, feature_names, metrics, models)


def load_outcome_model(folder: Path) -> OutcomeModel:
    """From `save`. DamagedArtifact where a file is absent or does not match its checksum."""
    try:
        head = json.loads((folder / "outcome.json").read_text())
    except (OSError, ValueError) as error:
        raise DamagedArtifact(str(error), field="outcome.json", hint="fit the outcome model again") from error
    if head.get("schema") != _SCHEMA:
        raise DamagedArtifact(f"schema {head.get('schema')}, expected {_SCHEMA}", field="outcome.json")
    settings = OutcomeSettings(**head["settings"])
    found: dict[str, xgboost.Booster | LogisticModel] = {}
    for name, checksum in head["files"].items():
        data = (folder / name).read_bytes() if (folder / name).is_file() else b""
        if hashlib.sha256(data).hexdigest() != checksum:
            raise DamagedArtifact("absent or not what was saved", field=name, hint="fit the outcome model again")
        found[name] = _booster(data) if name.endswith(".ubj") else load_logistic(data)
    end = "ubj" if settings.kind == "trees" else "json"
    models = [[found[f"fold-{k}.metric-{m}.{end}"] for m in range(len(head["metrics"]))] for k in range(settings.folds)]
    return OutcomeModel(settings, head["features"], head["metrics"], models)


def _fitted(x: F32, y: F64, mass: F64, settings: OutcomeSettings) -> xgboost.Booster | LogisticModel:
    binary = bool(((y == 0) | (y == 1)).all())
    if settings.kind == "logistic":
        return fit_logistic(x, y, mass, l2=settings.l2, binary=binary)
    import xgboost

    parameters = {
        "objective": "binary:logistic" if binary and 0 < y.mean() < 1 else "reg:squarederror",
        "max_depth": settings.depth, "eta": settings.learning_rate, "min_child_weight": settings.min_child_weight,
        "lambda": settings.l2, "nthread": settings.threads, "seed": settings.seed, "tree_method": "hist",
        "base_score": float(np.clip(np.average(y, weights=mass), 1e-6, 1 - 1e-6)) if binary else float(y.mean()),
    }  # fmt: skip
    return xgboost.train(parameters, xgboost.DMatrix(x, y, weight=mass, nthread=settings.threads), settings.trees)


def _predicted(model: xgboost.Booster | LogisticModel, x: F32) -> F64:
    if isinstance(model, LogisticModel):
        return model.predict(x)
    return np.asarray(model.inplace_predict(x), np.float64)


def _booster(data: bytes) -> xgboost.Booster:
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(bytearray(data))
    return booster


def _matrix(features: npt.ArrayLike, width: int) -> F32:
    out = np.ascontiguousarray(features, np.float32)
    if out.ndim != 2 or out.shape[1] != width:
        raise InvalidInput(f"has shape {out.shape}, expected (n, {width})", field="features")
    return out


def _only_the_past(known_at: npt.ArrayLike | None, decided_at: npt.ArrayLike | None, names: Sequence[str]) -> None:
    if (known_at is None) != (decided_at is None):
        raise InvalidInput("`known_at` and `decided_at` go together", field="decided_at")
    if known_at is None or decided_at is None:
        return
    known = np.asarray(known_at, np.int64)
    late = (known if known.ndim == 2 else known[:, None]) > np.asarray(decided_at, np.int64)[:, None]
    if late.any():
        column = int(np.flatnonzero(late.any(axis=0))[0])
        name = names[column] if known.ndim == 2 else "features"
        raise InvalidInput("was known only after the decision in some row", field=name,
                           hint="an outcome model may see only what the decision could")  # fmt: skip
