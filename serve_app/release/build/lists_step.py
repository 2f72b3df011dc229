"""Step `figures`: the lists a release would have served in the measured span, against what followed, and two baselines.

The stages are those that serve; tables end where the span begins, features are as of each request, heads were trained on the
span before. Lists are the best by value (no exploration), as a policy's temperature would only blur the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Ragged
from serve_app.policy.document import DEFAULT_POLICY, load_policy
from serve_app.release.build.baselines import CoOccurrence, last_items, popularity_lists
from serve_app.release.build.figures import clustered_mean, list_figures, score_figures, top_lists
from serve_app.release.build.interactions import Sessions
from serve_app.release.build.next_items import NextItems, labels
from serve_app.release.build.outcomes import Outcomes
from serve_app.release.build.slates import shown_rows
from serve_app.release.build.training import ITEM_PROVIDED, History, as_of_features
from serve_app.release.manifest import Metric
from serve_app.stages.features import FeaturePlan
from serve_app.stages.ranking.heads import HeadSet
from serve_app.stages.retrieval.stage import Retrieval
from serve_app.stages.stage import Context
from serve_app.vocabulary import DropReason, Surface

__all__ = ["head_weights", "measure_lists", "measure_shown"]

I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]

LENGTH = 20
_CHUNK = 400
_RECENT_SHARE = 0.1  # best-sellers of the last tenth of the sessions: a stronger baseline than all-time ones
_SEEDS = 20


def head_weights(surface: Surface) -> Mapping[str, float]:
    """Weight of each head in the value of an item, by the policy that stands where nobody promoted another."""
    weights: Mapping[str, float] = load_policy(DEFAULT_POLICY).surfaces.by_name(surface.name).head_weights  # type: ignore[arg-type]
    return weights


@dataclass(slots=True)
class _Seen:
    """What one chunk gave."""

    lists: dict[str, I32]
    heads: npt.NDArray[np.float32]
    labels: dict[str, npt.NDArray[np.bool_]]
    user: I32
    found: int


def measure_lists(
    examples: NextItems, retrieval: Retrieval, heads: HeadSet, history: History, past: Sessions, width: int
) -> dict[str, dict[str, Metric]]:
    """Figures by group: `<surface>` (ours), `<surface>.popularity`, `<surface>.co_occurrence`, `<surface>.ahead` (ours minus
    the better baseline, paired), `<surface>.<head>`."""
    name = examples.surface.name
    if len(examples) == 0:
        return {}
    plan = FeaturePlan.compile(heads.features, ITEM_PROVIDED, position=heads.position)
    co = CoOccurrence(past, len(history.rows.items))
    seen = [_run(chunk, retrieval, heads, plan, history, past, co, width) for chunk in examples.chunks(_CHUNK)]
    values = {
        who: list_figures(np.concatenate([one.lists[who] for one in seen]), examples.relevant) for who in seen[0].lists
    }
    groups = {
        name: {f"{one}@{LENGTH}": clustered_mean(v, examples.user) for one, v in values["ours"].items()},
        **{
            f"{name}.{who}": {f"{one}@{LENGTH}": clustered_mean(v, examples.user) for one, v in values[who].items()}
            for who in ("popularity", "co_occurrence")
        },
        f"{name}.ahead": _ahead(values, examples.user),
    }
    groups[name]["candidate_recall"] = Metric(
        value=sum(one.found for one in seen) / max(len(examples.relevant.values), 1), cases=len(examples)
    )
    # Heads trained on shown slots are judged on shown slots (see measure_shown); on what followed, their level is another.
    return groups if "position" in heads.features else {**groups, **_head_figures(name, heads, seen)}


def measure_shown(
    shown: Outcomes, surface: Surface, retrieval: Retrieval, heads: HeadSet, history: History, width: int
) -> dict[str, dict[str, Metric]]:
    """Figures of each head on logged slots of the measured span, every row at the slot it was shown in."""
    if len(shown) == 0 or "position" not in heads.features:
        return {}
    names = [name for name in heads.features if name != "position"]
    rows = shown_rows(shown, surface, retrieval, FeaturePlan.compile(names, ITEM_PROVIDED), history, width)
    scores = heads.predict(np.insert(rows.features, heads.features.index("position"), rows.slot, axis=1)).astype(np.float64)
    users = history.rows.user_rows(rows.group)
    actual = {"p_click": rows.clicked, "p_convert": rows.bought}
    return {
        f"{surface.name}.{name}": dict(score_figures(scores[:, heads.names.index(name)], label, users))
        for name, label in actual.items()
    }


def _run(
    chunk: NextItems, retrieval: Retrieval, heads: HeadSet, plan: FeaturePlan, history: History, past: Sessions,
    co: CoOccurrence, width: int,
) -> _Seen:  # fmt: skip
    requests = chunk.requests(history.people, history.sequences, width)
    batch = retrieval.run(requests, Context())
    batch = as_of_features(batch.select(batch.candidates["drop_reason"] == DropReason.kept), plan, history)
    scores = heads.predict(batch.candidates["features"])
    value = np.zeros(len(scores))
    for head, weight in head_weights(chunk.surface).items():
        value += weight * scores[:, heads.names.index(head)]
    everything = np.ones(len(value), np.bool_)
    seeds: Ragged = chunk.prefix if chunk.surface == Surface.related else last_items(requests, _SEEDS)
    clicked = labels(batch, chunk.relevant)
    return _Seen(
        {
            "ours": top_lists(batch.candidates["item"], value, batch.offsets, everything, LENGTH),
            "popularity": popularity_lists(past, len(history.rows.items), chunk.prefix, LENGTH, _RECENT_SHARE),
            "co_occurrence": co.lists(seeds, chunk.prefix, LENGTH),
        },
        scores,
        {"p_click": clicked, "p_convert": labels(batch, chunk.relevant, chunk.bought)},
        _users(batch),
        int(clicked.sum()),
    )


def _users(batch: Batch) -> I32:
    users: I32 = batch.requests["user_row"][batch.owner]
    return users


def _ahead(values: Mapping[str, Mapping[str, F64]], users: I32) -> dict[str, Metric]:
    out = {}
    for one, own in values["ours"].items():
        others = [values[who][one] for who in ("popularity", "co_occurrence")]
        best = max(others, key=lambda figure: float(figure.mean()))
        out[f"{one}@{LENGTH}"] = clustered_mean(own - best, users)
    return out


def _head_figures(name: str, heads: HeadSet, seen: list[_Seen]) -> dict[str, dict[str, Metric]]:
    if not heads.boosters:
        return {}
    users = np.concatenate([one.user for one in seen])
    out = {}
    for head in heads.names:
        p = np.concatenate([one.heads[:, heads.names.index(head)] for one in seen]).astype(np.float64)
        out[f"{name}.{head}"] = dict(score_figures(p, np.concatenate([one.labels[head] for one in seen]), users))
    return out
