"""From decision rows as asked to a batch with candidates, and from decided batches to answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from serve_app.batch import Batch, Ragged
from serve_app.campaigns import CampaignTable, notification_candidates
from serve_app.clock import micros_of, text_of
from serve_app.decide import DecidedBatch, DecideStatus
from serve_app.errors import InvalidInput, LedgerUnavailable, NotReady, OutcomeUnknown, UnknownIdentifier
from serve_app.ids import decision_id_text, hash_id
from serve_app.ingress.answers import degraded_names, feature_values, finite
from serve_app.ingress.problems import ProblemError
from serve_app.ingress.schemas_notify import DecideRow
from serve_app.noise import hash_key, salt_of
from serve_app.serving.asking import notification_requests
from serve_app.serving.library import Edition
from serve_app.vocabulary import Action, Channel, Delivery, GateOutcome, Reason

__all__ = ["DecisionAsk", "PreparedDecisions", "decision_answer", "digest_of", "key_of", "prepare_decisions", "row_id"]

_ROW_SALT = salt_of("row of decide-batch")


def row_id(root: int, row: int) -> int:
    """The request id of row `row` of a decide-batch call."""
    return int(hash_key(_ROW_SALT, np.uint64(root), np.uint64(row))[0])


def key_of(client: str, row: DecideRow) -> bytes:
    """16 bytes that stand for (client, user, idempotency key); b"" where the row has none."""
    if row.idempotency_key is None:
        return b""
    parts = (client, row.user, row.idempotency_key)
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def digest_of(row: DecideRow) -> bytes:
    """16 bytes that stand for what was asked, however it was spelled; b"" where the row has no key to guard."""
    if row.idempotency_key is None:
        return b""
    said = row.model_dump(mode="json", include={"user", "candidates", "max_sends", "expires_at"})
    return hashlib.blake2b(orjson.dumps(said, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


@dataclass(slots=True)
class DecisionAsk:
    """One decision to make."""

    row: DecideRow
    request_id: int
    decided_at: int
    deadline_at: int
    client: str


@dataclass(slots=True)
class PreparedDecisions:
    """A batch with the good rows (positions `good` among the asks) and the problem of each other row."""

    batch: Batch | None
    good: list[int]
    problems: dict[int, Exception]


def prepare_decisions(asks: Sequence[DecisionAsk], edition: Edition, log_rate: float = 1.0) -> PreparedDecisions:
    """Requests and candidates of the asks whose campaigns, items and channels are known."""
    table = edition.campaigns
    rows = {name: row for row, name in enumerate(table.ids)}
    good: list[int] = []
    problems: dict[int, Exception] = {}
    choices: list[tuple[list[int], list[int], list[int]]] = []
    for at, ask in enumerate(asks):
        try:
            choices.append(_choice(ask, rows, table, edition))
            good.append(at)
        except InvalidInput as error:
            problems[at] = error
    if not good:
        return PreparedDecisions(None, good, problems)
    batch = _requests([asks[at] for at in good], edition, log_rate)
    return PreparedDecisions(_with_candidates(batch, table, choices, edition), good, problems)


def _choice(
    ask: DecisionAsk, rows: dict[str, int], table: CampaignTable, edition: Edition
) -> tuple[list[int], list[int], list[int]]:
    """Campaign rows, channels (-1: all allowed) and items (-1: the campaign's own) of one ask."""
    if ask.row.candidates is None:
        live = table.live(np.array([ask.decided_at], np.int64))[0].tolist()
        return live, [-1] * len(live), [-1] * len(live)
    campaigns, channels, items = [], [], []
    for place, asked in enumerate(ask.row.candidates):
        where = f"candidates.{place}"
        row = rows.get(asked.campaign)
        if row is None:
            raise UnknownIdentifier(
                f"no campaign {asked.campaign[:60]!r}", field=f"{where}.campaign", hint="store it: PUT /v1/campaigns/{id}"
            )
        channel = -1 if asked.channel is None else int(Channel[asked.channel.value])
        if channel >= 0 and channel not in table.channels[row]:
            allowed = ", ".join(Channel(int(one)).name for one in table.channels[row])
            raise InvalidInput(
                f"campaign {asked.campaign[:60]!r} does not use it", field=f"{where}.channel", hint=f"it uses {allowed}"
            )
        item = -1
        if asked.item is not None:
            item = int(edition.view.rows_of(np.array([hash_id(asked.item)], np.uint64))[0])
            if item < 0:
                raise UnknownIdentifier(f"no item {asked.item[:60]!r}", field=f"{where}.item")
        campaigns.append(row)
        channels.append(channel)
        items.append(item)
    return campaigns, channels, items


def _requests(asks: Sequence[DecisionAsk], edition: Edition, log_rate: float) -> Batch:
    expires = [0 if a.row.expires_at is None else micros_of(a.row.expires_at) for a in asks]
    return notification_requests(
        edition,
        request_ids=np.array([ask.request_id for ask in asks], np.uint64),
        users=np.array([hash_id(ask.row.user) for ask in asks], np.uint64),
        decided_at=np.array([ask.decided_at for ask in asks], np.int64),
        deadline_at=np.array([ask.deadline_at for ask in asks], np.int64),
        slots=np.array([ask.row.max_sends for ask in asks], np.int32),
        expires_at=np.array(expires, np.int64),
        log_rate=log_rate,
    )


def _with_candidates(
    batch: Batch, table: CampaignTable, choices: Sequence[tuple[list[int], list[int], list[int]]], edition: Edition
) -> Batch:
    choice = Ragged.of([campaigns for campaigns, _, _ in choices], np.int32)
    channels = np.array([one for _, own, _ in choices for one in own], np.int8)
    items = np.array([one for _, _, own in choices for one in own], np.int32)
    out = notification_candidates(batch, table, choice, channels=channels, items=items)
    candidates = out.candidates
    candidates["retrieval_score"] = np.zeros(candidates.rows, np.float64)
    # Nobody is invited to an item that cannot be had: its campaign is off while it is hidden.
    gone = (candidates["item"] >= 0) & edition.view.overlay.unavailable[np.maximum(candidates["item"], 0)]
    candidates["campaign_killed"] = candidates["campaign_killed"] | gone
    return out


_STATUS_PROBLEMS: dict[DecideStatus, Exception] = {
    DecideStatus.ledger_unavailable: LedgerUnavailable("the ledger cannot be reached; nothing was decided", hint="retry"),
    DecideStatus.outcome_unknown: OutcomeUnknown(
        "a decision was committed or not, which could not be learned", hint="retry with the same idempotency key"
    ),
    DecideStatus.contended: LedgerUnavailable("this user's decisions changed too fast; nothing was decided", hint="retry"),
    DecideStatus.key_reused: ProblemError(
        409, "key-reused", "the idempotency key was used with another body", field="idempotency_key", hint="use a new key"
    ),
}


def decision_answer(
    decided: DecidedBatch, row: int, ask: DecisionAsk, edition: Edition, *, answerable: bool, explain: bool
) -> dict[str, Any] | Exception:
    """One row's answer, or its problem."""
    status = DecideStatus(int(decided.status[row]))
    if status in _STATUS_PROBLEMS:
        return _STATUS_PROBLEMS[status]
    if not answerable:
        return NotReady("the decision could not be logged in time, and is not in force", field="log", hint="retry")
    batch = decided.batch
    request = batch.requests
    request_id = int(request["request_id"][row])
    answer = {
        "user": ask.row.user,
        "request_id": f"{request_id:016x}",
        "decision_id": decision_id_text(int(request["user"][row]), request_id, 0),
        "action": Action(int(request["action"][row])).name,
        "reason": Reason(int(request["reason"][row])).name,
        "until": _moment(int(request["until"][row])),
        "sends": _sends(batch, row, edition),
        "replayed": False,
        "degraded": degraded_names(int(request["degraded"][row])),
        "propensity_none": finite(request["p_none"][row]),
        "explored": bool(request["explored"][row]),
    }
    if answer["action"] == "send":
        answer["reason"] = Reason.chosen.name
    if explain:
        answer["explain"] = explained_candidates(batch, row, edition)
    return answer


def _moment(at: int) -> str | None:
    return text_of(at) if at else None


def _campaign_names(edition: Edition) -> dict[int, str]:
    return dict(zip(edition.campaigns.campaign.tolist(), edition.campaigns.ids, strict=True))


def _sends(batch: Batch, row: int, edition: Edition) -> list[dict[str, Any]]:
    span = np.arange(batch.offsets[row], batch.offsets[row + 1])
    c = batch.candidates
    chosen = span[c["action"][span] == Action.send]
    if not len(chosen):
        return []
    chosen = chosen[np.argsort(c["slot"][chosen], kind="stable")]
    names, request = _campaign_names(edition), batch.requests
    out = []
    for at in chosen.tolist():
        slot, item = int(c["slot"][at]), int(c["item"][at])
        out.append(
            {
                "decision_id": decision_id_text(int(request["user"][row]), int(request["request_id"][row]), slot),
                "slot": slot,
                "campaign": names[int(c["campaign"][at])],
                "item": edition.view.ids_of(np.array([item], np.int32))[0] if item >= 0 else None,
                "channel": Channel(int(c["channel"][at])).name,
                "status": "queued" if c["delivery"][at] == Delivery.outbox else "granted",
                "propensity": finite(c["p_choice"][at]),
            }
        )
    return out


def explained_candidates(batch: Batch, row: int, edition: Edition) -> list[dict[str, Any]]:
    """Every candidate of one decision, gate by gate."""
    names, c = _campaign_names(edition), batch.candidates
    heads: Sequence[str] = batch.meta.get("heads", ())
    out = []
    for at in range(int(batch.offsets[row]), int(batch.offsets[row + 1])):
        item = int(c["item"][at])
        out.append(
            {
                "campaign": names.get(int(c["campaign"][at])),
                "item": edition.view.ids_of(np.array([item], np.int32))[0] if item >= 0 else None,
                "channel": Channel(int(c["channel"][at])).name,
                "action": Action(int(c["action"][at])).name,
                "reason": Reason(int(c["reason"][at])).name,
                "value": finite(c["value"][at]),
                "propensity": finite(c["p_choice"][at]),
                "ghost": bool(c["ghost"][at]),
                "heads": {h: finite(v) for h, v in zip(heads, c["heads"][at], strict=True)} if "heads" in c else None,
                "features": feature_values(batch, at),
                "gates": gate_words({name: c[name][at] for name in _GATE_COLUMNS}, batch.meta["gates"]),
            }
        )
    return out


_GATE_COLUMNS = ("gate_outcome", "gate_reason", "used", "limit", "next_free_at")


def gate_words(columns: dict[str, Any], gates: Sequence[str]) -> list[dict[str, Any]]:
    """What every gate said of one candidate; columns are its rows of the per-gate columns."""
    return [
        {
            "gate": gate,
            "outcome": GateOutcome(int(columns["gate_outcome"][g])).name,
            "reason": Reason(int(columns["gate_reason"][g])).name if columns["gate_reason"][g] else None,
            "used": finite(columns["used"][g]),
            "limit": finite(columns["limit"][g]),
            "next_free_at": _moment(int(columns["next_free_at"][g])),
        }
        for g, gate in enumerate(gates)
    ]
