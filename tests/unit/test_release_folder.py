"""A release folder: written whole or not at all, verified byte by byte, movable, promoted only when it loads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.catalogue import Catalogue, table_of, write_catalogue
from serve_app.errors import DamagedArtifact, InvalidInput, NotReady, UnknownIdentifier
from serve_app.ids import hash_ids
from serve_app.release.flip import find_flip
from serve_app.release.load import load_release
from serve_app.release.manifest import Lineage, ReleaseNotes, read_manifest, write_release
from serve_app.release.registry import current_release, list_releases, promote, read_current, rollback
from serve_app.release.rows import CatalogueRows, find_rows, in_row_order


def small_catalogue(ids: tuple[str, ...] = ("b", "a", "🧦")) -> Catalogue:
    count = len(ids)
    items = table_of(
        "items",
        {
            "item_id": list(ids),
            "title": [""] * count,
            "category": ["tops", "", "socks"][:count],
            "price": [1.5] * count,
            "currency": ["GBP"] * count,
            "created_at": [0] * count,
            "available": [True] * count,
        },
    )
    return in_row_order(Catalogue(items))


def small_release(data: Path, ids: tuple[str, ...] = ("b", "a", "🧦"), seed: int = 1, created_at: int = 5) -> Path:
    staging = data / "releases" / ".staging"
    write_catalogue(small_catalogue(ids), staging / "catalogue")
    lineage = Lineage(log_digest="l", catalogue_digest="c", code_version="0", seed=seed)
    return write_release(staging, data / "releases", ReleaseNotes(created_at=created_at, lineage=lineage))


def test_a_release_loads_and_finds_rows_by_hash(tmp_path: Path) -> None:
    release = load_release(small_release(tmp_path))
    rows = release.catalogue.item_rows(hash_ids(["🧦", "nobody", "a"]))
    assert release.catalogue.items["item_id"].take(rows[[0, 2]]).to_pylist() == ["🧦", "a"]
    assert rows[1] == -1
    assert release.catalogue.category_names == ["socks", "tops"]


def test_the_same_content_gives_the_same_version_and_one_folder(tmp_path: Path) -> None:
    first = small_release(tmp_path, created_at=1)
    again = small_release(tmp_path, created_at=2)
    other = small_release(tmp_path, seed=2)
    assert first == again
    assert other != first
    assert [path.name for path in tmp_path.glob("releases/*") if path.name.startswith(".staging")] == []


def test_a_release_can_be_moved(tmp_path: Path) -> None:
    folder = small_release(tmp_path)
    moved = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, moved)
    shutil.rmtree(folder)
    assert len(load_release(moved).catalogue.items) == 3


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add", "pickle"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    folder = small_release(tmp_path)
    victim = folder / "catalogue" / "items.parquet"
    content = victim.read_bytes()
    if damage == "flip":
        victim.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    elif damage == "truncate":
        victim.write_bytes(content[:-7])
    elif damage == "remove":
        victim.unlink()
    else:
        victim = folder / "catalogue" / ("extra.bin" if damage == "add" else "items.pkl")
        victim.write_bytes(b"x")
    with pytest.raises(DamagedArtifact, match=victim.name):
        load_release(folder)


def test_damage_in_a_part_not_asked_for_does_not_matter(tmp_path: Path) -> None:
    folder = small_release(tmp_path)
    (folder / "catalogue" / "items.parquet").write_bytes(b"")
    release = load_release(folder, parts=["retrieval"])
    with pytest.raises(InvalidInput, match="catalogue"):
        _ = release.catalogue


def test_unverified_damage_is_found_when_the_part_is_loaded(tmp_path: Path) -> None:
    folder = small_release(tmp_path)
    (folder / "catalogue" / "items.parquet").write_bytes(b"not parquet")
    with pytest.raises(DamagedArtifact, match="items"):
        _ = load_release(folder, verify=False).catalogue


@pytest.mark.parametrize("text", ["", "{", "{}", '{"schema_version": 2}', '{"unknown": 1}'])
def test_a_manifest_that_is_not_valid_is_damage(tmp_path: Path, text: str) -> None:
    folder = small_release(tmp_path)
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DamagedArtifact, match="manifest"):
        read_manifest(folder)


def test_a_manifest_cannot_name_files_outside(tmp_path: Path) -> None:
    folder = small_release(tmp_path)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("catalogue/items.parquet", "../items.parquet"))
    with pytest.raises(DamagedArtifact, match="relative path"):
        load_release(folder)


def test_promotion_keeps_history_and_rollback_walks_back(tmp_path: Path) -> None:
    names = [small_release(tmp_path, seed=seed).name for seed in (1, 2, 3)]
    with pytest.raises(NotReady):
        current_release(tmp_path)
    for at, name in enumerate(names):
        promote(tmp_path, name, now=at)
    assert current_release(tmp_path).name == names[2]
    assert rollback(tmp_path, now=7).version == names[1]
    assert rollback(tmp_path, now=8).version == names[0]
    with pytest.raises(InvalidInput, match="no earlier release"):
        rollback(tmp_path, now=9)
    version, history = read_current(tmp_path)
    assert (version, [entry.action for entry in history]) == (names[0], ["promote"] * 3 + ["rollback"] * 2)
    assert [listed.version for listed in list_releases(tmp_path) if listed.current] == [names[0]]


def test_a_damaged_release_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    good, bad = small_release(tmp_path, seed=1), small_release(tmp_path, seed=2)
    promote(tmp_path, good.name, now=1)
    (bad / "catalogue" / "users.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedArtifact, match=r"users\.parquet"):
        promote(tmp_path, bad.name, now=2)
    assert current_release(tmp_path) == good


def test_an_unknown_version_names_those_that_exist(tmp_path: Path) -> None:
    folder = small_release(tmp_path)
    for version in ("nope", "../x", "", "."):
        with pytest.raises(UnknownIdentifier, match=folder.name):
            promote(tmp_path, version, now=1)


class _Server:
    """A flip that fails in one phase, or in none, and remembers what it was asked."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at, self.asked = fails_at, list[tuple[str, str]]()

    def prepare(self, version: str) -> None:
        self._phase("prepare", version)

    def commit(self, version: str) -> None:
        self._phase("commit", version)

    def _phase(self, phase: str, version: str) -> None:
        self.asked.append((phase, version))
        if phase == self.fails_at:
            raise NotReady(f"refused to {phase}")


