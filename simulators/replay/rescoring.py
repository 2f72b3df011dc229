"""New scores for logged candidates: a release's models on the features that were logged, to the bit as they were read.

The release that served gives the logged heads again; another gives what it would have said of the same candidates then.
Features it reads that were not logged are the caller's to provide, or the reason to refuse.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.release.load import Release, load_release
from serve_app.release.manifest import MANIFEST_NAME
from serve_app.release.registry import release_folder
from serve_app.stages.ranking.heads import HeadSet
from serve_app.vocabulary import Surface

__all__ = ["POSITION", "heads_of", "lacking", "opened_release", "rescored"]

F32 = npt.NDArray[np.float32]

POSITION = "position"
"""The feature that is a constant while serving: each release has its own."""


def opened_release(data: Path, name: str, parts: Collection[str]) -> Release:
    """A release by its version in `data`, or by its folder. UnknownIdentifier names those there are."""
    folder = Path(name) if (Path(name) / MANIFEST_NAME).is_file() else release_folder(data, name)
    return load_release(folder, parts)


def heads_of(release: Release, surface: Surface) -> HeadSet:
    """The models of one surface. InvalidInput where the release has none."""
    if surface not in release.models.by_surface:
        why = release.manifest.left_out.get(surface.name, "it was built without")
        raise InvalidInput(
            f"release {release.version} has no model for {surface.name}: {why}", field="release", hint="name another release"
        )
    return release.models[surface]


def lacking(heads: HeadSet, logged: Sequence[str]) -> tuple[str, ...]:
    """Features that the models read and the log does not hold."""
    return tuple(name for name in heads.features if name not in logged and name != POSITION)


def rescored(heads: HeadSet, features: F32, logged: Sequence[str]) -> F32:
    """f32[m, H]: heads of candidates whose features f32[m, F] are named `logged`. InvalidInput names absent ones."""
    absent = lacking(heads, logged)
    if absent:
        raise InvalidInput(
            f"the log does not hold the features {', '.join(absent)}, which this release reads",
            field="release",
            hint="for lists, --retrieval makes candidates and features anew by the release; else log with a release that "
            "has these features first",
        )
    matrix = np.empty((len(features), len(heads.features)), np.float32)
    for column, name in enumerate(heads.features):
        matrix[:, column] = heads.position if name == POSITION else features[:, logged.index(name)]
    return heads.predict(matrix)
