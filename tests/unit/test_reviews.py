"""Review features and the review model."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import rankdata

from hindcast.evaluation.reviews import evaluate, read_reviews
from serve_app.catalogue import SCHEMAS
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.reviews import ReviewModel, ReviewTable, build_review_part, out_of_fold, train_review_model
from serve_app.reviews.features import AGE_FEATURES, FEATURES, review_features


def reviews(n: int = 300, seed: int = 0) -> ReviewTable:
    """Longer reviews are voted for more often."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 60, n)
    return ReviewTable(
        rng.integers(0, 12, n).astype(np.uint64),
        rng.integers(0, 120, n).astype(np.uint64),
        rng.integers(1_400_000_000, 1_500_000_000, n) * 1_000_000,
        rng.integers(1, 6, n).astype(np.float32),
        rng.random(n) < 0.5,
        [f"{i}: " + "It works, but I did not like it! " * int(w) for i, w in enumerate(words)],
        (rng.random(n) < words / 80).astype(np.int32),
        [""] * n,
        np.zeros(n, np.int32),
    )


def feature(table: ReviewTable, name: str) -> list[float]:
    return review_features(table, with_age=True)[:, (FEATURES + AGE_FEATURES).index(name)].tolist()


def test_text_is_described() -> None:
    table = replace(reviews(2), text=["I LOVE it! Do you?\nNo.", ""])
    assert feature(table, "words")[0] == pytest.approx(np.log1p(6))
    assert feature(table, "sentences")[0] == pytest.approx(np.log1p(3))
    assert feature(table, "shouted_words")[0] == pytest.approx(np.log1p(1))
    assert feature(table, "first_person")[0] == pytest.approx(np.log1p(1))
    assert feature(table, "second_person")[0] == pytest.approx(np.log1p(1))
    assert feature(table, "lines")[0] == pytest.approx(np.log1p(1))
    assert feature(table, "characters")[1] == 0.0


def test_ranks_are_within_the_item_with_ties_shared() -> None:
    table = reviews(60)
    table = replace(table, text=["x" * (i % 7) for i in range(60)])
    length = np.array([len(text) for text in table.text])
    share = np.array(feature(table, "length_rank"))
    for item in np.unique(table.item):
        rows = table.item == item
        np.testing.assert_allclose(share[rows], rankdata(length[rows]) / rows.sum(), rtol=1e-6)


def test_features_never_look_at_votes() -> None:
    table = reviews()
    flipped = replace(table, votes=1 - table.votes)
    assert review_features(table, with_age=True).tobytes() == review_features(flipped, with_age=True).tobytes()


@pytest.mark.parametrize("n", [0, 1])
def test_few_reviews_have_features_too(n: int) -> None:
    assert review_features(reviews(n), with_age=True).shape == (n, len(FEATURES + AGE_FEATURES))


def test_a_reviewers_score_does_not_depend_on_that_reviewers_votes() -> None:
    table = reviews()
    matrix = review_features(table, with_age=False)
    one = table.user == table.user[0]
    before = out_of_fold(matrix, table.votes > 0, table.user, seed=1)
    after = out_of_fold(matrix, np.where(one, table.votes == 0, table.votes > 0), table.user, seed=1)
    assert before[one].tobytes() == after[one].tobytes()
    assert before.tobytes() != after.tobytes()


