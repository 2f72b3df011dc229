"""Releases to and from any store that pyarrow or fsspec knows: checked on arrival, whole or absent."""

from __future__ import annotations

import shutil
from pathlib import Path

from serve_app.errors import DamagedArtifact, InvalidInput, UnknownIdentifier
from serve_app.release.load import load_release
from serve_app.release.manifest import MANIFEST_NAME, read_manifest
from serve_app.release.registry import release_folder
from serve_app.stores import Progress, Store

__all__ = ["pull_release", "push_release"]


def push_release(data: Path, version: str, url: str, progress: Progress = lambda *_: None) -> str:
    """Copy a release to `url`/version and give that place. Its manifest goes last: a reader sees a whole release or none.

    url: a folder of releases, as pyarrow (`s3://bucket/releases`, `gs://`, `file:///`) or else fsspec understands it.
    progress(done, total) in bytes. InvalidInput where a release of that name is there already.
    """
    folder = release_folder(data, version)
    manifest = load_release(folder).manifest
    store = Store(url)
    if store.bytes_of(f"{version}/{MANIFEST_NAME}") is not None:
        raise InvalidInput(
            "a release of that version is there already", field=f"{store.url}/{version}", hint="releases do not change"
        )
    done, total = 0, sum(entry.bytes for entry in manifest.files.values())
    for name, entry in manifest.files.items():
        store.send(folder / name, f"{version}/{name}")
        done += entry.bytes
        progress(done, total)
    store.send(folder / MANIFEST_NAME, f"{version}/{MANIFEST_NAME}")
    return f"{store.url}/{version}"


def pull_release(data: Path, version: str, url: str, progress: Progress = lambda *_: None) -> Path:
    """Copy a release from `url`/version into the data folder, compare it with its manifest, and give its folder.

    UnknownIdentifier where there is none, DamagedArtifact where a file differs: then nothing is left behind.
    """
    if not version or Path(version).name != version or version.startswith("."):
        raise InvalidInput(f"{version!r} is no version", field="version")
    target = data / "releases" / version
    if target.exists():
        raise InvalidInput("the data folder has a release of that version", field=str(target), hint="hindcast release show")
    store, aside = Store(url), data / "releases" / f".{version}.pulled"
    if store.bytes_of(f"{version}/{MANIFEST_NAME}") is None:
        raise UnknownIdentifier(f"no release {version!r} there", field=store.url)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        _fetch(store, f"{version}/{MANIFEST_NAME}", aside / MANIFEST_NAME)
        manifest = read_manifest(aside)
        if manifest.version != version:
            raise DamagedArtifact(f"the manifest is of release {manifest.version}", field=f"{store.url}/{version}")
        done, total = 0, sum(entry.bytes for entry in manifest.files.values())
        for name, entry in manifest.files.items():
            _fetch(store, f"{version}/{name}", aside / name)
            done += entry.bytes
            progress(done, total)
        load_release(aside)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _fetch(store: Store, name: str, target: Path) -> None:
    try:
        store.fetch(name, target)
    except FileNotFoundError:
        raise DamagedArtifact(
            "a file of the manifest is missing", field=f"{store.url}/{name}", hint="push the release again"
        ) from None
