"""The chain as a user would write it at its leanest, over the files of a release: nearest neighbours, a gather of feature
rows, XGBoost, a sort. No filters beyond what was excluded, no calibration, no diversity, no propensities, no log.

Needs numpy, xgboost, pyarrow and (for large catalogues) scann; nothing of this project, so it runs in any environment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import xgboost

__all__ = ["CANDIDATES", "Lean", "dealt"]

CANDIDATES = 200
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
_WEIGHTS = {"p_click": 1.0, "p_convert": 4.0, "p_optout": -8.0, "uplift": 2.0}
_THRESHOLD, _MOST_SENDS = 0.005, 3


class _Surface:
    """One surface's booster, and where each of its features stands in the entity tables."""

    def __init__(self, folder: Path, tables: dict[str, _Table]) -> None:
        heads = json.loads((folder / "heads.json").read_text())
        self.booster = xgboost.Booster(model_file=str(folder / "booster-0.ubj"))
        self.booster.set_param({"nthread": 1})
        self.width = len(heads["features"])
        outputs = [(one["name"], one["output"]) for one in heads["heads"] if one["booster"] == 0]
        self.outputs = [output for _, output in outputs]
        self.weights = np.array([_WEIGHTS.get(name, 1.0) for name, _ in outputs], np.float32)
        self.places = {
            kind: np.array(
                [(at, table.names.index(name)) for at, name in enumerate(heads["features"]) if name in table.names]
            )
            for kind, table in tables.items()
        }

    def matrix(self, rows: int) -> F32:
        return np.full((rows, self.width), np.nan, np.float32)

    def fill(self, matrix: F32, kind: str, values: F32) -> None:
        """values: rows of one entity's table, or one row for all."""
        places = self.places[kind]
        if len(places):
            matrix[:, places[:, 0]] = values[..., places[:, 1]]

    def value(self, matrix: F32) -> F32:
        scores = self.booster.inplace_predict(matrix).reshape(len(matrix), -1)
        return np.asarray(scores[:, self.outputs] @ self.weights)


class _Table:
    """Features of one kind of entity."""

    def __init__(self, folder: Path) -> None:
        self.names = [one["name"] for one in json.loads((folder / "table.json").read_text())["features"]]
        self.keys, self.values = np.load(folder / "keys.npy"), np.load(folder / "values.npy")

    def rows(self, keys: npt.NDArray[np.uint64]) -> I64:
        """Row of each key; 0 where it is unknown."""
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, 0)


