"""The arrays retrieval serves from: built from sessions, saved as plain .npy files, loaded memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.stages.retrieval.covisit import Covisits, build_covisits
from serve_app.stages.retrieval.embeddings import build_embeddings, category_means
from serve_app.stages.retrieval.neighbours import EXACT_BELOW, Neighbours, build_scann, load_neighbours
from serve_app.stages.retrieval.popular import Popular, build_popular
from serve_app.stages.retrieval.session_training import SessionEmbedding, train_session_embedding
from serve_app.stages.retrieval.sessions import SessionIndex, build_session_index

__all__ = ["RetrievalBuild", "RetrievalTables", "SessionLog"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class SessionLog:
    """Sessions, oldest first: items i32[k] (item rows, click order), offsets i64[s + 1], region i32[s] (index into the
    release's regions; -1 unknown), weight f32[k] (strength of each interaction, for popularity)."""

    items: I32
    offsets: I64
    region: I32
    weight: F32


@dataclass(frozen=True, slots=True)
class RetrievalBuild:
    """Settings of a build. `embedding`: "svd" (quick, order-free: baskets, small logs) or "session" (learned on
    click order)."""

    embedding: Literal["svd", "session"] = "svd"
    dimensions: int = 64
    window: int = 12
    neighbours: int = 128
    follow_decay: float = 0.75
    covisit_decay: float = 0.85
    recency: float = 1.5
    popular_length: int = 200
    popular_recent_share: float = 0.25
    epochs: int = 5
    seed: int = 0


_ARRAYS = (
    "item_hashes", "item_category", "available", "category_hashes", "vectors", "category_vectors", "last_map", "mean_map",
    "step_weights", "item_idf", "session_prior",
)  # fmt: skip
_GROUPS: dict[str, type] = {"follow": Covisits, "covisits": Covisits, "sessions": SessionIndex, "popular": Popular}


@dataclass(frozen=True, slots=True)
class RetrievalTables:
    """item_hashes u64[n], item_category i32[n] (-1: none), available bool[n], category_hashes u64[c], vectors f32[n, d] unit
    rows, category_vectors f32[c + 1, d] (cold start; last row for no category), query maps, item_idf f32[n] (rarity),
    session_prior f32[s], co-visits, sessions, popularity, `regions` names in the order of popularity's
    rows, `neighbours` the search over vectors."""

    item_hashes: U64
    item_category: I32
    available: npt.NDArray[np.bool_]
    category_hashes: U64
    vectors: F32
    category_vectors: F32
    last_map: F32
    mean_map: F32
    step_weights: F32
    item_idf: F32
    session_prior: F32
    follow: Covisits
    covisits: Covisits
    sessions: SessionIndex
    popular: Popular
    regions: tuple[str, ...]
    neighbours: Neighbours

    @classmethod
    def build(
        cls,
        log: SessionLog,
        folder: Path,
        *,
        item_hashes: U64,
        item_category: I32,
        available: npt.NDArray[np.bool_],
        category_hashes: U64,
        regions: Sequence[str],
        settings: RetrievalBuild | None = None,
        start: SessionEmbedding | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> RetrievalTables:
        """Build from sessions, write to `folder` (must be empty or absent) and load from there. start: an earlier session
        embedding (`session_embedding`) over the first of these items, from which training goes on.

        Raises InvalidInput for an empty catalogue and rows outside it.
        """
        settings = settings or RetrievalBuild()
        count = len(item_hashes)
        if count == 0:
            raise InvalidInput("the catalogue has no items", field="items", hint="import or generate a catalogue first")
        if len(log.items) and (log.items.min() < 0 or log.items.max() >= count):
            raise InvalidInput("sessions hold item rows outside the catalogue", field="items")
        progress("session index")
        index = build_session_index(log.items, log.offsets, count)
        progress("co-visitation")
        common = {"window": settings.window, "recency": settings.recency, "neighbours": settings.neighbours}
        follow = build_covisits(index, decay=settings.follow_decay, forward=True, **common)  # type: ignore[arg-type]
        covisits = build_covisits(index, decay=settings.covisit_decay, forward=False, **common)  # type: ignore[arg-type]
        progress("embeddings")
        embedding = _embed(log, covisits, item_category, len(category_hashes), settings, start, progress)
        progress("popularity")
        popular = _popularity(log, item_category, len(regions), len(category_hashes), settings)
        occurrences = np.diff(index.item_offsets)
        arrays: dict[str, npt.NDArray[Any]] = {
            "item_hashes": item_hashes,
            "item_category": item_category,
            "available": available,
            "category_hashes": category_hashes,
            "vectors": embedding.vectors,
            "category_vectors": category_means(embedding.vectors, item_category, len(category_hashes)),
            "last_map": embedding.last_map,
            "mean_map": embedding.mean_map,
            "step_weights": embedding.step_weights,
            "item_idf": np.log(max(len(log.offsets) - 1, 1) / (occurrences + 1.0)).clip(0.05).astype(np.float32),
            "session_prior": _session_prior(log.offsets),
        }
        progress("nearest-neighbour index")
        _save(folder, arrays, {"follow": follow, "covisits": covisits, "sessions": index, "popular": popular}, regions)
        if count >= EXACT_BELOW:
            build_scann(embedding.vectors, folder / "scann")
        return cls.load(folder)

    @property
    def session_embedding(self) -> SessionEmbedding:
        """What a later build may start from."""
        return SessionEmbedding(*(np.array(a) for a in (self.vectors, self.last_map, self.mean_map, self.step_weights)))

    @classmethod
    def load(cls, folder: Path) -> RetrievalTables:
        """From a release's folder; raises DamagedArtifact naming the file."""
        meta = _read_meta(folder)
        arrays: dict[str, Any] = {name: _array(folder, name) for name in _ARRAYS}
        groups: dict[str, Any] = {
            group: kind(**{f.name: _member(folder, meta, group, f.name) for f in fields(kind)})
            for group, kind in _GROUPS.items()
        }
        _check(folder, arrays, groups)
        neighbours = load_neighbours(arrays["vectors"], folder / "scann")
        return cls(**arrays, **groups, regions=tuple(meta["regions"]), neighbours=neighbours)


def _embed(
    log: SessionLog, covisits: Covisits, category: I32, categories: int, settings: RetrievalBuild,
    start: SessionEmbedding | None, progress: Callable[[str], None],
) -> SessionEmbedding:  # fmt: skip
    d = settings.dimensions
    if settings.embedding == "session":
        trained = train_session_embedding(
            log.items, log.offsets, len(category), dimensions=d, epochs=settings.epochs, seed=settings.seed, start=start,
            progress=progress,
        )  # fmt: skip
        return replace(trained, vectors=_with_cold_rows(trained.vectors, log.items, category, categories))
    vectors = build_embeddings(covisits, category, categories=categories, dimensions=d, shift=1.0, seed=settings.seed)
    eye = np.eye(d, dtype=np.float32)
    return SessionEmbedding(vectors, eye * np.float32(0.5), eye * np.float32(0.5), (0.8 ** np.arange(12)).astype(np.float32))


def _with_cold_rows(vectors: F32, items: I32, category: I32, categories: int) -> F32:
    """Items of no session get their category's mean over the others. Where even the category is unknown they keep their
    random row, which is near nothing: training pushed it away from every session."""
    unseen = np.bincount(items, minlength=len(vectors)) == 0
    known = np.where(unseen[:, None], np.float32(0.0), vectors)
    cold = unseen & (category >= 0)
    known[unseen & ~cold] = vectors[unseen & ~cold]
    known[cold] = category_means(np.where(unseen[:, None], np.float32(0.0), vectors), category, categories)[category[cold]]
    return known


def _popularity(log: SessionLog, category: I32, regions: int, categories: int, settings: RetrievalBuild) -> Popular:
    session = np.repeat(np.arange(len(log.offsets) - 1), np.diff(log.offsets))
    sessions = max(len(log.offsets) - 1, 1)
    # Half-life: a quarter of the log, so that last week's best-seller outranks last year's.
    decay = 0.5 ** ((sessions - 1 - session) / (settings.popular_recent_share * sessions))
    weight = (log.weight * decay).astype(np.float32)
    return build_popular(
        log.items,
        weight,
        log.region[session],
        category,
        regions=regions,
        categories=categories,
        length=settings.popular_length,
    )


def _session_prior(offsets: I64) -> F32:
    """f32[s]: newer sessions count more (e times from the oldest to the newest), longer ones less (1 / sqrt(length))."""
    count = len(offsets) - 1
    age = np.arange(count)[::-1] / max(count, 1)
    return (np.exp(-age) / np.sqrt(np.maximum(np.diff(offsets), 1))).astype(np.float32)


def _save(folder: Path, arrays: dict[str, npt.NDArray[Any]], groups: dict[str, Any], regions: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    meta: dict[str, Any] = {"regions": list(regions)}
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(values), allow_pickle=False)
    for group, parts in groups.items():
        for f in fields(parts):
            value = getattr(parts, f.name)
            if isinstance(value, np.ndarray):
                np.save(folder / f"{group}.{f.name}.npy", np.ascontiguousarray(value), allow_pickle=False)
            else:
                meta[f"{group}.{f.name}"] = value
    (folder / "retrieval.json").write_text(json.dumps(meta, indent=1, sort_keys=True))


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = json.loads((folder / "retrieval.json").read_text())
        meta["regions"] = [str(region) for region in meta["regions"]]
    except (OSError, ValueError, KeyError) as error:
        raise DamagedArtifact(f"cannot be read: {error}", field="retrieval.json", hint="rebuild the release") from error
    return meta


def _array(folder: Path, name: str) -> npt.NDArray[Any]:
    try:
        return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DamagedArtifact(f"cannot be read: {error}", field=f"{name}.npy", hint="rebuild the release") from error


def _member(folder: Path, meta: dict[str, Any], group: str, name: str) -> Any:
    key = f"{group}.{name}"
    return int(meta[key]) if key in meta else _array(folder, key)


_DTYPES = {
    "item_hashes": "u8", "item_category": "i4", "available": "?", "category_hashes": "u8", "vectors": "f4",
    "category_vectors": "f4", "last_map": "f4", "mean_map": "f4", "step_weights": "f4", "item_idf": "f4",
    "session_prior": "f4",
}  # fmt: skip
_GROUP_DTYPES = {
    "offsets": "i8", "neighbours": "i4", "weights": "f4", "totals": "f4", "items": "i4", "scores": "f4",
    "item_offsets": "i8", "item_sessions": "i4", "item_positions": "i2",
}  # fmt: skip


def _check(folder: Path, arrays: dict[str, npt.NDArray[Any]], groups: dict[str, Any]) -> None:
    """dtypes, lengths and row ranges, so that no kernel ever reads outside its arrays."""

    def refuse(name: str, why: str) -> None:
        raise DamagedArtifact(why, field=f"{folder.name}/{name}.npy", hint="rebuild the release")

    for name, dtype in _DTYPES.items():
        if arrays[name].dtype != np.dtype(dtype):
            refuse(name, f"is {arrays[name].dtype}, must be {np.dtype(dtype)}")
    items, d = arrays["vectors"].shape
    for name in ("item_hashes", "item_category", "available", "item_idf"):
        if len(arrays[name]) != items:
            refuse(name, f"has {len(arrays[name])} rows, the embeddings {items}")
    if len(arrays["session_prior"]) != len(groups["sessions"].offsets) - 1:
        refuse("session_prior", "does not fit the sessions")
    for name in ("last_map", "mean_map"):
        if arrays[name].shape != (d, d):
            refuse(name, f"has shape {arrays[name].shape}, must be {(d, d)}")
    for group, parts in groups.items():
        for f in fields(parts):
            value = getattr(parts, f.name)
            if isinstance(value, np.ndarray) and value.dtype != np.dtype(_GROUP_DTYPES[f.name]):
                refuse(f"{group}.{f.name}", f"is {value.dtype}, must be {np.dtype(_GROUP_DTYPES[f.name])}")
            if f.name in ("neighbours", "items") and len(value) and (value.min() < 0 or value.max() >= items):
                refuse(f"{group}.{f.name}", "names rows outside the catalogue")
        flat = parts.neighbours if isinstance(parts, Covisits) else parts.items
        if parts.offsets[0] != 0 or parts.offsets[-1] != len(flat) or (np.diff(parts.offsets) < 0).any():
            refuse(f"{group}.offsets", "does not fit its values")
    index = groups["sessions"]
    if len(index.item_sessions) and index.item_sessions.max() >= len(index.offsets) - 1:
        refuse("sessions.item_sessions", "names sessions that are not there")
