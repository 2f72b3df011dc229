"""The releases of a data folder: which exist, which is current, which were before.

``DATA/releases/current`` is one small JSON file replaced by one rename, holding the current version and the history of
promotions, so that the two can never disagree. Every change is made under a file lock.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.errors import DamagedArtifact, HindcastError, InvalidInput, NotReady, UnknownIdentifier
from serve_app.release.flip import Flip
from serve_app.release.load import load_release
from serve_app.release.manifest import MANIFEST_NAME, Manifest, read_manifest, write_text_atomically
from serve_app.release.pointer import Step, locked, one_before

__all__ = [
    "Listed",
    "Promotion",
    "current_release",
    "list_releases",
    "promote",
    "read_current",
    "release_folder",
    "rollback",
]


class Promotion(BaseModel):
    """One line of the history. `at`: i64 microseconds UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    at: int
    action: Step
    replaced: str | None


class _Current(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str | None = None
    history: list[Promotion] = Field(default_factory=list)


class Listed(BaseModel):
    """One release folder: its manifest, or why it has none that can be read."""

    version: str
    current: bool
    manifest: Manifest | None
    problem: str | None


def _releases(data: Path) -> Path:
    return data / "releases"


def read_current(data: Path) -> tuple[str | None, list[Promotion]]:
    """(current version or None, promotions oldest first). DamagedArtifact when the pointer cannot be read."""
    path = _releases(data) / "current"
    try:
        state = _Current.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        state = _Current()
    except ValidationError as error:
        raise DamagedArtifact(
            f"the pointer to the current release cannot be read: {error.errors()[0]['msg']}",
            field=str(path),
            hint="delete it and promote a release again",
        ) from None
    return state.version, state.history


def release_folder(data: Path, version: str) -> Path:
    """The folder of `version`; UnknownIdentifier, naming those that exist, when there is none."""
    folder = _releases(data) / version
    if Path(version).name != version or not (folder / MANIFEST_NAME).is_file():
        known = ", ".join(listed.version for listed in list_releases(data)) or "none"
        raise UnknownIdentifier(f"no release {version!r}", field="version", hint=f"known: {known}")
    return folder


def current_release(data: Path) -> Path:
    """The folder of the current release. NotReady when nothing has been promoted yet."""
    version, _ = read_current(data)
    if version is None:
        raise NotReady(
            "no release has been promoted",
            field=str(_releases(data)),
            hint="run `hindcast build`, or `hindcast release promote VERSION`",
        )
    return release_folder(data, version)


def list_releases(data: Path) -> list[Listed]:
    """All release folders, newest first by the time their build gave; damaged ones at the end with their problem."""
    current, _ = read_current(data)
    found: list[Listed] = []
    for path in sorted(_releases(data).glob(f"*/{MANIFEST_NAME}")):
        version = path.parent.name
        if version.startswith("."):
            continue
        try:
            manifest, problem = read_manifest(path.parent), None
        except DamagedArtifact as error:
            manifest, problem = None, str(error)
        found.append(Listed(version=version, current=version == current, manifest=manifest, problem=problem))
    return sorted(
        found, key=lambda one: (one.manifest is None, -(one.manifest.created_at if one.manifest else 0), one.version)
    )


def promote(data: Path, version: str, *, now: int, flip: Flip | None = None) -> Promotion:
    """Make `version` current. The release is verified and loaded whole first; when it is damaged, or a running server
    (`flip`) cannot load it, the error says so and the old release stays current and served."""
    with locked(_releases(data)):
        return _switch(data, version, "promote", now, flip)


def rollback(data: Path, *, now: int, flip: Flip | None = None) -> Promotion:
    """Make the release current that the present one replaced. Repeated, it walks further
    back, down to the first."""
    with locked(_releases(data)):
        target = one_before((entry.action, entry.version) for entry in read_current(data)[1])
        if target is None:
            raise InvalidInput("there is no earlier release to go back to", field="releases")
        return _switch(data, target, "rollback", now, flip)


def _switch(data: Path, version: str, action: Step, now: int, flip: Flip | None) -> Promotion:
    old, history = read_current(data)
    release = load_release(release_folder(data, version))
    release.load_all()
    if release.version != version:
        raise DamagedArtifact(f"the folder holds release {release.version}", field=version, hint="give it its own name back")
    if flip is not None:
        flip.prepare(version)
    entry = Promotion(version=version, at=now, action=action, replaced=old)
    _write(data, _Current(version=version, history=[*history, entry]))
    if flip is not None:
        _commit_or_restore(data, flip.commit, version, _Current(version=old, history=history))
    return entry


def _commit_or_restore(data: Path, commit: Callable[[str], None], version: str, before: _Current) -> None:
    try:
        commit(version)
    except HindcastError:
        _write(data, before)
        raise


def _write(data: Path, state: _Current) -> None:
    write_text_atomically(_releases(data) / "current", state.model_dump_json(indent=1))
