"""Counter-based noise, stable ids, error texts."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import DamagedArtifact, HindcastError, InvalidInput
from serve_app.ids import BUCKETS, bucket_of, decision_id_text, fresh_id, hash_id, hash_ids, parse_decision_id
from serve_app.noise import absorb, gumbel, hash_key, mix, salt_of, uniform, unit_interval

u64 = st.integers(0, 2**64 - 1)


def test_fresh_ids_do_not_repeat_in_threads_or_after_a_fork() -> None:
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda _: fresh_id(), range(20_000)))
    assert len(set(ids)) == len(ids)
    assert all(0 < one < 2**64 for one in ids)
    ends = os.pipe()
    if (child := os.fork()) == 0:
        os.write(ends[1], b"".join(fresh_id().to_bytes(8) for _ in range(500)))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(ends[0], 8 * 500)
    assert len(theirs) == 8 * 500
    own = {fresh_id() for _ in range(500)}
    assert not own & {int.from_bytes(theirs[at : at + 8]) for at in range(0, len(theirs), 8)}


@given(u64, u64, u64)
def test_kernels_and_arrays_hash_alike(salt: int, a: int, b: int) -> None:
    bits = hash_key(salt, np.uint64(a), np.uint64(b))[0]
    assert absorb(np.uint64(absorb(np.uint64(salt), np.uint64(a))), np.uint64(b)) == bits
    assert uniform(np.array([bits]))[0] == unit_interval(bits)


def test_known_values_never_change() -> None:
    # The log's propensities and assignments rest on these bits.
    assert int(mix(np.uint64(0))) == 0xE220A8397B1DCDAF
    assert int(hash_key(salt_of("slots"), 1, 2)[0]) == int(hash_key(salt_of("slots"), 1, 2)[0])
    assert int(salt_of("slots")) == hash_id("slots")


def test_uniforms_are_uniform_and_independent_of_neighbours() -> None:
    draws = uniform(hash_key(7, np.arange(200_000)))
    assert scipy.stats.kstest(draws, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.01
    assert draws.min() > 0
    assert draws.max() < 1


def test_gumbel_argmax_draws_the_softmax() -> None:
    weights = np.array([0.5, 0.3, 0.2])
    noise = gumbel(hash_key(3, np.arange(100_000)[:, None], np.arange(3)[None, :]))
    counts = np.bincount(np.argmax(np.log(weights) + noise, axis=1), minlength=3)
    assert scipy.stats.chisquare(counts, weights * 100_000).pvalue > 1e-4


def test_floats_are_no_key() -> None:
    with pytest.raises(TypeError, match="integers"):
        hash_key(1, np.array([0.5]))


@given(st.text(max_size=40))
def test_ids_hash_alike_alone_and_in_rows(text: str) -> None:
    assert hash_ids([text, text])[1] == hash_id(text)


def test_composed_and_decomposed_text_are_one_id() -> None:
    assert hash_id("caf\u00e9") == hash_id("cafe\u0301")
    assert hash_id("🎁") != hash_id("🎀")


def test_buckets_are_spread_evenly() -> None:
    counts = np.bincount(bucket_of(hash_ids(f"user-{i}" for i in range(400_000))), minlength=BUCKETS)
    assert len(counts) == BUCKETS
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


@given(u64, u64, st.integers(0, 65_535))
def test_decision_ids_round_trip(user: int, request_id: int, slot: int) -> None:
    assert parse_decision_id(decision_id_text(user, request_id, slot)) == (user, request_id, slot)


@pytest.mark.parametrize("text", ["", "d", "x" * 37, "d" + "g" * 36, "D" + "0" * 36, "d" + "0" * 35, "d" + " " * 36])
def test_other_text_is_no_decision_id(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a decision id"):
        parse_decision_id(text)


def test_errors_name_field_and_fix_and_survive_the_wire() -> None:
    error = DamagedArtifact("is truncated", field="vectors.npy", hint="rebuild")
    assert str(error) == "vectors.npy: is truncated (rebuild)"
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back)) == (DamagedArtifact, str(error))
    assert isinstance(back, HindcastError)
