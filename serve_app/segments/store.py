"""Membership sets on disk: one immutable folder per computation, and a pointer to the one in force.

``DATA/segments/sets/<name>/{manifest.json, users.npy, <digest>.roaring}`` and ``DATA/segments/current``. Bitmaps are in
the portable format of the Roaring specification, named by what they mean (`segment_digests`), not by the segment's id.
Nothing in a set is executable: arrays are read with ``allow_pickle=False``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pyroaring import BitMap

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.release.manifest import fsync_folder, write_text_atomically
from serve_app.segments.bitmaps import plane_of

__all__ = [
    "Membership",
    "SetManifest",
    "load_current",
    "publish_set",
    "read_pointer",
    "read_set_manifest",
    "segments_folder",
]

U64 = npt.NDArray[np.uint64]
_KEPT = 2  # sets: a replica that is still reading the one before must find its files
_REFRESH = "run `hindcast segment refresh`"


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredFile(_Closed):
    """Length and XXH3-128 of one file."""

    bytes: int = Field(ge=0)
    xxh3: str = Field(pattern=r"^[0-9a-f]{32}$")


class StoredSegment(_Closed):
    """One bitmap. ids: what policies call it."""

    digest: str = Field(pattern=r"^[0-9a-f]{20}$")
    ids: tuple[str, ...]
    members: int = Field(ge=0)
    file: StoredFile


class SetManifest(_Closed):
    """manifest.json of a set. computed_at: the instant the segments were evaluated as of, i64 microseconds UTC; policies:
    revisions all of whose segments are in it; left_out: segments of other policies that could not be evaluated, and why."""

    format: Literal[1] = 1
    computed_at: int = Field(ge=0)
    population: int = Field(ge=0)
    users: StoredFile
    segments: tuple[StoredSegment, ...]
    policies: tuple[str, ...]
    left_out: dict[str, str] = Field(default_factory=dict)


class Pointer(_Closed):
    """DATA/segments/current."""

    set: str = Field(pattern=r"^[0-9]{20}-[0-9a-f]{10}$")
    xxh3: str
    """Of the set's manifest."""


@dataclass(frozen=True)
class Membership:
    """A loaded set. users u64[n] sorted, memory-mapped; planes u64[words, S], see serve_app.segments.bitmaps; digests: which
    plane is whose."""

    name: str
    manifest: SetManifest
    users: U64
    planes: U64
    digests: Mapping[str, int]

    @property
    def computed_at(self) -> int:
        """Instant the segments were evaluated as of, microseconds UTC."""
        return self.manifest.computed_at


def segments_folder(data: Path) -> Path:
    """DATA/segments"""
    return data / "segments"


def checksum(path: Path) -> StoredFile:
    """Length and checksum of a file, read through a memory map."""
    import xxhash

    size = path.stat().st_size
    state = xxhash.xxh3_128()
    if size:
        state.update(np.memmap(path, np.uint8, "r").data)
    return StoredFile(bytes=size, xxh3=state.hexdigest())


