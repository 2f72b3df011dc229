"""Where a log begins: users whose rules look back to before it, and what a policy does were their histories empty or full.

A ledger snapshot says what users were sent before the log; where there is none, or it was cut, a decision whose longest
window reaches further back than the history does is *uncertain*. Its user is replayed twice: with nothing before the log
(the ordinary run) and with every window full, one message of each kind the user is asked about, as often as the largest cap
allows, at the last unknown moment. What really happened lies between, as far as first decisions go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serve_app.batch import lengths_to_offsets
from serve_app.ledger.columns import HISTORY_DTYPE, Histories
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.zones import local_day
from simulators.replay.opportunities import Opportunities
from simulators.replay.partition import Partition

__all__ = ["of_unsure_users", "only", "uncertain", "with_full_histories"]

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_MOST_KINDS = 64  # of messages a user is asked about


def uncertain(asked: Opportunities, known_since: I64, windows_us: Sequence[int]) -> Bools:
    """bool[n]: decisions whose policy looks further back than the user's history is known. windows_us: of each policy that
    the `policy` column numbers, or of the one there is."""
    reach = np.array(windows_us, np.int64)
    policy = asked.batch.requests["policy"] if len(reach) > 1 else np.zeros(len(asked), np.int64)
    since: Bools = asked.batch.requests["decided_at"] - reach[policy] < known_since[asked.owner]
    return since


def of_unsure_users(partition: Partition, windows_us: Sequence[int]) -> Bools | None:
    """bool[n]: decisions of users with any uncertain one: what they are decided on later follows from it. None where there
    are none. windows_us: as `uncertain` takes them."""
    asked = partition.asked
    unsure = uncertain(asked, partition.known_since, windows_us)
    if not unsure.any():
        return None
    users = np.bincount(asked.owner[unsure], minlength=len(asked.users)) > 0
    rows: Bools = users[asked.owner]
    return rows


def only(partition: Partition, users: Bools) -> Partition:
    """Some of the users (bool[u])."""
    return partition.without(partition.asked.users[~users])


def with_full_histories(partition: Partition, policy: CompiledPolicy) -> Partition:
    """The same users with every window full at the last moment that is not known."""
    asked = partition.asked
    times = max((cap.limit for cap in policy.document.caps), default=0) + 1
    kinds = _kinds(asked)
    owner = np.repeat(kinds[:, 0].astype(np.int64), times)
    entries = np.zeros(len(owner), HISTORY_DTYPE)
    for k, name in enumerate(("campaign", "category", "channel", "message_class"), start=1):
        entries[name] = np.repeat(kinds[:, k], times).astype(HISTORY_DTYPE[name])
    entries["at"] = np.maximum(partition.known_since[owner], 0)
    zone = _zones(asked)[owner]
    entries["local_day"] = local_day(entries["at"], zone)
    every = np.concatenate([entries, partition.start.entries])
    whose = np.concatenate([owner, np.repeat(np.arange(len(asked.users)), np.diff(partition.start.offsets))])
    order = np.lexsort((every["at"], whose))
    start = Histories(every[order], lengths_to_offsets(np.bincount(whose, minlength=len(asked.users))))
    return Partition(asked, start, partition.known_since, partition.events)


def _kinds(asked: Opportunities) -> npt.NDArray[np.uint64]:
    """u64[k, 5]: user row, campaign, category, channel, class of what each user is asked about, at most 64 kinds a user."""
    rows, owner = asked.batch.candidates, asked.owner[asked.batch.owner]
    columns = [owner, rows["campaign"], rows["category"], rows["channel"], rows["message_class"]]
    table = np.stack([one.astype(np.int64).view(np.uint64) for one in columns], axis=1)
    distinct = np.unique(table, axis=0)
    first = np.searchsorted(distinct[:, 0], distinct[:, 0])
    return distinct[np.arange(len(distinct)) - first < _MOST_KINDS]


def _zones(asked: Opportunities) -> npt.NDArray[np.int16]:
    """i16[u]: of each user's first request."""
    first = np.searchsorted(asked.owner, np.arange(len(asked.users)))
    zones: npt.NDArray[np.int16] = asked.batch.requests["zone"][first]
    return zones
