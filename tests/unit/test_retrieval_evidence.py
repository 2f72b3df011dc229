"""Evidence of retrieval's kernels against the obvious computation, and the kernels' own parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.batch import Batch
from serve_app.stages.retrieval import EVIDENCE, Retrieval, RetrievalTables, SurfaceRetrieval
from serve_app.stages.retrieval.choose import threshold
from serve_app.stages.retrieval.evidence import INDEX, RANKED
from serve_app.stages.retrieval.neighbours import ExactNeighbours
from serve_app.stages.stage import Context
from serve_app.vocabulary import Source, Surface
from tests.unit.retrieval_fixtures import requests, tables

ITEMS = 120


class Everything:
    """A policy that asks for more than there is."""

    def retrieval(self, surface: Surface, variant: int = 0) -> SurfaceRetrieval:
        wanted = (Source.similar, Source.taste, Source.covisited, Source.session, Source.popular, Source.recent)
        return SurfaceRetrieval(dict.fromkeys(wanted, 2 * ITEMS))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> RetrievalTables:
    return tables(tmp_path_factory.mktemp("tables") / "retrieval", items=ITEMS, sessions=300)


@pytest.fixture(scope="module")
def answered(built: RetrievalTables) -> Batch:
    return Retrieval(built).run(requests(25, ITEMS), Context(policies=(Everything(),)))


def recents_of(batch: Batch, row: int) -> list[int]:
    """Recents, newest first, the anchor before all."""
    own = batch.requests["recents"][row].tolist()
    anchor = int(batch.requests["anchor"][row])
    return ([*own, anchor] if anchor >= 0 and own[-1:] != [anchor] else own)[::-1]


def dense(batch: Batch, row: int, name: str) -> np.ndarray:
    """One evidence column of a request, by item row; 0 for items that are no candidates."""
    out = np.zeros(ITEMS)
    own = slice(batch.offsets[row], batch.offsets[row + 1])
    out[batch.candidates["item"][own]] = batch.candidates["source_scores"][own, INDEX[name]]
    return out


def first_places(recents: list[int]) -> list[tuple[int, int]]:
    """(steps, item) of every distinct recent at its newest sight."""
    return [(k, x) for k, x in enumerate(recents) if x not in recents[:k]]


def test_co_visits_add_up_over_the_recents(built: RetrievalTables, answered: Batch) -> None:
    for row in range(len(answered)):
        follow, covisited = np.zeros(ITEMS), np.zeros(ITEMS)
        for k, x in first_places(recents_of(answered, row)[:12]):
            own = slice(built.follow.offsets[x], built.follow.offsets[x + 1])
            follow[built.follow.neighbours[own]] += 0.8**k * built.follow.weights[own] / (built.follow.totals[x] + 3)
            own = slice(built.covisits.offsets[x], built.covisits.offsets[x + 1])
            others = built.covisits.neighbours[own]
            norm = np.sqrt((built.covisits.totals[x] + 5) * (built.covisits.totals[others] + 5))
            covisited[others] += 0.8**k * built.covisits.weights[own] / norm
        np.testing.assert_allclose(dense(answered, row, "follow"), follow, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(dense(answered, row, "covisited"), covisited, rtol=1e-4, atol=1e-7)


def test_neighbouring_sessions_add_up_as_defined(built: RetrievalTables, answered: Batch) -> None:
    index = built.sessions
    past = [index.items[index.offsets[s] : index.offsets[s + 1]].tolist() for s in range(len(index.offsets) - 1)]
    for row in range(len(answered)):
        used = first_places(recents_of(answered, row)[:12])
        expected, after, matched = np.zeros(ITEMS), np.zeros(ITEMS), 0
        for s, session in enumerate(past):
            shared = [(k, x) for k, x in used if x in session]
            matched += bool(shared)
            if not shared:
                continue
            age = (len(past) - 1 - s) / len(past)
            weight = sum(0.6**k * built.item_idf[x] for k, x in shared) * np.exp(-age) / np.sqrt(len(session))
            back, newest = shared[0]
            match = len(session) - 1 - session[::-1].index(newest)
            for q, item in enumerate(session):
                if q != match:
                    part = weight * 0.85 ** (abs(q - match) - 1)
                    expected[item] += part
                    after[item] += part * 0.9**back if q > match else 0.0
        np.testing.assert_allclose(dense(answered, row, "session"), expected, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(dense(answered, row, "session_after"), after, rtol=1e-3, atol=1e-6)
        if len(used):
            assert dense(answered, row, "sessions_matched").max() == matched


def test_embedding_evidence_is_the_cosine(built: RetrievalTables, answered: Batch) -> None:
    vectors = np.asarray(built.vectors, np.float64)
    for row in range(len(answered)):
        recents = recents_of(answered, row)
        candidates = answered.candidates["item"][answered.offsets[row] : answered.offsets[row + 1]]
        if recents and len(candidates):
            got = dense(answered, row, "similar_last")[candidates]
            np.testing.assert_allclose(got, vectors[candidates] @ vectors[recents[0]], atol=1e-5)


def test_ranks_and_shares_follow_the_scores(answered: Batch) -> None:
    for row in range(len(answered)):
        own = answered.candidates["source_scores"][answered.offsets[row] : answered.offsets[row + 1]]
        for name in RANKED:
            score, rank, share = own[:, INDEX[name]], own[:, INDEX[f"{name}_rank"]], own[:, INDEX[f"{name}_relative"]]
            known = score > 0
            assert (rank[~known] == 999).all()
            assert sorted(rank[known]) == list(range(1, int(known.sum()) + 1))
            order = np.argsort(rank[known])
            assert (np.diff(score[known][order]) <= 0).all()
            if known.any():
                np.testing.assert_allclose(share[known], score[known] / score.max(), rtol=1e-6)


def test_candidates_come_in_blended_order_ties_by_row(answered: Batch) -> None:
    for row in range(len(answered)):
        own = slice(answered.offsets[row], answered.offsets[row + 1])
        blended, items = answered.candidates["retrieval_score"][own], answered.candidates["item"][own]
        assert (np.lexsort((items, -blended)) == np.arange(len(items))).all()


def test_facts_of_the_request_are_the_same_for_all_its_candidates(answered: Batch) -> None:
    shared = [INDEX[name] for name in EVIDENCE[INDEX["sessions_matched"] :]]
    for row in range(len(answered)):
        own = answered.candidates["source_scores"][answered.offsets[row] : answered.offsets[row + 1]][:, shared]
        assert (own == own[:1]).all()
        recents = recents_of(answered, row)
        if len(own):
            assert own[0, 1] == len(set(recents))
            assert own[0, 2] == (recents.count(recents[0]) if recents else 0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.integers(1, 45))
def test_the_threshold_is_the_count_th_largest(values: list[int], count: int) -> None:
    expected = -np.inf if count > len(values) - 1 else sorted(values, reverse=True)[count - 1]
    assert threshold(np.array(values, np.float32), count) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=30), st.integers(1, 35))
def test_exact_search_is_a_stable_sort_by_falling_score(points: list[tuple[int, int]], count: int) -> None:
    vectors = np.array(points, np.float32)
    queries = np.array([[1.0, 0.0], [-1.0, 2.0], [0.0, 0.0]], np.float32)
    rows, scores = ExactNeighbours(vectors).search(queries, count)
    take = min(count, len(vectors))
    for own, score, query in zip(rows, scores, queries, strict=True):
        product = vectors @ query
        expected = np.argsort(-product, kind="stable")[:take]
        assert own[:take].tolist() == expected.tolist()
        assert score[:take].tolist() == product[expected].tolist()
        assert (own[take:] == -1).all()
