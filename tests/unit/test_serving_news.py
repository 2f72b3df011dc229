"""What ranking made travels back without the columns it was given."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from serve_app.batch import Batch
from serve_app.errors import InvalidInput
from serve_app.serving.hosts import flagged, news, with_news
from serve_app.stages.extend import extended
from serve_app.vocabulary import StageBit


def asked() -> Batch:
    requests = Batch.of_requests(request_id=np.array([1, 2], np.uint64), degraded=np.zeros(2, np.uint8))
    return requests.with_candidates(np.array([0, 1, 3]), item=np.array([5, 6, 7], np.int32))


def test_only_what_is_new_travels_and_the_joined_batch_is_the_one_that_was_made() -> None:
    batch = asked()
    made = extended(flagged(batch, StageBit.features), {"heads": ("click",)}, heads=np.ones((3, 1), np.float32))
    new = pickle.loads(pickle.dumps(news(batch, made)))
    assert (list(new.requests), list(new.candidates)) == (["degraded"], ["heads"])
    joined = with_news(batch, new)
    assert joined.meta == made.meta
    for mine, theirs in ((joined.requests, made.requests), (joined.candidates, made.candidates)):
        assert set(mine) == set(theirs)
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert not batch.requests["degraded"].any()


def test_news_of_other_candidates_are_refused() -> None:
    batch = asked()
    with pytest.raises(InvalidInput, match="rows"):
        with_news(batch, batch.take([0]))
