"""The closed answer: nothing is sent, and why, with every column a decided batch has."""

from __future__ import annotations

import numpy as np

from serve_app.batch import Batch
from serve_app.policy.gates import GATE_NAMES
from serve_app.vocabulary import Action, Reason

__all__ = ["close"]


def close(batch: Batch, reason: Reason) -> Batch:
    """Set the decision columns of a prepared batch as if no gate had been asked. Nothing was drawn, so p_none is 1."""
    n, m, gates = len(batch), batch.candidates.rows, len(GATE_NAMES)
    requests, rows = batch.requests, batch.candidates
    requests["p_none"], requests["explored"], requests["forced"] = np.ones(n), np.zeros(n, np.bool_), np.ones(n, np.bool_)
    requests["action"], requests["reason"] = np.full(n, Action.suppress, np.int8), np.full(n, reason, np.int8)
    requests["until"] = np.zeros(n, np.int64)
    rows["slot"], rows["p_choice"], rows["p_shadow"] = np.full(m, -1, np.int32), np.zeros(m), np.zeros(m)
    rows["reason"], rows["action"] = np.full(m, reason, np.int8), np.full(m, Action.suppress, np.int8)
    rows["until"], rows["ghost"], rows["ghost_first"] = np.zeros(m, np.int64), np.zeros(m, np.bool_), np.zeros(m, np.bool_)
    rows["holdout"], rows["counts"] = np.full(m, -1, np.int16), np.zeros(m, np.uint32)
    rows["gates_evaluated"] = np.zeros(m, np.uint32)
    rows["gate_outcome"], rows["gate_reason"] = np.zeros((m, gates), np.int8), np.zeros((m, gates), np.int8)
    rows["used"], rows["limit"] = np.full((m, gates), np.nan), np.full((m, gates), np.nan)
    rows["next_free_at"] = np.zeros((m, gates), np.int64)
    return Batch(requests, rows, batch.offsets, {**batch.meta, "gates": GATE_NAMES})