class Lean:
    """A release, loaded. Every method answers one request with plain values."""

    def __init__(self, release: Path) -> None:
        retrieval, catalogue = release / "retrieval", release / "catalogue"
        self.vectors = np.load(retrieval / "vectors.npy").astype(np.float32)
        self._index = _scann(retrieval / "scann")
        tables = {path.name: _Table(path) for path in (release / "features").iterdir()}
        self._tables = tables
        self._surface = {
            n: _Surface(release / "models" / n, tables) for n in ("related", "gateway", "widgets", "notification")
        }
        ids = pq.read_table(catalogue / "items.parquet", columns=["item_id", "item"]).to_pylist()
        place = {one["item"]: one["item_id"] for one in ids}
        hashes = np.load(retrieval / "item_hashes.npy")
        self.items = [place[one] for one in hashes.tolist()]
        self._row = {name: row for row, name in enumerate(self.items)}
        self._item_features = tables["item"].values[tables["item"].rows(hashes)]
        users = pq.read_table(catalogue / "users.parquet", columns=["user_id", "user"])
        self._user = dict(zip(users["user_id"].to_pylist(), range(len(users)), strict=True))
        self._user_features = tables["user"].values[tables["user"].rows(users["user"].to_numpy())]
        self._recents = np.load(release / "histories" / "recent_items.npy")
        self._recent_offsets = np.load(release / "histories" / "recent_offsets.npy")
        widgets = pq.read_table(catalogue / "widgets.parquet", columns=["widget_id", "title"]).to_pylist()
        self._widgets = [(one["widget_id"], one["title"]) for one in widgets]
        campaigns = pq.read_table(catalogue / "campaigns.parquet").to_pylist()
        own = tables["campaign"].values
        self._campaigns = {one["campaign_id"]: (n % len(own), one["channels"]) for n, one in enumerate(campaigns)}
        self.sent: dict[str, int] = {}

    def neighbours(self, queries: F32, count: int) -> I64:
        """The nearest items of each query, i64[n, count]."""
        if self._index is not None:
            found, _ = self._index.search_batched(queries, final_num_neighbors=count)
            return np.asarray(found, np.int64)
        scores = queries @ self.vectors.T
        count = min(count, scores.shape[1])
        best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        return np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1), 1)

    def retrieve(self, item: str, exclude: list[str]) -> I64:
        """Candidates of a product."""
        row = self._row[item]
        found = self.neighbours(self.vectors[row : row + 1], CANDIDATES + 1)[0]
        banned = {row, *(self._row[one] for one in exclude if one in self._row)}
        return found[~np.isin(found, list(banned))][:CANDIDATES]

    def taste(self, user: str | None) -> I64:
        """Candidates of a user's page."""
        at = self._user.get(user or "", -1)
        recent = self._recents[self._recent_offsets[at] : self._recent_offsets[at + 1]] if at >= 0 else self._recents[:10]
        query = self.vectors[recent].mean(axis=0, keepdims=True) if len(recent) else self.vectors[:1]
        return self.neighbours(query, CANDIDATES)[0]

    def features(self, surface: str, rows: I64, user: str | None) -> F32:
        """The matrix of a list's candidates."""
        own = self._surface[surface]
        matrix = own.matrix(len(rows))
        own.fill(matrix, "item", self._item_features[rows])
        if (at := self._user.get(user or "", -1)) >= 0:
            own.fill(matrix, "user", self._user_features[at])
        return matrix

    def rank(self, surface: str, rows: I64, matrix: F32, slots: int) -> list[str]:
        """Ids, best first."""
        best = np.argsort(-self._surface[surface].value(matrix))[:slots]
        return [self.items[row] for row in rows[best].tolist()]

    def related(self, item: str, user: str | None, exclude: list[str], slots: int) -> list[str]:
        """Products related to one."""
        rows = self.retrieve(item, exclude)
        return self.rank("related", rows, self.features("related", rows, user), slots)

    def gateway(self, user: str | None, widgets: int, slots: int) -> list[dict[str, Any]]:
        """A page: the best products dealt to the widgets, whose order has a model of its own."""
        order = self.order(widgets)
        rows = self.taste(user)
        items = self.rank("gateway", rows, self.features("gateway", rows, user), widgets * slots)
        return dealt(order, items, slots)

    def order(self, widgets: int) -> list[dict[str, str]]:
        """The page's widgets, best first."""
        own = self._surface["widgets"]
        matrix = own.matrix(len(self._widgets))
        own.fill(matrix, "widget", self._tables["widget"].values[: len(self._widgets)])
        best = [self._widgets[at] for at in np.argsort(-own.value(matrix))[:widgets].tolist()]
        return [{"id": name, "title": title} for name, title in best]

    def decide(self, user: str, candidates: list[dict[str, Any]]) -> dict[str, Any]:
        """Send the best message above the threshold, unless the user has had enough."""
        return self.choose(user, candidates, self.message_features(user, candidates))

    def message_features(self, user: str, candidates: list[dict[str, Any]]) -> F32:
        """The matrix of a decision's candidates."""
        own = self._surface["notification"]
        rows = np.array([self._campaigns[one["campaign"]][0] for one in candidates])
        matrix = own.matrix(len(rows))
        own.fill(matrix, "campaign", self._tables["campaign"].values[rows])
        if (at := self._user.get(user, -1)) >= 0:
            own.fill(matrix, "user", self._user_features[at])
        return matrix

    def choose(self, user: str, candidates: list[dict[str, Any]], matrix: F32) -> dict[str, Any]:
        """The decision, from its candidates' features."""
        values = self._surface["notification"].value(matrix)
        best = int(np.argmax(values))
        if values[best] < _THRESHOLD or self.sent.get(user, 0) >= _MOST_SENDS:
            return {"action": "suppress", "campaign": None, "channel": None}
        self.sent[user] = self.sent.get(user, 0) + 1
        chosen = candidates[best]
        return {"action": "send", "campaign": chosen["campaign"],
                "channel": chosen.get("channel") or self._campaigns[chosen["campaign"]][1][0]}  # fmt: skip


def dealt(order: list[dict[str, str]], items: list[str], slots: int) -> list[dict[str, Any]]:
    """Widgets with the items that fall to each."""
    return [{**widget, "items": items[n * slots : (n + 1) * slots]} for n, widget in enumerate(order)]


def _scann(folder: Path) -> Any:
    if not folder.is_dir():
        return None
    from scann.scann_ops.py import scann_ops_pybind

    return scann_ops_pybind.load_searcher(str(folder))
