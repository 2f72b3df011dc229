"""Releases pushed to a store and pulled from it: whole, checked, or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.errors import DamagedArtifact, InvalidInput, UnknownIdentifier
from serve_app.release.load import load_release
from serve_app.release.transfer import pull_release, push_release
from tests.unit.test_release_folder import small_release


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder as pyarrow opens it, and a store that only fsspec knows."""
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://store-{tmp_path.name}"


def test_a_release_arrives_byte_for_byte(tmp_path: Path, url: str) -> None:
    folder = small_release(tmp_path / "one")
    told: list[tuple[int, int]] = []
    assert push_release(tmp_path / "one", folder.name, url) == f"{url}/{folder.name}"
    pulled = pull_release(tmp_path / "two", folder.name, url, lambda done, total: told.append((done, total)))
    assert pulled == tmp_path / "two" / "releases" / folder.name
    assert told[-1][0] == told[-1][1] > 0
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert (pulled / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert load_release(pulled).version == folder.name


def test_a_damaged_or_half_pushed_one_leaves_nothing(tmp_path: Path) -> None:
    folder, store = small_release(tmp_path / "one"), tmp_path / "store"
    push_release(tmp_path / "one", folder.name, f"file://{store}")
    victim = max((path for path in (store / folder.name).rglob("*.parquet")), key=lambda path: path.stat().st_size)
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedArtifact):
        pull_release(tmp_path / "two", folder.name, f"file://{store}")
    victim.unlink()
    with pytest.raises(DamagedArtifact, match="missing"):
        pull_release(tmp_path / "two", folder.name, f"file://{store}")
    (store / folder.name / "manifest.json").unlink()
    with pytest.raises(UnknownIdentifier):
        pull_release(tmp_path / "two", folder.name, f"file://{store}")
    assert not list((tmp_path / "two" / "releases").iterdir())


def test_nothing_is_written_over(tmp_path: Path, url: str) -> None:
    folder = small_release(tmp_path / "one")
    push_release(tmp_path / "one", folder.name, url)
    with pytest.raises(InvalidInput, match="there already"):
        push_release(tmp_path / "one", folder.name, url)
    with pytest.raises(InvalidInput, match="has a release"):
        pull_release(tmp_path / "one", folder.name, url)


@pytest.mark.parametrize("url", ["/no/url", "c:stuff", "nosuchscheme://x"])
def test_what_is_no_store_is_named(tmp_path: Path, url: str) -> None:
    folder = small_release(tmp_path)
    with pytest.raises(InvalidInput) as error:
        push_release(tmp_path, folder.name, url)
    assert error.value.field == "url"


@pytest.mark.parametrize("version", ["../x", "a/b", ".hidden", ""])
def test_a_version_is_a_plain_name(tmp_path: Path, version: str) -> None:
    with pytest.raises(InvalidInput, match="no version"):
        pull_release(tmp_path, version, f"file://{tmp_path}")


def test_keys_in_an_address_are_not_shown(tmp_path: Path) -> None:
    folder = small_release(tmp_path)
    for url in ("nosuchscheme://key:hush@x/y?token=hush", "memory://key:hush@x/y?token=hush"):
        with pytest.raises(InvalidInput) as error:
            pull_release(tmp_path / "two", folder.name, url)
        assert "hush" not in str(error.value)
    assert "hush" not in push_release(tmp_path, folder.name, "memory://key:hush@x/y?token=hush")
