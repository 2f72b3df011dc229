"""Tables of retrieval: what is built, kept, moved; what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.batch import lengths_to_offsets
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.stages.retrieval import RetrievalTables, SessionLog
from serve_app.stages.retrieval.covisit import build_covisits
from serve_app.stages.retrieval.neighbours import EXACT_BELOW, ExactNeighbours, build_scann, load_neighbours
from serve_app.stages.retrieval.sessions import build_session_index
from serve_app.stages.stage import Context
from tests.unit.retrieval_fixtures import requests, tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "retrieval"
    tables(path)
    return path


def obvious_covisits(sessions: list[list[int]], items: int, forward: bool) -> np.ndarray:
    """All pairs, one after the other."""
    weight = np.zeros((items, items))
    for s, session in enumerate(sessions):
        age = np.exp(-1.5 * (len(sessions) - 1 - s) / len(sessions))
        for i, a in enumerate(session):
            for j, b in enumerate(session):
                near = 0 < abs(j - i) <= 3 and (j > i if forward else a != b)
                if near:
                    weight[a, b] += age * 0.8 ** (abs(j - i) - 1)
    return weight


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=8), min_size=1, max_size=12), st.booleans())
def test_covisits_agree_with_the_obvious_count(sessions: list[list[int]], forward: bool) -> None:
    flat = np.array([i for s in sessions for i in s], np.int32)
    index = build_session_index(flat, lengths_to_offsets([len(s) for s in sessions]), 8)
    got = build_covisits(index, window=3, decay=0.8, forward=forward, recency=1.5, neighbours=8)
    dense = np.zeros((8, 8))
    for a in range(8):
        row = slice(got.offsets[a], got.offsets[a + 1])
        dense[a, got.neighbours[row]] = got.weights[row]
        assert (np.diff(got.weights[row]) <= 0).all(), "best first"
    expected = obvious_covisits(sessions, 8, forward)
    np.testing.assert_allclose(dense, expected, rtol=1e-5)
    np.testing.assert_allclose(got.totals, expected.sum(axis=1), rtol=1e-5)


def test_the_same_log_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    tables(tmp_path / "a")
    tables(tmp_path / "b")
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_moved_folder_loads_and_answers_alike(folder: Path, tmp_path: Path) -> None:
    from serve_app.stages.retrieval import Retrieval

    before = Retrieval(RetrievalTables.load(folder)).run(requests(20, 300), Context())
    shutil.copytree(folder, tmp_path / "elsewhere")
    after = Retrieval(RetrievalTables.load(tmp_path / "elsewhere")).run(requests(20, 300), Context())
    assert before.candidates["item"].tobytes() == after.candidates["item"].tobytes()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _retype(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float64))


def _out_of_range(path: Path) -> None:
    values = np.load(path)
    values[0] = 10_000_000
    np.save(path, values)


def _pickle(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("vectors.npy", _truncate),
        ("vectors.npy", _retype),
        ("vectors.npy", _pickle),
        ("item_category.npy", _retype),
        ("follow.neighbours.npy", _out_of_range),
        ("covisits.offsets.npy", _out_of_range),
        ("sessions.items.npy", _out_of_range),
        ("retrieval.json", lambda path: path.write_text("{")),
        ("session_prior.npy", Path.unlink),
        ("session_prior.npy", _truncate),
    ],
)
def test_damage_is_refused_by_name(folder: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy / name)
    with pytest.raises(DamagedArtifact, match=name.removesuffix(".npy").replace(".", r"\.")):
        RetrievalTables.load(copy)


def test_an_empty_catalogue_is_refused(tmp_path: Path) -> None:
    none = np.empty(0, np.int32)
    with pytest.raises(InvalidInput, match="no items"):
        RetrievalTables.build(
            SessionLog(none, np.zeros(1, np.int64), none, np.empty(0, np.float32)),
            tmp_path / "t",
            item_hashes=np.empty(0, np.uint64),
            item_category=none,
            available=np.empty(0, np.bool_),
            category_hashes=np.empty(0, np.uint64),
            regions=(),
        )


def _unit(count: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(60, d))
    points = centres[rng.integers(0, 60, count)] + 0.5 * rng.normal(size=(count, d))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def test_scann_at_serving_settings_recalls_95_of_100(tmp_path: Path) -> None:
    vectors = _unit(EXACT_BELOW + 2_000, 32, 0)
    build_scann(vectors, tmp_path / "scann")
    queries = vectors[:200]
    found, _ = load_neighbours(vectors, tmp_path / "scann").search(queries, 100)
    exact, _ = ExactNeighbours(vectors).search(queries, 100)
    recall = np.mean([len(np.intersect1d(a, b)) / 100 for a, b in zip(found, exact, strict=True)])
    assert recall >= 0.95, recall
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_scann_answers_do_not_depend_on_the_batch(tmp_path: Path, seed: int) -> None:
    vectors = _unit(EXACT_BELOW + 100, 32, seed)
    build_scann(vectors, tmp_path / "scann")
    index = load_neighbours(vectors, tmp_path / "scann")
    rows, scores = index.search(vectors[:196], 50)
    for size in (1, 2, 7, 98):
        for start in range(0, 196, size):
            part = index.search(vectors[start : start + size], 50)
            assert part[0].tobytes() == rows[start : start + size].tobytes()
            assert part[1].tobytes() == scores[start : start + size].tobytes()


def test_an_index_with_a_pickle_is_refused(tmp_path: Path) -> None:
    vectors = _unit(EXACT_BELOW, 8, 2)
    build_scann(vectors, tmp_path / "scann")
    (tmp_path / "scann" / "scann_docids.pkl").write_bytes(b"\x80\x04N.")
    with pytest.raises(DamagedArtifact, match="pickle"):
        load_neighbours(vectors, tmp_path / "scann")


def test_a_truncated_index_is_refused(tmp_path: Path) -> None:
    vectors = _unit(EXACT_BELOW, 8, 2)
    build_scann(vectors, tmp_path / "scann")
    (tmp_path / "scann" / "scann_assets.pbtxt").write_text("assets {")
    with pytest.raises(DamagedArtifact):
        load_neighbours(vectors, tmp_path / "scann")


def test_exact_search_pads_short_results() -> None:
    rows, scores = ExactNeighbours(_unit(3, 8, 3)).search(_unit(2, 8, 4), 5)
    assert (rows[:, 3:] == -1).all()
    assert np.isnan(scores[:, 3:]).all()
    assert sorted(rows[0, :3]) == [0, 1, 2]
