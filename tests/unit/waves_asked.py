"""What was asked, as a wave-by-wave replay needs it: under another policy, with its outcomes, with its re-decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS
from serve_app.policy.compile import CompiledPolicy
from serve_app.vocabulary import Origin
from simulators.replay.memberships import segments_under
from simulators.replay.opportunities import Opportunities
from simulators.replay.pack_lazy import replaced

__all__ = ["as_told", "children", "under"]

I64 = npt.NDArray[np.int64]


def under(asked: Opportunities, policy: CompiledPolicy, behaviour: Sequence[CompiledPolicy]) -> Opportunities:
    """The same requests as asked of one other policy. behaviour: the policies of `revisions`."""
    if not any(policy is one for one in behaviour):
        asked = asked.scored()
    bits, index = segments_under(policy, behaviour, asked.batch)
    own: dict[str, Any] = {"policy": np.zeros(len(asked), np.int16), "segments": bits}
    requests = replaced(asked.batch.requests, REQUEST_COLUMNS, own)
    candidates = replaced(asked.batch.candidates, CANDIDATE_COLUMNS, {"segment": index})
    return replace(asked, batch=Batch(requests, candidates, asked.batch.offsets, asked.batch.meta))


def children(asked: Opportunities) -> I64:
    """i64[n]: the row that decided each deferred request again; -1: none."""
    requests, parents = asked.batch.requests, dict[tuple[int, int], int]()
    for row, (user, request) in enumerate(zip(requests["user"].tolist(), requests["request_id"].tolist(), strict=True)):
        parents.setdefault((user, request), row)
    out = np.full(len(asked), -1, np.int64)
    for row in np.flatnonzero(requests["origin"] == Origin.deferral).tolist():
        parent = parents.get((int(requests["user"][row]), int(requests["parent_request_id"][row])), -1)
        if parent >= 0:
            out[parent] = row
    return out


def as_told(asked: Opportunities) -> Batch:
    """The batch with the logged outcome in it: what the ledger was told. Its `policy` column names `revisions`."""
    names = ("slot", "ghost", "holdout", "action", "reason", "p_choice")
    own = {name: asked.logged_candidates[name] for name in names}
    own["slot"] = np.where(asked.logged["granted"][asked.batch.owner], own["slot"], -1).astype(np.int32)
    candidates = replaced(asked.batch.candidates, CANDIDATE_COLUMNS, own)
    requests = replaced(asked.batch.requests, REQUEST_COLUMNS, {"policy": asked.logged["policy"]})
    return Batch(requests, candidates, asked.batch.offsets, asked.batch.meta)
