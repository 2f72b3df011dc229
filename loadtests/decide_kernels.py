"""The gates by themselves, and a bare `decide` on a memory ledger: what the server's figures are to be compared with.

Candidates evaluated by all ten gates per second on one core, in batches of 10,000 decisions' candidates, and the time of a
batch of one; then `decide` as a whole (read, gates, choice, commit) without records, HTTP, heads or journal.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.decide_data import HISTORY, choices, full_policy
from serve_app.batch import Batch, Ragged
from serve_app.campaigns import CampaignTable, notification_candidates, parse_campaign
from serve_app.catalogue import read_catalogue
from serve_app.decide import decide
from serve_app.ids import hash_ids
from serve_app.ledger.columns import HISTORY_DTYPE, Histories, UserState
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import LedgerSettings
from serve_app.policy.compile import CompiledPolicy, compile_policy
from serve_app.policy.gates import GATES, HistoryView
from serve_app.policy.zones import local_day
from serve_app.stages.decision import Decision
from serve_app.stages.decision.prepare import prepared
from serve_app.stages.decision.words import evaluate
from serve_app.stages.stage import Context
from serve_app.vocabulary import Surface

__all__ = ["measure_kernels"]

CANDIDATES = 5
HEADS = ("p_click", "p_convert", "p_optout", "uplift")
DAY = 86_400_000_000


def measure_kernels(data: Path, now: int, *, rounds: int = 15) -> dict[str, Any]:
    """Figures on one core, the best of `rounds`."""
    policy = compile_policy(full_policy(now), heads={"notification": HEADS})
    context = Context((policy,))
    large, large_view = _batch(data, policy, now, 2_000)
    one, one_view = _batch(data, policy, now, 1)
    per_large = _best(rounds, lambda: evaluate(large, large_view, policy, context))
    per_one = _best(rounds * 20, lambda: evaluate(one, one_view, policy, context))
    stage = Decision()
    bare = [_bare(stage, data, policy, now, turn) for turn in range(3)]
    return {
        "gates": len(GATES),
        "caps": len(policy.document.caps),
        "segments": len(policy.document.segments),
        "candidates_in_batch": large.candidates.rows,
        "candidates_per_s": large.candidates.rows / per_large,
        "batch_of_one_us": per_one * 1e6,
        "bare_decide_us": min(bare) * 1e6,
    }


def _best(rounds: int, work: Any) -> float:
    work()
    took = []
    for _ in range(rounds):
        began = time.thread_time()
        work()
        took.append(time.thread_time() - began)
    return min(took)


def _requests(data: Path, policy: CompiledPolicy, now: int, n: int, seed: int = 3) -> Batch:
    """n users of Seoul with consent, each with five candidates of the campaigns there are."""
    rng = np.random.default_rng(seed)
    table = CampaignTable.of(
        [parse_campaign(one) for one in read_catalogue(data / "catalogue").campaigns.to_pylist()], policy
    )
    pairs = choices(data)
    rows = {name: row for row, name in enumerate(table.ids)}
    chosen = [[rows[pairs[at][0]] for at in rng.choice(len(pairs), CANDIDATES, replace=False)] for _ in range(n)]
    batch = Batch.of_requests(
        request_id=rng.integers(1, 2**63, n).astype(np.uint64),
        surface=np.full(n, Surface.notification, np.int8),
        decided_at=np.full(n, now),
        policy=np.zeros(n, np.int16),
        user=rng.integers(1, 2**63, n).astype(np.uint64),
        zone=np.full(n, policy.default_zone, np.int16),
        region=np.zeros(n, np.int16),
        consent_ad_at=np.full(n, now - 90 * DAY),
        consent_night_at=np.full(n, now - 90 * DAY),
        reachable=np.full(n, 63, np.uint16),
        segments=np.full(n, 7, np.uint64),
        segments_at=np.full(n, now - DAY // 2),
        slots=np.ones(n, np.int32),
    )
    channels = np.full(n * CANDIDATES, -1, np.int8)
    flat = Ragged(np.array(chosen, np.int32).ravel(), np.arange(n + 1, dtype=np.int64) * CANDIDATES)
    channels[:] = [int(table.channels[int(row)][0]) for row in flat.values]
    out = notification_candidates(batch, table, flat, channels=channels)
    out.candidates["heads"] = rng.random((out.candidates.rows, len(HEADS)), np.float32)
    out.meta["heads"] = HEADS
    return out


def _batch(data: Path, policy: CompiledPolicy, now: int, n: int) -> tuple[Batch, HistoryView]:
    batch = prepared(_requests(data, policy, now, n), policy)
    return batch, HistoryView.of(Histories(_entries(n, now), np.arange(n + 1, dtype=np.int64) * HISTORY))


def _entries(n: int, now: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    entries = np.zeros(n * HISTORY, HISTORY_DTYPE)
    entries["at"] = now - np.tile(np.array([4.0, 1.5, 0.3]) * DAY, n).astype(np.int64)
    entries["campaign"], entries["category"] = hash_ids(["past"])[0], 1
    entries["message_class"] = 2
    entries["local_day"] = local_day(entries["at"], np.zeros(n * HISTORY, np.int16))
    return entries


def _bare(stage: Decision, data: Path, policy: CompiledPolicy, now: int, turn: int) -> float:
    """Seconds per decision of `decide` on a memory ledger that keeps no records."""
    n = 2_000
    batch = _requests(data, policy, now, n, seed=100 + turn)
    ledger = MemoryLedger(LedgerSettings(keep_records=False))
    state = UserState.unknown(n)
    for name in ("zone", "region", "consent_ad_at", "consent_night_at", "reachable"):
        getattr(state, name)[:] = batch.requests[name]
    ledger.put_users(batch.requests["user"], state)
    decide(ledger, stage, _requests(data, policy, now, 10, seed=turn), Context((policy,)))
    began = time.thread_time()
    decide(ledger, stage, batch, Context((policy,)))
    return (time.thread_time() - began) / n
