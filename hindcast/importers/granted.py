"""Sends that a data set tells of, as decisions of a policy that grants whatever it is asked for.

A send becomes a request with one candidate, decided by the Decision stage itself under `GRANTS_ALL`: sent, forced, with
probability one. That is all a data set without propensities can say: given that this message was to go to this person then,
it went. Who was chosen for what is not in it, so a replay of such a log counts volumes under other rules, and refuses to say
what those rules would have changed in outcomes: the log never tried it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import Batch, Columns, lengths_to_offsets
from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS
from serve_app.ledger.columns import HISTORY_DTYPE, Histories
from serve_app.log.fingerprint import code_version, fingerprint
from serve_app.log.rows import EntityHashes, rows_from_batch
from serve_app.policy.compile import compile_policy
from serve_app.policy.document import PolicyDocument, parse_policy
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import Delivery, MessageClass, Origin, Surface

__all__ = ["GRANTS_ALL", "granted_rows"]

Given = Mapping[str, npt.NDArray[np.generic]]

_FREE = {"ad_consent_required": False, "night_consent_required": False, "ad_label": None}
GRANTS_ALL: PolicyDocument = parse_policy(
    {
        "name": "grants all",
        "description": "What is asked for is sent: no cap, no quiet hours, no consent asked for, no threshold.",
        "default_zone": "UTC",
        "message_classes": {one.name: {"bypass_threshold": True} for one in MessageClass},
        "other_regions": _FREE,
    }
)
"""The policy that logs of this module were written under."""


def granted_rows(requests: Given, candidates: Given) -> dict[str, pa.RecordBatch]:
    """Rows of `requests`, `candidates` and `decisions` of n sends, one candidate a request.

    requests, candidates: columns of `serve_app.columns`, n values each, in order of time; request_id, user, decided_at,
    zone, region, reachable and campaign, channel, message_class, category are needed. Sends of a user are decided one after
    the other as they stand: their ledger versions count from 0. Raises InvalidInput where a send would not be granted.
    """
    batch = _batch(requests, candidates)
    n = len(batch)
    policy = compile_policy(GRANTS_ALL, heads={})
    histories = Histories(np.empty(0, HISTORY_DTYPE), lengths_to_offsets(np.zeros(n, np.int64)))
    decided = Decision().run(batch, Context(policies=(policy,), parts={"histories": histories}))
    return rows_from_batch(
        decided,
        hashes=EntityHashes(np.empty(0, np.uint64)),
        policy_revision=policy.revision,
        release="import",
        fingerprint=fingerprint(),
        salt=int(policy.rules.flip_salt),
        code_version=code_version(),
        commit_version=decided.requests["read_version"] + 1,
    )


def _batch(requests: Given, candidates: Given) -> Batch:
    n = len(requests["user"])
    constants = {
        "root_id": requests["request_id"],
        "surface": np.full(n, Surface.notification),
        "origin": np.full(n, Origin.audience),
        "slots": np.ones(n),
        "width": np.ones(n),
        "policy": np.zeros(n),
        "env_seq": np.full(n, -1),
        "refunds_read": np.zeros(n),
        "read_version": _ranks(np.asarray(requests["user"], np.uint64)),
    }
    asked = Columns(n, REQUEST_COLUMNS)
    for name, values in {**constants, **requests}.items():
        asked[name] = values.astype(REQUEST_COLUMNS[name].dtype)
    of_campaign = {"item": np.full(n, -1), "delivery": np.full(n, Delivery.caller), "segment": np.full(n, -1)}
    rows = Columns(n, CANDIDATE_COLUMNS)
    for name, values in {**of_campaign, **candidates}.items():
        rows[name] = values.astype(CANDIDATE_COLUMNS[name].dtype)
    return Batch(asked, rows, np.arange(n + 1, dtype=np.int64), {})


def _ranks(users: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """i64[n]: how many earlier rows each row's user has."""
    order = np.argsort(users, kind="stable")
    places = np.arange(len(users))
    first = np.concatenate([[True], users[order][1:] != users[order][:-1]]) if len(users) else np.empty(0, np.bool_)
    out = np.empty(len(users), np.int64)
    out[order] = places - np.maximum.accumulate(np.where(first, places, 0)) if len(users) else places
    return out
