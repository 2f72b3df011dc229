"""What retrieval knows of a candidate: one f32 per name, NaN-free, 0 where there is nothing to say.

These are the columns of `source_scores`; ranking models take them as features by name. The first block are scores of
sources, the second their share of the request's best score, the third their rank within the request (1 is best, 999 where
the source does not know the candidate), then details of the candidate, and last facts of the request that all its
candidates share.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from serve_app.vocabulary import Source

__all__ = ["EVIDENCE", "INDEX", "NO_RANK", "QUOTA_SOURCES", "RANKED", "SCORES"]

SCORES = (
    "follow",  # forward co-visits after the recent items, newest weighing most
    "covisited",  # symmetric co-visits, cosine-normalised
    "session",  # items of neighbouring sessions
    "session_after",  # the same, only clicks after the matching one
    "taste",  # session embedding (query of the recent items) . item embedding
    "similar",  # anchor embedding . item embedding
    "popular",  # share of the best in the request's popularity list
    "recent",  # 1 / (1 + steps back) for recently seen items
)
RANKED = SCORES[:6]
_DETAIL = (
    "follow_last",  # forward co-visits after the newest item alone
    "follow_second",
    "follow_last_share",  # of all follow-ups of the newest item
    "follow_last_reverse_share",  # of all co-visits of the candidate
    "covisited_last",
    "similar_last",  # embedding cosine with the newest item
    "similar_second",
    "similar_max",  # over the last six, the candidate itself left out
    "similar_mean",
    "session_count",  # neighbouring sessions that hold the candidate
    "session_best",
    "session_age",  # thousand sessions since the newest of them
    "session_next",  # times it came right after the newest item in them
    "steps_back",  # position among the recent items, 1 is newest, 99 not there
    "times_seen",
    "rarity",  # log of sessions per occurrence of the candidate
)
_REQUEST = (
    "sessions_matched",  # neighbouring sessions found
    "recents_distinct",
    "newest_times_seen",  # of the newest item
    "newest_rarity",
    "newest_cosine",  # of the newest two items
)
EVIDENCE: tuple[str, ...] = (
    *SCORES,
    *(f"{name}_relative" for name in RANKED),
    *(f"{name}_rank" for name in RANKED),
    *_DETAIL,
    *_REQUEST,
)
INDEX = MappingProxyType({name: position for position, name in enumerate(EVIDENCE)})
NO_RANK = np.float32(999.0)

QUOTA_SOURCES = (Source.similar, Source.taste, Source.covisited, Source.session, Source.popular, Source.recent, Source.fresh)
"""Sources a policy gives quotas to, in the order of the quota columns."""
