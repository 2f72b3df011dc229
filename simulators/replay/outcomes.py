"""The outcome model of a replay: fitted before the pass on a seeded sample of users, saved beside the parts.

Bucket groups hold users by a hash, so the users of some groups, drawn by a seeded hash, are a sample of all. Each row is
predicted by the model of the fold that its user is not in (`simulators.estimators.outcome_model`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from serve_app.errors import InvalidInput
from serve_app.log.fingerprint import code_version
from serve_app.log.reader import BucketGroup, bucket_groups
from serve_app.noise import hash_key, salt_of
from simulators.estimators.outcome_model import OutcomeModel, OutcomeSettings, fit_outcome_model, load_outcome_model
from simulators.replay.analytic import first_sends
from simulators.replay.counts import Window
from simulators.replay.outcome_features import FeaturePlan, features_of, plan_from, recent_sends
from simulators.replay.partition import TABLES_READ, Partition, read_partition
from simulators.replay.rewards import METRICS, attributed
from simulators.replay.spec import OutcomeFit, ReplaySpec

__all__ = ["NEEDS_MODEL", "Predicted", "predictions", "with_outcome_model"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

NEEDS_MODEL = frozenset({"dr", "sndr", "roll-out"})
_MODELLED = ("clicks", "conversions", "revenue", "opt_outs")
_PLACES = [METRICS.index(one) for one in _MODELLED]
_SENDS = 40_000  # more make the fit slower and no better
_SETTINGS = OutcomeSettings(kind="logistic", l2=10.0)
_GROUP = salt_of("replay.outcome.group")


def with_outcome_model(spec: ReplaySpec, out: Path) -> ReplaySpec:
    """The same replay, with the outcome model its estimators need, fitted unless `out` holds it already. A log with too few
    sends to fit one is replayed without the estimators that need it."""
    if not NEEDS_MODEL & set(spec.estimators):
        return spec
    groups = bucket_groups(spec.data, TABLES_READ)
    folder = out / "outcome" / _key(spec, groups)
    if not (folder / "outcome.json").is_file():
        model = _fitted(spec, groups)
        if model is None:
            return replace(spec, estimators=tuple(one for one in spec.estimators if one not in NEEDS_MODEL))
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
        model.save(aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    checksum = hashlib.sha256((folder / "outcome.json").read_bytes()).hexdigest()
    return replace(spec, outcome=OutcomeFit(str(folder.resolve()), checksum))


def _key(spec: ReplaySpec, groups: Sequence[BucketGroup]) -> str:
    files = sorted(Path(path).name for group in groups for some in group.files.values() for path in some)
    said = [files, spec.start, spec.end, spec.attribution_us, spec.log_end, code_version()]
    return hashlib.sha256(orjson.dumps(said)).hexdigest()[:20]


def _fitted(spec: ReplaySpec, groups: Sequence[BucketGroup]) -> OutcomeModel | None:
    """None: too few sends."""
    drawn = sorted(groups, key=lambda group: int(hash_key(_GROUP, group.low)[0]))
    plan: FeaturePlan | None = None
    users: list[U64] = []
    features: list[F32] = []
    rewards: list[F64] = []
    for group in drawn:
        whole = read_partition(group, start_at=spec.start)
        partition = whole.without(whole.bots())
        sends = _sends_to_learn_from(partition, spec)
        if not len(sends):
            continue
        asked = partition.asked
        plan = plan or plan_from(asked.batch.meta["heads"], asked, sends)
        owner = asked.batch.owner[sends]
        users.append(asked.batch.requests["user"][owner])
        features.append(features_of(asked, recent_sends(asked, partition.start), plan, sends))
        rewards.append(attributed(asked, partition.events, spec.attribution_us)[owner][:, _PLACES])
        if sum(map(len, users)) >= _SENDS:
            break
    if plan is None or sum(map(len, users)) < 100:
        return None
    try:
        return fit_outcome_model(
            np.concatenate(users), np.concatenate(features), np.concatenate(rewards),
            feature_names=plan.names, metrics=_MODELLED, settings=_SETTINGS,
        )  # fmt: skip
    except InvalidInput:  # a fold without users
        return None


def _sends_to_learn_from(partition: Partition, spec: ReplaySpec) -> I64:
    """Places of single sends in the window, old enough for their rewards to be complete; of at most about _SENDS users."""
    asked, at = partition.asked, partition.asked.batch.requests["decided_at"]
    first = first_sends(asked)
    counts = np.bincount(asked.batch.owner[asked.logged_candidates["slot"] >= 0], minlength=len(asked))
    inside = Window(spec.start, spec.end).holds(at) & (at + spec.attribution_us <= spec.log_end)
    rows = np.flatnonzero(inside & (first >= 0) & (counts == 1))
    if len(rows) > _SENDS:
        last = asked.batch.requests["user"][rows[_SENDS - 1]]
        rows = rows[asked.batch.requests["user"][rows] <= last]
    return first[rows]


class Predicted:
    """What a model expects of a partition's sends. Columns of values are METRICS."""

    def __init__(self, partition: Partition, fit: OutcomeFit) -> None:
        self._asked, self._model = partition.asked, _loaded(fit.folder, fit.checksum)
        self._plan = FeaturePlan.of(self._model.features)
        self._recent = recent_sends(partition.asked, partition.start)

    def of(self, places: I64) -> F64:
        """f64[k, METRICS] of sending each candidate."""
        owner = self._asked.batch.owner[places]
        out = np.ones((len(places), len(METRICS)))
        users = self._asked.batch.requests["user"][owner]
        out[:, _PLACES] = np.maximum(
            self._model.predict(users, features_of(self._asked, self._recent, self._plan, places)), 0
        )
        return out


def predictions(predicted: Predicted, partition: Partition, rows: I64, choices: Sequence[F64]) -> tuple[F64, F64]:
    """(q_logged f64[r, METRICS], q_target f64[r, P, METRICS]) of the logged requests `rows`: of what was sent, and the mean
    over what each policy may choose, none being worth nothing. choices: f64[candidates] of each policy."""
    asked = partition.asked
    first = first_sends(asked)[rows]
    inside = np.zeros(len(asked), np.bool_)
    inside[rows] = True
    wanted = np.zeros(asked.batch.candidates.rows, np.bool_)
    for one in choices:
        wanted |= one > 0
    wanted &= inside[asked.batch.owner]
    wanted[first[first >= 0]] = True
    places = np.flatnonzero(wanted)
    q, owner = predicted.of(places), asked.batch.owner[places]
    q_logged = np.zeros((len(rows), len(METRICS)))
    q_logged[first >= 0] = q[np.searchsorted(places, first[first >= 0])]
    q_target = np.empty((len(rows), len(choices), len(METRICS)))
    for p, one in enumerate(choices):
        share = one[places]
        for m in range(len(METRICS)):
            q_target[:, p, m] = np.bincount(owner, weights=share * q[:, m], minlength=len(asked))[rows]
    return q_logged, q_target


@lru_cache(maxsize=4)
def _loaded(folder: str, checksum: str) -> OutcomeModel:
    del checksum  # the files are checked against their own; this names the version
    return load_outcome_model(Path(folder))
