"""From decision rows as asked to a batch with candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Ragged, lengths_to_offsets
from serve_app.campaigns import CampaignTable, notification_candidates
from serve_app.errors import InvalidInput, UnknownIdentifier
from serve_app.ingress.asked import AskedRows, Texts, hash_texts
from serve_app.noise import hash_key, salt_of
from serve_app.serving.asking import notification_requests
from serve_app.serving.library import Edition
from serve_app.vocabulary import Channel

__all__ = ["Asking", "PreparedDecisions", "prepare_decisions", "row_ids"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

_ROW_SALT = salt_of("row of decide-batch")


def row_ids(root: int, rows: I64) -> U64:
    """Request ids u64[n] of the given rows of a decide-batch call."""
    return hash_key(_ROW_SALT, np.full(len(rows), root, np.uint64), rows.astype(np.uint64))


@dataclass(slots=True)
class Asking:
    """Rows with what admission stamped on them: request_ids u64[n], decided_at and deadline_at i64[n], clients by row."""

    rows: AskedRows
    request_ids: U64
    decided_at: I64
    deadline_at: I64
    clients: list[str]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(slots=True)
class PreparedDecisions:
    """A batch of the good rows (positions i64 among those asked; None where there is none), keys and digests of those rows
    (None where no row has a key), and the problem of each other row."""

    batch: Batch | None
    good: I64
    keys: list[bytes] | None
    digests: list[bytes] | None
    problems: dict[int, Exception]


def prepare_decisions(asking: Asking, edition: Edition, log_rate: float = 1.0) -> PreparedDecisions:
    """Requests and candidates of the rows whose campaigns, items and channels are known."""
    rows, table = asking.rows, edition.campaigns
    known = _known(rows, table, edition)
    problems = rows.problems | known.problems(rows, table)
    at = np.setdiff1d(np.arange(len(rows)), list(problems)) if problems else np.arange(len(rows))
    if not len(at):
        return PreparedDecisions(None, at, None, None, problems)
    choice, channels, items = _choices(asking, at, known, table)
    requests = notification_requests(
        edition,
        request_ids=asking.request_ids[at],
        users=rows.user[at],
        decided_at=asking.decided_at[at],
        deadline_at=asking.deadline_at[at],
        slots=rows.max_sends[at],
        expires_at=rows.expires_at[at],
        log_rate=log_rate,
    )
    batch = _with_candidates(requests, table, choice, channels, items, edition)
    keys = digests = None
    if (own := rows.idempotency(asking.clients)) is not None:
        keys, digests = ([values[row] for row in at.tolist()] for values in own)
    return PreparedDecisions(batch, at, keys, digests, problems)


@dataclass(slots=True)
class _Known:
    """Campaign rows and item rows (i32, -1: unknown, items also where none is named) of the named candidates, and which of
    the three things wrong with each holds."""

    campaign: I32
    item: I32
    no_campaign: Bools
    no_channel: Bools
    no_item: Bools

    def problems(self, rows: AskedRows, table: CampaignTable) -> dict[int, Exception]:
        """The first wrong candidate's problem, by row."""
        wrong = np.flatnonzero(self.no_campaign | self.no_channel | self.no_item)
        if not len(wrong):
            return {}
        owner = np.searchsorted(rows.offsets, wrong, side="right") - 1
        first = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        return {int(owner[at]): self._problem(int(wrong[at]), int(owner[at]), rows, table) for at in first}

    def _problem(self, at: int, row: int, rows: AskedRows, table: CampaignTable) -> InvalidInput:
        where = f"candidates.{at - int(rows.offsets[row])}"
        campaign = (rows.campaign[at] or "")[:60]
        if self.no_campaign[at]:
            return UnknownIdentifier(
                f"no campaign {campaign!r}", field=f"{where}.campaign", hint="store it: PUT /v1/campaigns/{id}"
            )
        if self.no_channel[at]:
            allowed = ", ".join(Channel(int(one)).name for one in table.channels[int(self.campaign[at])])
            return InvalidInput(
                f"campaign {campaign!r} does not use it", field=f"{where}.channel", hint=f"it uses {allowed}"
            )
        return UnknownIdentifier(f"no item {(rows.item[at] or '')[:60]!r}", field=f"{where}.item")


def _known(rows: AskedRows, table: CampaignTable, edition: Edition) -> _Known:
    campaign = _rows_by_code(table.rows_of, rows.campaign)
    item = _rows_by_code(edition.view.rows_of, rows.item)
    no_campaign = campaign < 0
    if len(table):
        no_channel = (
            ~no_campaign & (rows.channel >= 0) & ((table.channel_bits[campaign] >> np.maximum(rows.channel, 0)) & 1 == 0)
        )
    else:
        no_channel = np.zeros(len(campaign), np.bool_)  # not looked at
    return _Known(campaign, item, no_campaign, no_channel, (rows.item.codes >= 0) & (item < 0))


def _rows_by_code(rows_of: Callable[[U64], I32], texts: Texts) -> I32:
    """i32 row of each text; -1: unknown, or none."""
    if not texts.names:
        return np.full(len(texts.codes), -1, np.int32)
    rows = np.empty(len(texts.names) + 1, np.int32)
    rows[:-1], rows[-1] = rows_of(hash_texts(texts.names)), -1
    return rows[texts.codes]


def _choices(asking: Asking, good: I64, known: _Known, table: CampaignTable) -> tuple[Ragged, npt.NDArray[np.int8], I32]:
    """Campaign rows per good row, with the channel and item asked for beside each (-1: not said): the named candidates, or
    every campaign that is live."""
    rows = asking.rows
    named = rows.named if len(good) == len(rows) else rows.named[good]
    if len(good) == len(rows) and named.all():
        return Ragged(known.campaign, rows.offsets), rows.channel, known.item
    own = Ragged(np.arange(int(rows.offsets[-1]), dtype=np.int64), rows.offsets).take(good)
    if named.all():
        flat = own.values
        return Ragged(known.campaign[flat], own.offsets), rows.channel[flat], known.item[flat]
    times, which = np.unique(asking.decided_at[good], return_inverse=True)
    live = table.live(times).take(which)
    offsets = lengths_to_offsets(np.where(named, own.lengths, live.lengths))
    mine = np.repeat(named, np.diff(offsets))
    total = int(offsets[-1])
    campaign, channel, item = np.full(total, -1, np.int32), np.full(total, -1, np.int8), np.full(total, -1, np.int32)
    flat = own.values[np.repeat(named, own.lengths)]
    campaign[mine], channel[mine], item[mine] = known.campaign[flat], rows.channel[flat], known.item[flat]
    campaign[~mine] = live.values[np.repeat(~named, live.lengths)]
    return Ragged(campaign, offsets), channel, item


def _with_candidates(
    requests: Batch, table: CampaignTable, choice: Ragged, channels: npt.NDArray[np.int8], items: I32, edition: Edition
) -> Batch:
    out = notification_candidates(requests, table, choice, channels=channels, items=items)
    candidates = out.candidates
    candidates["retrieval_score"] = np.zeros(candidates.rows, np.float64)
    # Nobody is invited to an item that cannot be had: its campaign is off while it is hidden.
    item = candidates["item"]
    about = item >= 0
    if about.any():
        gone = about & edition.view.overlay.unavailable[np.maximum(item, 0)]
        candidates["campaign_killed"] = candidates["campaign_killed"] | gone
    return out
