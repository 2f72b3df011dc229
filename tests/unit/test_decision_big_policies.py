"""Large random policies against the whole oracle: every word of every candidate, and the same bits in any batch."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest

from serve_app.batch import Batch
from serve_app.ledger.columns import Histories
from serve_app.policy.compile import compile_policy
from serve_app.policy.gates import GATE_NAMES
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import Action, Reason
from tests.unit import decision_oracle_whole as oracle
from tests.unit.decision_support import DAY, HEADS, HOUR, MINUTE, SECOND, batch_of, entry, histories_of
from tests.unit.decision_worlds import CATEGORIES, CLOCKS, ZONES, a_policy, a_request, a_state, hash_id

Row = dict[str, Any]
ITEMS = np.array([hash_id("i0"), hash_id("i1")], np.uint64)


def a_history(rng: Random, asked: Row, keys: list[int]) -> list[Row]:
    """Past sends and ghosts, some by a faster clock, in other zones, by this very request."""
    ages = (
        0,
        1,
        -1,
        SECOND,
        -SECOND,
        MINUTE,
        HOUR,
        5 * HOUR,
        DAY,
        DAY - 1,
        DAY + 1,
        3 * DAY,
        12 * DAY,
        28 * DAY,
        -2 * SECOND,
    )
    campaigns = [one["campaign"] for one in asked["candidates"]] or [1]
    return [
        entry(
            asked["decided_at"] - rng.choice(ages), campaign=rng.choice(campaigns), channel=rng.choice((0, 2, 3)),
            category=rng.choice((0, *map(hash_id, CATEGORIES))), message_class=rng.randint(0, 2), zone=rng.choice(ZONES),
            flags=rng.choice((0, 0, 0, 1)), holdout=rng.choice((0, 0, 0, *keys, 4711)),
            request_id=asked["request_id"] if rng.random() < 0.02 else rng.randint(1, 99),
        )
        for _ in range(rng.randint(0, 8))
    ]  # fmt: skip


def a_case(seed: int, n: int, **sizes: int) -> tuple[Any, list[Row], list[list[Row]]]:
    rng = Random(seed)
    document = a_policy(rng, **sizes)
    keys = [oracle.key_of(one) for one in document.holdouts]
    asked, past = [], []
    for row in range(n):
        now = rng.choice(CLOCKS) + rng.choice((0, 1, -1, SECOND, HOUR, -HOUR, 9 * HOUR, 3 * DAY))
        own = a_state(rng, now) | {"user": rng.getrandbits(64), "attempt": rng.choice((0, 0, 1))}
        asked.append(a_request(rng, now, campaigns=50 if row % 2 else 6, **own))
        past.append(a_history(rng, asked[-1], keys))
    return document, asked, past


def check(out: Batch, row: int, expected: Row) -> None:
    """One decided request equals the oracle's word on it."""
    rows, requests = out.candidates, out.requests
    span = range(out.offsets[row], out.offsets[row + 1])
    told = [
        {
            "reason": Reason(rows["reason"][c]).name,
            "action": Action(rows["action"][c]).name,
            "until": int(rows["until"][c]),
            "slot": int(rows["slot"][c]),
            "ghost": bool(rows["ghost"][c]),
            "ghost_first": bool(rows["ghost_first"][c]),
            "counts": int(rows["counts"][c]),
            "words": [Reason(w).name for w in rows["gate_reason"][c]],
        }
        for c in span
    ]
    wanted = [
        {name: one[name] for name in told[0]} | {"words": [word or "none" for word in one["words"]]}
        for one in expected["candidates"]
    ] if told else []  # fmt: skip
    assert told == wanted
    for c, seen in zip(span, expected["observed"], strict=True):
        _check_observed(rows, c, seen)
    odds = [one["p_choice"] for one in expected["candidates"]]
    assert np.allclose(rows["p_choice"][span.start : span.stop], odds, rtol=0, atol=1e-12)
    assert abs(requests["p_none"][row] - expected["p_none"]) < 1e-12
    assert requests["p_cell"][row] == expected["p_cell"]
    whole = {
        "action": Action(requests["action"][row]).name, "reason": Reason(requests["reason"][row]).name,
        "until": int(requests["until"][row]), "explored": bool(requests["explored"][row]),
    }  # fmt: skip
    assert whole == {name: expected[name] for name in whole}


def _check_observed(rows: Any, c: int, seen: Row) -> None:
    """used and limit, of the cap with the least room and of the gap; NaN where nothing binds."""
    used, limit = (rows[name][c, GATE_NAMES.index("caps")] for name in ("used", "limit"))
    assert (used, limit) in seen["caps"] if seen["caps"] else np.isnan(used) and np.isnan(limit)
    since = rows["used"][c, GATE_NAMES.index("min_gap")]
    assert np.isnan(since) if seen["since"] is None else since == seen["since"]


@cache
def _compiled(revision: str) -> Any:
    return compile_policy(DOCUMENTS[revision], heads={"notification": HEADS})


DOCUMENTS: Row = {}


def run(document: Any, batch: Batch, histories: Histories) -> Batch:
    policy = _compiled(DOCUMENTS.setdefault(document.revision, document).revision)
    return Decision().run(batch, Context((policy,), {"histories": histories, "item_hashes": ITEMS}))


@pytest.mark.parametrize("seed", range(40))
def test_decisions_under_random_policies_are_the_oracles(seed: int) -> None:
    document, asked, past = a_case(seed, 25)
    out = run(document, batch_of(asked), histories_of(past))
    for row, (one, history) in enumerate(zip(asked, past, strict=True)):
        check(out, row, oracle.decide(document, one, history, ITEMS))


@pytest.mark.parametrize("seed", range(100, 104))
def test_the_largest_policies_too(seed: int) -> None:
    document, asked, past = a_case(seed, 25, caps=32, holdouts=16, quiet=12)
    out = run(document, batch_of(asked), histories_of(past))
    for row, (one, history) in enumerate(zip(asked, past, strict=True)):
        check(out, row, oracle.decide(document, one, history, ITEMS))


@pytest.mark.parametrize("seed", range(200, 204))
def test_the_largest_policies_decide_the_same_bytes_alone_in_sevens_and_in_a_thousand(seed: int) -> None:
    document, asked, past = a_case(seed, 50, caps=32, holdouts=16, quiet=12)
    asked = [
        one | {"user": (one["user"] + turn) % 2**64, "request_id": one["request_id"] + turn}
        for turn in range(20)
        for one in asked
    ]
    past = past * 20
    whole = run(document, batch_of(asked), histories_of(past))
    for size, step in ((1, 9), (7, 7)):
        for start in range(0, 1000, step):
            rows = np.arange(start, min(start + size, 1000))
            part = run(document, batch_of([asked[r] for r in rows]), histories_of([past[r] for r in rows]))
            assert _bytes(part) == _bytes(whole.take(rows))


def _bytes(batch: Batch) -> dict[str, bytes]:
    columns = [*batch.requests.items(), *batch.candidates.items()]
    return {f"{place} {name}": np.ascontiguousarray(values).tobytes() for place, (name, values) in enumerate(columns)}