def test_a_running_server_prepares_before_it_commits(tmp_path: Path) -> None:
    name, server = small_release(tmp_path).name, _Server()
    promote(tmp_path, name, now=1, flip=server)
    assert server.asked == [("prepare", name), ("commit", name)]


@pytest.mark.parametrize("phase", ["prepare", "commit"])
def test_when_the_server_refuses_the_pointer_does_not_move(tmp_path: Path, phase: str) -> None:
    old, new = (small_release(tmp_path, seed=seed).name for seed in (1, 2))
    promote(tmp_path, old, now=1)
    with pytest.raises(NotReady):
        promote(tmp_path, new, now=2, flip=_Server(phase))
    assert read_current(tmp_path)[0] == old


@given(st.sets(st.integers(0, 2**64 - 1), max_size=20), st.lists(st.integers(0, 2**64 - 1), max_size=20))
@settings(max_examples=50, deadline=None)
def test_rows_are_found_exactly(known: set[int], asked: list[int]) -> None:
    hashes = np.array(sorted(known), np.uint64)
    asked = asked + sorted(known)
    rows = find_rows(hashes, np.array(asked, np.uint64))
    for value, row in zip(asked, rows, strict=True):
        assert (row == -1) if value not in known else int(hashes[row]) == value


def test_an_empty_catalogue_has_no_rows() -> None:
    rows = CatalogueRows(small_catalogue(()))
    assert rows.item_rows(hash_ids(["a"])).tolist() == [-1]
    assert rows.category_names == []


def test_a_server_that_was_killed_is_no_server(tmp_path: Path) -> None:
    assert find_flip(tmp_path) is None
    described = {"admin_url": "http://127.0.0.1:1", "admin_token": "t", "pid": os.getpid(), "started_at": 1.0}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "server.json").write_text(json.dumps(described))
    assert find_flip(tmp_path) is None
    described["started_at"] = psutil.Process().create_time()
    (tmp_path / "run" / "server.json").write_text(json.dumps(described))
    flip = find_flip(tmp_path)
    assert flip is not None
    with pytest.raises(NotReady, match="did not answer prepare"):
        flip.prepare("v")


def test_a_garbled_server_file_is_damage_not_absence(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "server.json").write_text("{")
    with pytest.raises(DamagedArtifact, match=r"server\.json"):
        find_flip(tmp_path)
