"""Decisions as they were stored: from the ledger's record, for `GET /v1/decisions/{id}` and for repeated keys."""

from __future__ import annotations

from typing import Any

import numpy as np

from serve_app.clock import text_of
from serve_app.ids import decision_id_text
from serve_app.ingress.answers import degraded_names, finite
from serve_app.ingress.decision_explained import gate_words
from serve_app.ledger.record import unpack_record
from serve_app.serving.again import child_of
from serve_app.serving.library import Edition
from serve_app.vocabulary import Action, Channel, Delivery, Origin, Reason

__all__ = ["stored_decision", "stored_row"]


def stored_row(record: bytes, user: str, edition: Edition) -> dict[str, Any]:
    """The answer that a repeated idempotency key gets: the first decision's."""
    full = stored_decision(record, edition)
    kept = (
        "request_id", "decision_id", "action", "reason", "until", "decided_again_as", "sends", "degraded",
        "propensity_none", "explored",
    )  # fmt: skip
    return {"user": user, **{name: full[name] for name in kept}, "replayed": True}


def stored_decision(record: bytes, edition: Edition) -> dict[str, Any]:
    """Everything a record says, in the words of an answer with `explain`."""
    found = unpack_record(record)
    request, candidates, meta = found["request"], found["candidates"], found["meta"]
    action = Action(int(request["action"]))
    names = _Names(edition)
    rows = [_candidate(candidates, at, meta, names) for at in range(len(candidates["campaign"]))]
    return {
        "request_id": f"{request['request_id']:016x}",
        "decision_id": decision_id_text(request["user"], request["request_id"], 0),
        "decided_at": text_of(request["decided_at"]),
        "release": meta.get("release"),
        "policy": (meta.get("policy_revisions") or [None])[0],
        "action": action.name,
        "reason": Reason.chosen.name if action is Action.send else Reason(int(request["reason"])).name,
        "until": text_of(request["until"]) if request.get("until") else None,
        **_chain(request, action),
        "cell": request.get("cell"),
        "read_version": request.get("read_version"),
        "degraded": degraded_names(int(request.get("degraded", 0))),
        "propensity_none": finite(request["p_none"]),
        "explored": bool(request.get("explored", False)),
        "sends": _sends(request, candidates, names),
        "candidates": rows,
    }


def _chain(request: dict[str, Any], action: Action) -> dict[str, str | None]:
    """Ids of the decision that answers this deferral, and of the deferral that this decision answers."""
    user, request_id = int(request["user"]), int(request["request_id"])
    parent = int(request.get("parent_request_id", 0)) if request.get("origin") == Origin.deferral else 0
    return {
        "decided_again_as": decision_id_text(user, child_of(user, request_id), 0) if action is Action.defer else None,
        "answers_deferral": decision_id_text(user, parent, 0) if parent else None,
    }


class _Names:
    """Text ids behind hashes, as far as this process knows them."""

    def __init__(self, edition: Edition) -> None:
        self._view = edition.view
        self._campaigns = dict(zip(edition.campaigns.campaign.tolist(), edition.campaigns.ids, strict=True))

    def campaign(self, hashed: int) -> str:
        return self._campaigns.get(hashed, f"#{hashed:016x}")

    def item(self, hashed: int) -> str | None:
        if not hashed:
            return None
        row = self._view.rows_of(np.array([hashed], np.uint64))
        return self._view.ids_of(row)[0] if row[0] >= 0 else f"#{hashed:016x}"


def _sends(request: dict[str, Any], candidates: dict[str, Any], names: _Names) -> list[dict[str, Any]]:
    chosen = np.flatnonzero(candidates["action"] == Action.send)
    out = []
    for at in chosen[np.argsort(candidates["slot"][chosen], kind="stable")].tolist():
        slot = int(candidates["slot"][at])
        out.append(
            {
                "decision_id": decision_id_text(request["user"], request["request_id"], slot),
                "slot": slot,
                "campaign": names.campaign(int(candidates["campaign"][at])),
                "item": names.item(int(candidates["item_hash"][at])) if "item_hash" in candidates else None,
                "channel": Channel(int(candidates["channel"][at])).name,
                "status": "queued" if candidates["delivery"][at] == Delivery.outbox else "granted",
                "propensity": finite(candidates["p_choice"][at]),
            }
        )
    return out


def _candidate(candidates: dict[str, Any], at: int, meta: dict[str, Any], names: _Names) -> dict[str, Any]:
    heads = (meta.get("heads") or ()) if "heads" in candidates else ()
    return {
        "campaign": names.campaign(int(candidates["campaign"][at])),
        "item": names.item(int(candidates["item_hash"][at])) if "item_hash" in candidates else None,
        "channel": Channel(int(candidates["channel"][at])).name,
        "action": Action(int(candidates["action"][at])).name,
        "reason": Reason(int(candidates["reason"][at])).name,
        "value": finite(candidates["value"][at]) if "value" in candidates else None,
        "propensity": finite(candidates["p_choice"][at]),
        "ghost": bool(candidates["ghost"][at]),
        "heads": {h: finite(v) for h, v in zip(heads, candidates["heads"][at], strict=True)}
        if "heads" in candidates
        else None,
        "gates": gate_words(
            {n: candidates[n][at] for n in ("gate_outcome", "gate_reason", "used", "limit", "next_free_at")}, meta["gates"]
        ),
    }
