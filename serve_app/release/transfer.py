"""Releases to and from any store that pyarrow or fsspec knows: checked on arrival, whole or absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from serve_app.errors import DamagedArtifact, InvalidInput, UnknownIdentifier
from serve_app.release.load import load_release
from serve_app.release.manifest import MANIFEST_NAME, read_manifest
from serve_app.release.registry import release_folder

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["pull_release", "push_release"]

Progress = Callable[[int, int], None]


def push_release(data: Path, version: str, url: str, progress: Progress = lambda *_: None) -> str:
    """Copy a release to `url`/version and give that place. Its manifest goes last: a reader sees a whole release or none.

    url: a folder of releases, as pyarrow (`s3://bucket/releases`, `gs://`, `file:///`) or else fsspec understands it.
    progress(done, total) in bytes. InvalidInput where a release of that name is there already.
    """
    folder = release_folder(data, version)
    manifest = load_release(folder).manifest
    store, root = _opened(url)
    place = f"{root}/{version}"
    if _exists(store, f"{place}/{MANIFEST_NAME}"):
        raise InvalidInput(
            "a release of that version is there already", field=f"{url}/{version}", hint="releases do not change"
        )
    done, total = 0, sum(entry.bytes for entry in manifest.files.values())
    for name, entry in manifest.files.items():
        _send(store, folder / name, f"{place}/{name}")
        done += entry.bytes
        progress(done, total)
    _send(store, folder / MANIFEST_NAME, f"{place}/{MANIFEST_NAME}")
    return f"{url.rstrip('/')}/{version}"


def pull_release(data: Path, version: str, url: str, progress: Progress = lambda *_: None) -> Path:
    """Copy a release from `url`/version into the data folder, compare it with its manifest, and give its folder.

    UnknownIdentifier where there is none, DamagedArtifact where a file differs: then nothing is left behind.
    """
    if not version or Path(version).name != version or version.startswith("."):
        raise InvalidInput(f"{version!r} is no version", field="version")
    target = data / "releases" / version
    if target.exists():
        raise InvalidInput("the data folder has a release of that version", field=str(target), hint="hindcast release show")
    store, root = _opened(url)
    place, aside = f"{root}/{version}", data / "releases" / f".{version}.pulled"
    if not _exists(store, f"{place}/{MANIFEST_NAME}"):
        raise UnknownIdentifier(f"no release {version!r} there", field=url)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        _fetch(store, f"{place}/{MANIFEST_NAME}", aside / MANIFEST_NAME)
        manifest = read_manifest(aside)
        if manifest.version != version:
            raise DamagedArtifact(f"the manifest is of release {manifest.version}", field=f"{url}/{version}")
        done, total = 0, sum(entry.bytes for entry in manifest.files.values())
        for name, entry in manifest.files.items():
            _fetch(store, f"{place}/{name}", aside / name)
            done += entry.bytes
            progress(done, total)
        load_release(aside)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _opened(url: str) -> tuple[FileSystem, str]:
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    if len(urlsplit(url).scheme) < 2:
        raise InvalidInput(f"{url!r} is no URL", field="url", hint="s3://bucket/releases, or file:///a/folder")
    try:
        store, root = FileSystem.from_uri(url)
    except (ArrowException, ValueError, OSError):
        import fsspec  # type: ignore[import-untyped]

        try:
            own, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InvalidInput(f"nothing here opens {url}: {error}", field="url") from error
        store = PyFileSystem(FSSpecHandler(own))
    return store, str(root).rstrip("/")


def _exists(store: FileSystem, path: str) -> bool:
    from pyarrow.fs import FileType

    return bool(store.get_file_info(path).type == FileType.File)


def _send(store: FileSystem, source: Path, target: str) -> None:
    store.create_dir(target.rsplit("/", 1)[0], recursive=True)
    with source.open("rb") as own, store.open_output_stream(target) as other:
        shutil.copyfileobj(own, other, 1 << 22)


def _fetch(store: FileSystem, source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with store.open_input_stream(source) as other, target.open("wb") as own:
            shutil.copyfileobj(other, own, 1 << 22)
    except FileNotFoundError:
        raise DamagedArtifact("a file of the manifest is missing", field=source, hint="push the release again") from None
