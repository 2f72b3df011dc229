"""Look-ups into a replay's counts."""

from __future__ import annotations

from collections import defaultdict

import pyarrow as pa

__all__ = ["Tally"]


class Tally:
    """Look-ups into a table of counts."""

    def __init__(self, counts: pa.Table) -> None:
        self._by: defaultdict[tuple[str, str, str], dict[int, int]] = defaultdict(dict)
        self._days: defaultdict[tuple[str, str, str], dict[int, int]] = defaultdict(dict)
        for row in counts.to_pylist():
            place = row["policy"], row["measure"], row["dimension"]
            for table, key in ((self._by, row["key"]), (self._days, row["day"])):
                table[place][key] = table[place].get(key, 0) + row["value"]

    def total(self, policy: str, measure: str, dimension: str = "") -> int:
        """Over all keys and days."""
        return sum(self._by[policy, measure, dimension].values())

    def by(self, policy: str, measure: str, dimension: str) -> dict[int, int]:
        """Key -> count."""
        return dict(sorted(self._by[policy, measure, dimension].items()))

    def days(self, policy: str, measure: str, dimension: str = "") -> dict[int, int]:
        """Day (since 1970-01-01 UTC) -> count."""
        return dict(sorted(self._days[policy, measure, dimension].items()))
