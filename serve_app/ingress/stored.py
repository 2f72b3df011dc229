"""Decisions as they were stored, in words: for `GET /v1/decisions/{id}`, for repeated keys, for `hindcast explain`."""

from __future__ import annotations

from typing import Any

import numpy as np

from serve_app.audit.names import EditionNames, Names
from serve_app.clock import text_of
from serve_app.ids import decision_id_text
from serve_app.ingress.answers import degraded_names, finite
from serve_app.ingress.decision_explained import gate_words
from serve_app.ledger.record import unpack_record
from serve_app.policy.assigned import Trials
from serve_app.serving.library import Edition
from serve_app.stages.decision.deferrals import child_of
from serve_app.vocabulary import Action, Channel, Delivery, Origin, Reason

__all__ = ["stored_decision", "stored_row", "told"]

_GATES = ("gate_outcome", "gate_reason", "used", "limit", "next_free_at")


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
    return told(unpack_record(record), EditionNames(edition), "ledger")


def told(found: dict[str, Any], names: Names, source: str) -> dict[str, Any]:
    """A kept decision (see `serve_app.audit.kept`) in words. source: where it was found, "ledger" or "log"."""
    request, candidates, meta = found["request"], found["candidates"], found["meta"]
    action = Action(int(request["action"]))
    revision = _revision(request, meta)
    rows = len(candidates["campaign"]) if "campaign" in candidates else 0
    holdouts = _holdouts(request, meta, names.of_policy(revision))
    return {
        "request_id": f"{request['request_id']:016x}",
        "decision_id": decision_id_text(request["user"], request["request_id"], 0),
        "decided_at": text_of(request["decided_at"]),
        "release": meta.get("release"),
        "policy": revision,
        "code_version": meta.get("code_version"),
        "source": source,
        "action": action.name,
        "reason": Reason.chosen.name if action is Action.send else Reason(int(request["reason"])).name,
        "until": text_of(request["until"]) if request.get("until") else None,
        **_chain(request, action),
        "cell": request.get("cell") if request.get("cell") != -1 else None,
        "propensity_cell": finite(request.get("p_cell", np.nan)),
        "experiments": _with_arm_ids(_experiments(request, meta, names.of_policy(revision)), names.arms(revision)),
        "holdouts": holdouts,
        "zone": request.get("zone") or None,
        "region": request.get("region") or None,
        "read_version": request.get("read_version"),
        "commit_version": request["commit_version"] if request.get("commit_version", -1) >= 0 else None,
        "degraded": degraded_names(int(request.get("degraded", 0))),
        "propensity_none": finite(request["p_none"]),
        "explored": bool(request.get("explored", False)),
        "forced": bool(request.get("forced", False)),
        "sends": _sends(request, candidates, names) if rows else [],
        "candidates": [_candidate(candidates, at, meta, names, holdouts) for at in range(rows)],
    }


def _revision(request: dict[str, Any], meta: dict[str, Any]) -> str | None:
    revisions = meta.get("policy_revisions") or [None]
    pinned = int(request.get("policy", 0))
    revision: str | None = revisions[pinned if pinned < len(revisions) else 0]
    return revision


def _trials(request: dict[str, Any], meta: dict[str, Any]) -> Trials:
    known = meta.get("trials") or []
    pinned = int(request.get("policy", 0))
    return Trials.of_document(known[pinned]) if pinned < len(known) else Trials()


def _experiments(request: dict[str, Any], meta: dict[str, Any], names: dict[int, str]) -> list[dict[str, Any]]:
    if request.get("assigned_arms") is not None:
        return [
            {"experiment": names.get(one["id"], f"#{one['id']:016x}"), "arm": one["arm"], "propensity": one["p"]}
            for one in request["assigned_arms"]
        ]
    bits = int(request.get("arms") or 0)
    drawn = [(one, (bits >> 4 * at & 15) - 1) for at, one in enumerate(_trials(request, meta).experiments)]
    return [{"experiment": name, "arm": arm, "propensity": shares[arm]} for (name, shares), arm in drawn if arm >= 0]


def _with_arm_ids(drawn: list[dict[str, Any]], arms: dict[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    for one in drawn:
        ids = arms.get(one["experiment"], ())
        one["arm_id"] = ids[one["arm"]] if 0 <= one["arm"] < len(ids) else None
    return drawn


def _holdouts(request: dict[str, Any], meta: dict[str, Any], names: dict[int, str]) -> list[dict[str, Any]]:
    if request.get("assigned_holdouts") is not None:
        return [
            {"holdout": names.get(one["id"], f"#{one['id']:016x}"), "held_out": bool(one["arm"]), "propensity": one["p"]}
            for one in request["assigned_holdouts"]
        ]
    bits = int(request.get("held") or 0)
    drawn = [(one, bool(bits >> at & 1)) for at, one in enumerate(_trials(request, meta).holdouts)]
    return [{"holdout": name, "held_out": held, "propensity": share if held else 1 - share} for (name, share), held in drawn]


def _chain(request: dict[str, Any], action: Action) -> dict[str, str | None]:
    """Ids of the decision that answers this deferral, and of the deferral that this decision answers."""
    user, request_id = int(request["user"]), int(request["request_id"])
    parent = int(request.get("parent_request_id", 0)) if request.get("origin") == Origin.deferral else 0
    return {
        "decided_again_as": decision_id_text(user, child_of(user, request_id), 0) if action is Action.defer else None,
        "answers_deferral": decision_id_text(user, parent, 0) if parent else None,
    }


def _sends(request: dict[str, Any], candidates: dict[str, Any], names: Names) -> list[dict[str, Any]]:
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


def _candidate(
    candidates: dict[str, Any], at: int, meta: dict[str, Any], names: Names, holdouts: list[dict[str, Any]]
) -> dict[str, Any]:
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
        "ghost_first": bool(candidates["ghost_first"][at]) if "ghost_first" in candidates else False,
        "holdout": _holdout(candidates, at, holdouts),
        "propensity_shadow": finite(candidates["p_shadow"][at]) if "p_shadow" in candidates else None,
        "heads": {h: finite(v) for h, v in zip(heads, candidates["heads"][at], strict=True)}
        if "heads" in candidates
        else None,
        "gates": gate_words({n: candidates[n][at] for n in _GATES}, meta["gates"]) if _GATES[0] in candidates else [],
    }


def _holdout(candidates: dict[str, Any], at: int, holdouts: list[dict[str, Any]]) -> str | None:
    """The holdout that silenced a candidate."""
    index = int(candidates["holdout"][at]) if "holdout" in candidates else -1
    return str(holdouts[index]["holdout"]) if 0 <= index < len(holdouts) else None