def publish_set(
    data: Path, users: U64, members: Mapping[str, BitMap], ids: Mapping[str, Sequence[str]], *, computed_at: int,
    policies: Sequence[str] = (), left_out: Mapping[str, str] | None = None,
) -> SetManifest:  # fmt: skip
    """Write a set and make it the one in force; it appears whole or not at all.

    users u64[n] sorted and distinct; members: bitmap by digest; ids: what policies call each digest.
    """
    if len(users) > 1 and not bool(np.all(users[1:] > users[:-1])):
        raise InvalidInput("must be sorted and distinct", field="users")
    sets = segments_folder(data) / "sets"
    aside = sets / f".new-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        np.save(aside / "users.npy", users, allow_pickle=False)
        for digest, bitmap in members.items():
            (aside / f"{digest}.roaring").write_bytes(bitmap.serialize())
        segments = tuple(
            StoredSegment(
                digest=digest, ids=tuple(ids[digest]), members=len(bitmap), file=checksum(aside / f"{digest}.roaring")
            )
            for digest, bitmap in sorted(members.items())
        )
        manifest = SetManifest(
            computed_at=computed_at,
            population=len(users),
            users=checksum(aside / "users.npy"),
            segments=segments,
            policies=tuple(policies),
            left_out=dict(left_out or {}),
        )
        _appear(data, aside, manifest)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def _appear(data: Path, aside: Path, manifest: SetManifest) -> None:
    (aside / "manifest.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    for path in aside.iterdir():
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
    fsync_folder(aside)
    own = checksum(aside / "manifest.json").xxh3
    name = f"{manifest.computed_at:020d}-{own[:10]}"
    target = aside.with_name(name)
    if target.exists():  # the same set again: what lies there may be damaged
        shutil.rmtree(target)
    aside.rename(target)
    fsync_folder(target.parent)
    before = read_pointer(data)
    write_text_atomically(segments_folder(data) / "current", Pointer(set=name, xxh3=own).model_dump_json())
    _forget(target.parent, {name, *([before.set] if before else [])})


def _forget(sets: Path, spared: set[str]) -> None:
    names = sorted(one.name for one in sets.iterdir() if one.is_dir() and not one.name.startswith("."))
    for name in names[: max(len(names) - _KEPT, 0)]:
        if name not in spared:
            shutil.rmtree(sets / name)


def read_pointer(data: Path) -> Pointer | None:
    """Which set is in force; None where none was ever published."""
    path = segments_folder(data) / "current"
    try:
        return Pointer.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        message = f"the pointer to the current membership set cannot be read: {error.errors()[0]['msg']}"
        raise DamagedArtifact(message, field=str(path), hint=_REFRESH) from None


def read_set_manifest(data: Path) -> SetManifest | None:
    """The manifest of the set in force; None where there is none."""
    pointer = read_pointer(data)
    return None if pointer is None else _manifest(segments_folder(data) / "sets" / pointer.set, pointer)


def load_current(data: Path) -> Membership | None:
    """The set in force, verified; None where there is none. Raises DamagedArtifact naming what is not as written."""
    pointer = read_pointer(data)
    if pointer is None:
        return None
    folder = segments_folder(data) / "sets" / pointer.set
    manifest = _manifest(folder, pointer)
    users = _verified(folder / "users.npy", manifest.users)
    planes = np.zeros(((manifest.population + 63) // 64, len(manifest.segments)), np.uint64)
    for place, one in enumerate(manifest.segments):
        path = _verified(folder / f"{one.digest}.roaring", one.file)
        bitmap = BitMap.deserialize(path.read_bytes())
        if len(bitmap) != one.members or (one.members and bitmap.max() >= manifest.population):
            raise DamagedArtifact("does not fit the set's population", field=str(path), hint=_REFRESH)
        planes[:, place] = plane_of(bitmap, manifest.population)
    digests = {one.digest: place for place, one in enumerate(manifest.segments)}
    return Membership(pointer.set, manifest, _users(users, manifest.population), planes, digests)


def _users(path: Path, population: int) -> U64:
    try:
        users: U64 = np.load(path, mmap_mode="r" if population else None, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise DamagedArtifact(f"cannot be read: {error}", field=str(path), hint=_REFRESH) from error
    if users.dtype != np.uint64 or users.shape != (population,):
        raise DamagedArtifact("is not the set's population", field=str(path), hint=_REFRESH)
    return np.asarray(users)


def _manifest(folder: Path, pointer: Pointer) -> SetManifest:
    path = folder / "manifest.json"
    try:
        if checksum(path).xxh3 != pointer.xxh3:
            raise DamagedArtifact("checksum differs from the pointer's", field=str(path), hint=_REFRESH)
        return SetManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DamagedArtifact(f"cannot be read: {error.strerror}", field=str(path), hint=_REFRESH) from error
    except ValidationError as error:
        raise DamagedArtifact(f"is not valid: {error.errors()[0]['msg']}", field=str(path), hint=_REFRESH) from None


def _verified(path: Path, entry: StoredFile) -> Path:
    try:
        found = checksum(path)
    except OSError as error:
        raise DamagedArtifact(f"cannot be read: {error.strerror}", field=str(path), hint=_REFRESH) from error
    if found != entry:
        raise DamagedArtifact("differs from the manifest", field=str(path), hint=_REFRESH)
    return path
