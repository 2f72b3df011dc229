"""The manifest of a release: what is in the folder, with checksums, and where it came from.

A release is an immutable folder ``DATA/releases/<version>/``. `manifest.json` names every other file with its length and
SHA-256; a file it does not name makes the release damaged, as does one that differs. The version is the log's last day and a
digest of the content, so the same log, settings, seed and code give the same version.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.stores import content_of

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "FileEntry",
    "Lineage",
    "Manifest",
    "Metric",
    "ReleaseNotes",
    "describe_files",
    "fsync_folder",
    "read_manifest",
    "verify_files",
    "write_release",
    "write_text_atomically",
]

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
VERSION_PATTERN = r"^[0-9A-Za-z][0-9A-Za-z._-]{0,79}$"


def _relative(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or not pure.parts or any(part in ("..", ".") for part in path.split("/")) or str(pure) != path:
        raise ValueError("must be a plain relative path inside the release")
    return path


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Strict):
    """Length in bytes and SHA-256 (hex) of one file."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Metric(_Strict):
    """One offline figure with its 95 % interval (absent where it is exact) and the number of cases behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    cases: int | None = Field(default=None, ge=0)


class Lineage(_Strict):
    """What the release was made from. Times are i64 microseconds UTC."""

    log_from: int | None = None
    log_to: int | None = None
    log_digest: str
    catalogue_digest: str
    code_version: str
    seed: int
    settings: dict[str, JsonValue] = Field(default_factory=dict)


class ReleaseNotes(_Strict):
    """All of a manifest that a build knows before the files are counted.

    heads: surface name -> names of its heads. features: surface name -> names of the features its heads read. left_out:
    surface or part -> why the release cannot serve it. metrics: group -> name -> figure.
    """

    created_at: int = Field(description="i64 microseconds UTC, the caller's clock")
    lineage: Lineage
    heads: dict[str, list[str]] = Field(default_factory=dict)
    features: dict[str, list[str]] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, dict[str, Metric]] = Field(default_factory=dict)


class Manifest(ReleaseNotes):
    """The content of manifest.json."""

    schema_version: Literal[1]
    version: str = Field(pattern=VERSION_PATTERN)
    files: dict[Annotated[str, AfterValidator(_relative)], FileEntry]


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Relative path -> length and checksum of every regular file under `folder` but the manifest, in path order."""
    found: dict[str, FileEntry] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidInput("a release holds plain files only", field=str(path.relative_to(folder)))
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST_NAME:
            content = content_of(path)
            found[name] = FileEntry(bytes=content.bytes, sha256=content.sha256)
    return dict(sorted(found.items()))


def _content_version(files: Mapping[str, FileEntry], lineage: Lineage) -> str:
    digest = hashlib.sha256(str(SCHEMA_VERSION).encode())
    for name, entry in files.items():
        digest.update(f"{name}\0{entry.sha256}\n".encode())
    digest.update(lineage.model_dump_json().encode())
    day = "empty" if lineage.log_to is None else datetime.fromtimestamp(lineage.log_to / 1e6, UTC).strftime("%Y%m%d")
    return f"{day}-{digest.hexdigest()[:10]}"


def write_release(staging: Path, releases: Path, notes: ReleaseNotes) -> Path:
    """Turn a staged folder into a release under `releases` and return its folder.

    Checksums are taken, the manifest is written, everything is fsynced, and one rename makes the release appear; until then
    nothing is visible. `staging` must be on the file system of `releases`. The same content published twice is one release:
    the staged copy is dropped and the folder that stands is returned.
    """
    files = describe_files(staging)
    version = _content_version(files, notes.lineage)
    manifest = Manifest(schema_version=SCHEMA_VERSION, version=version, files=files, **dict(notes))
    (staging / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    for name in (*files, MANIFEST_NAME):
        _fsync_file(staging / name)
    for folder in [path for path in staging.rglob("*") if path.is_dir()] + [staging]:
        fsync_folder(folder)
    target = releases / version
    releases.mkdir(parents=True, exist_ok=True)
    if target.exists():
        verify_files(target, read_manifest(target))
        shutil.rmtree(staging)
        return target
    os.rename(staging, target)
    fsync_folder(releases)
    return target


def _fsync_file(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step: a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    with aside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(aside, path)
    fsync_folder(path.parent)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a release folder. DamagedArtifact when it is absent, unreadable or of another schema version."""
    path = folder / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DamagedArtifact("no manifest.json: not a release folder", field=str(folder)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedArtifact(f"manifest cannot be read: {error}", field=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "content"
        raise DamagedArtifact(
            f"manifest is not valid at {where}: {first['msg']}", field=str(path), hint="build the release again"
        ) from None


def verify_files(folder: Path, manifest: Manifest, only: Collection[str] | None = None) -> None:
    """Compare the files under `folder` with the manifest: all, or those whose first path part is in `only`.

    Raises DamagedArtifact naming the first file that is missing, unknown, of another length or of another checksum.
    """

    def wanted(name: str) -> bool:
        return only is None or name.split("/", 1)[0] in only

    present = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    for name in sorted(present):
        if wanted(name) and name != MANIFEST_NAME and name not in manifest.files:
            raise DamagedArtifact("file is not in the manifest", field=f"{folder.name}/{name}")
    for name, entry in manifest.files.items():
        if not wanted(name):
            continue
        field = f"{folder.name}/{name}"
        path = present.get(name)
        if path is None:
            raise DamagedArtifact("file is missing", field=field, hint="build the release again or roll back")
        if path.stat().st_size != entry.bytes:
            raise DamagedArtifact(f"file has {path.stat().st_size} bytes, the manifest says {entry.bytes}", field=field)
        if content_of(path).sha256 != entry.sha256:
            raise DamagedArtifact("checksum differs from the manifest", field=field, hint="build the release again")
