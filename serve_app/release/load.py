"""Open a release folder: verify, then load each part when it is first asked for.

Nothing is ever unpickled: arrays are .npy read with ``allow_pickle=False``, tables are Parquet, models are XGBoost's own
JSON/UBJ, the index is ScaNN's with relative paths. A release folder can therefore be moved, and read from anyone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from serve_app.errors import DamagedArtifact, HindcastError, InvalidInput
from serve_app.release.manifest import Manifest, read_manifest, verify_files

if TYPE_CHECKING:
    from serve_app.release.histories import UserHistories
    from serve_app.release.rows import CatalogueRows
    from serve_app.reviews import ReviewModel
    from serve_app.stages.features.tables import FeatureTable
    from serve_app.stages.ranking.heads import Models
    from serve_app.stages.retrieval.tables import RetrievalTables

__all__ = ["PARTS", "Release", "load_release"]

T = TypeVar("T")

PARTS = ("catalogue", "retrieval", "histories", "features", "models", "review_model")


class Release:
    """An opened release. Parts are attributes, loaded at first use and kept; parts not asked for at `load_release` raise."""

    def __init__(self, folder: Path, manifest: Manifest, parts: Collection[str]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.parts = tuple(part for part in PARTS if part in parts)

    @property
    def version(self) -> str:
        """The release's id, as requests are pinned to and the log names it."""
        return self.manifest.version

    def has(self, part: str) -> bool:
        """Whether the release holds `part` at all (one without reviews has no review model)."""
        return any(name.startswith(f"{part}/") for name in self.manifest.files)

    def load_all(self) -> None:
        """Load every part asked for now; a part that does not load raises DamagedArtifact naming it."""
        for part in self.parts:
            if self.has(part):
                getattr(self, part)

    @cached_property
    def catalogue(self) -> CatalogueRows:
        """Items, users, reviews, widgets and campaigns, with the look-ups from hash to row."""
        from serve_app.release.rows import CatalogueRows

        return self._load("catalogue", CatalogueRows.load)

    @cached_property
    def retrieval(self) -> RetrievalTables:
        """Embeddings, index, co-visitation, session neighbours, popularity, recents."""
        from serve_app.stages.retrieval.tables import RetrievalTables

        return self._load("retrieval", RetrievalTables.load)

    @cached_property
    def features(self) -> tuple[FeatureTable, ...]:
        """The feature tables, at most one per entity kind; rows are catalogue rows."""
        from serve_app.stages.features.tables import FeatureTable

        def load(folder: Path) -> tuple[FeatureTable, ...]:
            return tuple(FeatureTable.load(path.parent) for path in sorted(folder.glob("*/table.json")))

        return self._load("features", load)

    @cached_property
    def histories(self) -> UserHistories:
        """What each user saw and bought last, as the log knew it at the build."""
        from serve_app.release.histories import UserHistories

        return self._load("histories", UserHistories.load)

    @cached_property
    def models(self) -> Models:
        """Heads by surface, with their calibration."""
        from serve_app.stages.ranking.heads import Models

        return self._load("models", Models.load)

    @cached_property
    def review_model(self) -> ReviewModel:
        """The review-quality model."""
        from serve_app.reviews import ReviewModel

        return self._load("review_model", ReviewModel.load)

    def _load(self, part: str, loader: Callable[[Path], T]) -> T:
        if part not in self.parts:
            raise InvalidInput(f"part was not asked for; this process loads {', '.join(self.parts)}", field=part)
        if not self.has(part):
            why = self.manifest.left_out.get(part, "the build had no data for it")
            raise DamagedArtifact(f"release {self.version} has no such part: {why}", field=part)
        try:
            return loader(self.folder / part)
        except HindcastError:
            raise
        except Exception as error:
            # Readers of foreign formats raise what they like on damaged bytes; all of it means one thing here.
            raise DamagedArtifact(
                f"cannot be loaded: {type(error).__name__}: {error}", field=f"{self.version}/{part}", hint="build it again"
            ) from error


def load_release(path: Path | str, parts: Collection[str] | None = None, verify: bool = True) -> Release:
    """Open the release in folder `path`.

    parts: which of PARTS this process needs (None: all); only their files are verified. verify: compare lengths and SHA-256
    with the manifest (about 1 GB/s); without it a damaged file is found when its part is loaded, or not at all. Raises
    DamagedArtifact naming the file, InvalidInput for an unknown part.
    """
    folder = Path(path)
    unknown = set(parts or ()) - set(PARTS)
    if unknown:
        raise InvalidInput(f"no such part: {', '.join(sorted(unknown))}", field="parts", hint=f"known: {', '.join(PARTS)}")
    manifest = read_manifest(folder)
    if verify:
        verify_files(folder, manifest, None if parts is None else parts)
    return Release(folder, manifest, PARTS if parts is None else parts)
