"""By what a replay's outcomes are broken down: channels, days, and what the catalogue knows of campaigns."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet as pq

from serve_app.ids import hash_id
from serve_app.log.reader import log_days
from serve_app.vocabulary import Channel
from simulators.replay.spec import Breakdown

__all__ = ["breakdowns_of", "campaign_names"]

_MOST = 60  # groups of one breakdown; more are comparisons that nobody reads
_EPOCH = date(1970, 1, 1)
_DAY_US = 86_400_000_000


def breakdowns_of(data: Path, start: int, end: int) -> tuple[Breakdown, ...]:
    """Of the log in `data` within [start, end), microseconds UTC. Those with more than 60 groups, or one, are left out."""
    days = [(date.fromisoformat(text) - _EPOCH).days for text in log_days(data, "requests")]
    days = [day for day in days if day * _DAY_US < end and (day + 1) * _DAY_US > start]
    found = [
        Breakdown("channel", tuple(int(one) for one in Channel), tuple(one.name for one in Channel)),
        Breakdown("day", tuple(days), tuple((_EPOCH + timedelta(days=day)).isoformat() for day in days)),
    ]
    for name, texts in campaign_names(data).items():
        found.append(Breakdown(name, tuple(texts), tuple(texts.values())))
    return tuple(one for one in found if 1 < len(one.keys) <= _MOST)


def campaign_names(data: Path) -> dict[str, dict[int, str]]:
    """Texts of campaign and category hashes in order of the texts, as far as the catalogue has them."""
    path = data / "catalogue" / "campaigns.parquet"
    if not path.is_file():
        return {}
    table = pq.read_table(path)
    return {
        name: {hash_id(text): text for text in sorted({one for one in table[column].to_pylist() if one})}
        for name, column in (("campaign", "campaign_id"), ("category", "category"))
        if column in table.column_names
    }
