"""Reading click sessions, cutting them, thinning negatives, and the figures of the lists."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hindcast.evaluation.next_click.answers import Answers, figures
from hindcast.evaluation.next_click.files import SessionFiles, prefixes_of, read_session_files
from serve_app.batch import Ragged
from serve_app.errors import InvalidInput
from serve_app.release.negatives import thin_negatives


def folder_of(path: Path, train: str, test: str) -> Path:
    (path / "train_sessions.csv").write_text("session_id,items\n" + train)
    with gzip.open(path / "test_prefixes.csv.gz", "wt") as file:
        file.write("row_id,prefix,target\n" + test)
    return path


def test_files_become_item_rows_in_order_of_appearance(tmp_path: Path) -> None:
    files = read_session_files(folder_of(tmp_path, "0,b a b\n1,c\n", "0,b new a,c\n1,b new,a\n2,b,new\n3,c,b\n"))
    assert [own.tolist() for own in files.sessions] == [[0, 1, 0], [2]]
    assert [own.tolist() for own in files.prefixes] == [[0, 1], [0], [0], [2]]
    assert files.targets.tolist() == [2, 1, -1, 0], "a target nobody clicked before has no row"
    assert files.cluster.tolist() == [0, 0, 0, 1], "rows cut from one session stand together"
    assert files.unknown_clicks == 2


def test_a_missing_file_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="train_sessions"):
        read_session_files(tmp_path)
    folder_of(tmp_path, "0,a b\n", "0,a,b\n")
    (tmp_path / "train_sessions.csv").write_text("session,items\n0,a b\n")
    with pytest.raises(InvalidInput, match="session_id"):
        read_session_files(tmp_path)


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=8))
def test_every_cut_of_every_session_is_an_example(sessions: list[list[int]]) -> None:
    prefixes, targets, session = prefixes_of(Ragged.of(sessions, np.int32))
    expected = [(own[:k], own[k], s) for s, own in enumerate(sessions) for k in range(1, len(own))]
    got = [(p.tolist(), int(t), int(s)) for p, t, s in zip(prefixes, targets, session, strict=True)]
    assert got == expected


def test_thinned_negatives_stand_for_those_left_out() -> None:
    request = np.repeat(np.arange(400, dtype=np.uint64), 100)
    item = np.tile(np.arange(100, dtype=np.int32), 400)
    always = item < 3
    keep, weight = thin_negatives(request, item, always, share=0.2, seed=1)
    assert keep[always].all()
    assert (weight[always] == 1).all()
    assert (weight[~always] == 5).all()
    left = keep & ~always
    assert abs(weight[left].sum() / (~always).sum() - 1) < 0.03
    again, _ = thin_negatives(request[:500], item[:500], always[:500], share=0.2, seed=1)
    assert (again == keep[:500]).all(), "a candidate's fate does not depend on its neighbours"


def test_figures_are_means_over_rows_resampled_by_session() -> None:
    rank = np.array([1, 2, 0, 0, 4, 25], np.int32)
    sources = {"taste": np.array([0, 1, 0, 0, 0, 0], np.int32)}
    prefixes = Ragged.of([[0], [0, 1], [0], [0, 1, 2], [0], [0]], np.int32)
    cluster = np.array([0, 0, 1, 1, 2, 3])
    files = SessionFiles(np.empty(0, np.uint64), prefixes, prefixes, np.zeros(6, np.int32), cluster, 0)
    found = figures(Answers(rank, sources, rank > 0, 9.0), files, seed=0)
    assert found["ranking"]["recall@20"].value == pytest.approx(3 / 6)
    assert found["ranking"]["mrr@20"].value == pytest.approx((1 + 1 / 2 + 1 / 4) / 6)
    assert found["source taste"]["recall@20"].value == pytest.approx(1 / 6)
    assert found["ceiling"]["recall"].value == pytest.approx(4 / 6)
    assert found["prefix of 1"]["recall@20"].value == pytest.approx(2 / 4)
    wide = found["ranking"]["recall@20"]
    assert wide.low <= wide.value <= wide.high
    assert (wide.low, wide.high) == (0.0, 1.0), "four sessions say little"
