"""Decision records: everything packed comes back, alone or among others; damage is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.batch import Batch, lengths_to_offsets
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.ledger.record import pack_records, unpack_record
from serve_app.noise import hash_key, uniform
from serve_app.policy.assigned import Trials, held_bits, trials_of
from serve_app.policy.zones import zone_index
from serve_app.regions import region_index
from tests.unit.decision_support import compiled
from tests.unit.truth_support import decide_one_batch


def decided(counts: list[int], gates: int = 3, heads: int = 2, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    rows, total = len(counts), sum(counts)
    batch = Batch.of_requests(
        request_id=rng.integers(1, 2**63, rows).astype(np.uint64),
        user=rng.integers(1, 2**63, rows).astype(np.uint64),
        decided_at=rng.integers(0, 2**53, rows),
        zone=np.where(np.arange(rows) % 2, zone_index("Asia/Seoul"), -1).astype(np.int16),
        region=np.full(rows, region_index("KR"), np.int16),
        p_none=rng.random(rows),
        forced=rng.random(rows) < 0.5,
    )
    batch.meta = {"gates": [f"gate{k}" for k in range(gates)], "heads": ["p_click", "p_optout"], "release": "r1", "noise": 5}
    return batch.with_candidates(
        lengths_to_offsets(counts),
        item=rng.integers(-1, 5, total).astype(np.int32),
        campaign=rng.integers(0, 2**63, total).astype(np.uint64),
        heads=rng.random((total, heads)).astype(np.float32),
        gate_outcome=rng.integers(0, 3, (total, gates)).astype(np.int8),
        used=np.where(rng.random((total, gates)) < 0.2, np.nan, rng.random((total, gates))),
        ghost=rng.random(total) < 0.5,
    )


def test_a_record_says_all_that_was_packed() -> None:
    batch = decided([2, 0, 3])
    hashes = np.arange(100, 105, dtype=np.uint64)
    records = [unpack_record(record) for record in pack_records(batch, item_hashes=hashes)]
    for row, record in enumerate(records):
        assert record["schema"] == 2
        assert record["meta"] == {"gates": ["gate0", "gate1", "gate2"], "heads": ["p_click", "p_optout"], "release": "r1"}
        for name in ("request_id", "user", "decided_at", "p_none", "forced"):
            assert record["request"][name] == batch.requests[name][row]
        assert record["request"]["zone"] == ("Asia/Seoul" if row % 2 else "")
        assert record["request"]["region"] == "KR"
        own = slice(batch.offsets[row], batch.offsets[row + 1])
        for name in ("campaign", "heads", "gate_outcome", "used", "ghost"):
            np.testing.assert_array_equal(record["candidates"][name], batch.candidates[name][own])
        items = batch.candidates["item"][own]
        assert record["candidates"]["item_hash"].tolist() == [0 if item < 0 else 100 + item for item in items]
        assert set(record["candidates"]) == {"item_hash", "campaign", "heads", "gate_outcome", "used", "ghost"}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(0, 4), st.integers(0, 2))
def test_a_record_is_the_same_bytes_alone_and_among_others(counts: list[int], gates: int, heads: int) -> None:
    batch = decided(counts, gates, heads)
    together = pack_records(batch)
    assert together == [pack_records(batch.take([row]))[0] for row in range(len(counts))]
    assert all(
        len(unpack_record(one)["candidates"]["campaign"]) == count for one, count in zip(together, counts, strict=True)
    )


def test_a_record_needs_to_say_whose_it_is() -> None:
    with pytest.raises(InvalidInput, match="request_id"):
        pack_records(Batch.of_requests(user=np.zeros(1, np.uint64)))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda record: b"", "not a decision record"),
        (lambda record: b"XX" + record[2:], "not a decision record"),
        (lambda record: record[:-1], "wrong length"),
        (lambda record: record + b"\0", "wrong length"),
        (lambda record: record[:2] + b"\x09\x00" + record[4:], "schema 9, this version reads 2"),
    ],
)
def test_a_damaged_record_is_refused(change, text: str) -> None:
    with pytest.raises(DamagedArtifact, match=text):
        unpack_record(change(pack_records(decided([2]))[0]))


def test_a_record_keeps_assignments_keys_and_pins_so_that_it_needs_no_policy_to_be_read() -> None:
    policies = [
        compiled(
            holdouts=[{"id": "g", "scope": "global", "percent": 50, "salt": "g"}],
            experiments=[{"id": "e", "salt": "e", "arms": [{"id": "a", "percent": 25}, {"id": "b", "percent": 75}]}],
        ),
        compiled(),
    ]
    batch = decide_one_batch(40, policies)
    keys = [b"" if row % 2 else row.to_bytes(16, "big") for row in range(40)]
    keys[2] = bytes(15) + b"\x07"
    for row, one in enumerate(map(unpack_record, pack_records(batch, policies=policies, keys=keys))):
        request, meta = one["request"], one["meta"]
        pinned = int(batch.requests["policy"][row])
        trials = Trials.of_document(meta["trials"][pinned])
        assert meta["policy_revisions"][pinned] == policies[pinned].revision
        assert trials == trials_of(policies[pinned])
        assert request["arms"] == batch.requests["arms"][row]
        assert request["variant"] == batch.requests["variant"][row]
        user = batch.requests["user"][row : row + 1]
        assert request["held"] == held_bits(policies[pinned].holdouts, user)[0]
        held = pinned == 0 and uniform(hash_key(policies[0].holdouts.salts[0], user))[0] < 0.5
        assert request["held"] == int(held)
        assert request["idempotency_key"] == (b"" if row % 2 or row == 0 else keys[row])
        own = slice(batch.offsets[row], batch.offsets[row + 1])
        np.testing.assert_array_equal(one["candidates"]["p_shadow"], batch.candidates["p_shadow"][own])
    assert (batch.candidates["p_shadow"] > 0).sum() > 0