def test_a_trained_model_prefers_what_was_voted_for_and_survives_a_move(tmp_path: Path) -> None:
    table = reviews()
    model = train_review_model(table, seed=1)
    assert model.metrics["auc"] > 0.7
    model.save(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    back = ReviewModel.load(tmp_path / "b")
    scores = model.score(table)
    assert back.score(table).tobytes() == scores.tobytes()
    assert scores[table.votes > 0].mean() > scores[table.votes == 0].mean()
    assert ((scores >= 0) & (scores <= 1)).all()


def test_a_text_under_many_products_counts_once() -> None:
    table = reviews(100)
    copies = table.take(np.tile(np.arange(100), 3))
    assert copies.distinct_texts().tolist() == list(range(100))


@pytest.mark.parametrize("votes", [0, 1])
def test_training_without_both_kinds_is_refused(votes: int) -> None:
    table = reviews(60)
    with pytest.raises(InvalidInput, match="helpful_votes"):
        train_review_model(replace(table, votes=np.full(60, votes, np.int32)), seed=1)


@pytest.mark.parametrize("name", ["booster.ubj", "review_model.json"])
def test_a_truncated_model_is_refused(tmp_path: Path, name: str) -> None:
    train_review_model(reviews(), seed=1).save(tmp_path)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DamagedArtifact, match=name):
        ReviewModel.load(tmp_path)


def test_a_model_of_other_features_is_refused(tmp_path: Path) -> None:
    train_review_model(reviews(), seed=1).save(tmp_path)
    text = json.loads((tmp_path / "review_model.json").read_text())
    text["features"][0] = "smell"
    (tmp_path / "review_model.json").write_text(json.dumps(text))
    with pytest.raises(DamagedArtifact, match="other features"):
        ReviewModel.load(tmp_path)


def catalogue_reviews(n: int) -> pa.Table:
    rows = [
        {
            "review_id": f"r{i}",
            "item_id": f"i{i % 3}",
            "user_id": f"u{i}",
            "at": 5,
            "stars": 4.0,
            "text": f"{i} " + "fine " * (i % 40),
            "helpful_votes": int(i % 40 > 20) if i else None,
            "verified": True,
        }
        for i in range(n)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["reviews"])


def test_the_catalogues_reviews_become_a_table() -> None:
    table = ReviewTable.from_catalogue(catalogue_reviews(2))
    assert table.votes.tolist() == [-1, 0]
    assert table.text == ["0 ", "1 fine "]


@pytest.mark.parametrize(("n", "learned"), [(0, False), (5, False), (200, True)])
def test_a_release_keeps_a_score_for_every_review(n: int, learned: bool) -> None:
    part = build_review_part(catalogue_reviews(n), np.arange(n, dtype=np.uint64), 7, seed=1)
    assert (part.model is not None) == learned == (part.left_out == "")
    assert part.table.values.shape == (n, 1)
    assert not np.isnan(part.table.values).any()
    assert part.heads.names == ("p_helpful",)
    if learned:
        assert part.table.values[30, 0] > part.table.values[3, 0]


def test_evaluation_gives_an_interval_around_each_figure() -> None:
    result = evaluate(reviews(200), seed=1, repeats=1)
    for figure in result["auc"].values():
        assert figure["low"] <= figure["auc"] <= figure["high"]


def _write(path: Path, *lines: str) -> None:
    with gzip.open(path, "wt") as stream:
        stream.write("\n".join(lines))


def test_a_folder_of_amazon_reviews_is_read(tmp_path: Path) -> None:
    row = {"asin": "a", "reviewerID": "u", "unixReviewTime": 7, "overall": 5.0, "vote": "1,234", "reviewText": "good"}
    _write(tmp_path / "some.json.gz", json.dumps(row))
    table = read_reviews(tmp_path)
    assert (table.votes[0], table.at[0], table.text[0]) == (1234, 7_000_000, "good")


@pytest.mark.parametrize(("line", "says"), [("{", "cannot be read"), ('{"asin": "a"}', "line 1 lacks reviewerID")])
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    _write(tmp_path / "some.json.gz", line)
    with pytest.raises(InvalidInput, match=says):
        read_reviews(tmp_path)


def test_a_truncated_or_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no"):
        read_reviews(tmp_path)
    (tmp_path / "some.json.gz").write_bytes(gzip.compress(b'{"asin": "a"}' * 100)[:-20])
    with pytest.raises(InvalidInput, match=r"some\.json\.gz"):
        read_reviews(tmp_path)
