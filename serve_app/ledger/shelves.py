"""Deferrals, outbox and catalogue log of the memory ledger: plain Python, since they are few beside the users."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

from serve_app.ledger.protocol import OUTBOX_BURIED, CampaignRow, CatalogueChange, Deferral, OutboxItem

__all__ = ["CatalogueShelf", "DeferralShelf", "OutboxShelf"]


class DeferralShelf:
    """Open deferrals, by end."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], Deferral] = {}
        self._by_end: list[tuple[int, int, int]] = []

    def put(self, deferral: Deferral) -> None:
        """Add one."""
        self._open[deferral.user, deferral.request_id] = deferral
        heapq.heappush(self._by_end, (deferral.until, deferral.user, deferral.request_id))

    def drop(self, user: int, request_id: int) -> bool:
        """Remove one; False when there is none."""
        return self._open.pop((user, request_id), None) is not None

    def forget(self, user: int) -> None:
        """Remove all of a user's."""
        for key in [key for key in self._open if key[0] == user]:
            del self._open[key]

    def due(self, now: int, limit: int) -> list[Deferral]:
        """Those that end by `now`, earliest first; they stay."""
        found: list[Deferral] = []
        seen = []
        while self._by_end and self._by_end[0][0] <= now and len(found) < limit:
            until, user, request_id = place = heapq.heappop(self._by_end)
            deferral = self._open.get((user, request_id))
            if deferral is not None and deferral.until == until:
                found.append(deferral)
                seen.append(place)
        for place in seen:
            heapq.heappush(self._by_end, place)
        return found

    def depths(self, now: int) -> tuple[int, int]:
        """How many there are, and how many of them are due."""
        return len(self._open), sum(one.until <= now for one in self._open.values())


class OutboxShelf:
    """Rows waiting for a worker, oldest first."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[OutboxItem, int]] = {}
        self._next = 1

    def put(self, user: int, request_id: int, payload: bytes) -> None:
        """Add one."""
        self._rows[self._next] = (OutboxItem(self._next, user, request_id, payload, 0), 0)
        self._next += 1

    def claim(self, now: int, limit: int, lease_us: int) -> list[OutboxItem]:
        """See Ledger.claim_outbox."""
        free = [item for item, leased_until in self._rows.values() if leased_until <= now][:limit]
        claimed = [replace(item, attempts=item.attempts + 1) for item in free]
        self._rows.update({item.id: (item, now + lease_us) for item in claimed})
        return claimed

    def ack(self, ids: Sequence[int]) -> int:
        """Remove rows; returns how many there were."""
        return sum(self._rows.pop(number, None) is not None for number in ids)

    def postpone(self, ids: Sequence[int], until: Sequence[int], attempts: Sequence[int]) -> int:
        """See Ledger.postpone_outbox."""
        known = [
            (number, end, tried) for number, end, tried in zip(ids, until, attempts, strict=True) if number in self._rows
        ]
        for number, end, tried in known:
            self._rows[number] = (replace(self._rows[number][0], attempts=tried), end)
        return len(known)

    def buried(self, limit: int) -> list[OutboxItem]:
        """See Ledger.buried_outbox."""
        return [item for item, leased_until in self._rows.values() if leased_until == OUTBOX_BURIED][:limit]

    def depths(self, now: int) -> tuple[int, int, int]:
        """How many there are, are ready, are buried."""
        until = [leased_until for _, leased_until in self._rows.values()]
        return len(until), sum(end <= now for end in until), until.count(OUTBOX_BURIED)

    def forget(self, user: int) -> None:
        """Remove all of a user's."""
        for number in [number for number, (item, _) in self._rows.items() if item.user == user]:
            del self._rows[number]


class CatalogueShelf:
    """The catalogue log and the campaigns in it."""

    def __init__(self) -> None:
        self._log: list[CatalogueChange] = []
        self._campaigns: dict[str, CampaignRow] = {}

    @property
    def head(self) -> int:
        """Newest sequence number."""
        return len(self._log)

    def append(self, kind: str, payload: bytes) -> int:
        """Add a change; returns its number."""
        self._log.append(CatalogueChange(self.head + 1, kind, payload))
        return self.head

    def changes(self, after_seq: int, limit: int) -> list[CatalogueChange]:
        """Changes later than `after_seq`."""
        return self._log[max(0, after_seq) : max(0, after_seq) + limit]

    def put_campaign(self, campaign_id: str, document: bytes) -> CampaignRow:
        """The campaign's next version."""
        known = self._campaigns.get(campaign_id)
        version = known.version + 1 if known else 1
        row = CampaignRow(campaign_id, version, self.append("campaign", document), document)
        self._campaigns[campaign_id] = row
        return row

    def campaigns(self) -> list[CampaignRow]:
        """Newest versions, by id."""
        return [self._campaigns[name] for name in sorted(self._campaigns)]
