"""What must hold of every send decision, by the request alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from loadtests.scenarios.cap_count import Grant
from loadtests.scenarios.step import REFUSED

__all__ = ["faults_of_batch", "faults_of_decision", "faults_of_explained_decision", "grants_of"]

Row = Mapping[str, Any]
_TOLERANCE = 1e-6


def faults_of_decision(asked: Row, got: Row, decided_at: str, channels: Mapping[str, Sequence[str]]) -> list[str]:
    """asked: the row of the request; got: its answer. channels: those each campaign may use."""
    out = []
    if got["user"] != asked["user"]:
        out.append(f"asked of {asked['user']!r}, answered of {got['user']!r}")
    sends = got["sends"]
    if (got["action"] == "send") != bool(sends):
        out.append(f"action {got['action']} with {len(sends)} sends")
    if len(sends) > asked.get("max_sends", 1):
        out.append(f"{len(sends)} sends, {asked.get('max_sends', 1)} allowed")
    if [one["slot"] for one in sends] != list(range(len(sends))):
        out.append("slots of sends are not 0, 1, 2 and so on")
    for one in sends:
        out += _faults_of_send(one, asked, channels)
    if got["action"] == "defer" and (got["until"] is None or _time(got["until"]) <= _time(decided_at)):
        out.append(f"deferred until {got['until']}, which is not later than {decided_at}")
    none = got["propensity_none"]
    if none is not None and not -_TOLERANCE <= none <= 1 + _TOLERANCE:
        out.append(f"propensity_none {none}")
    return out


def faults_of_batch(asked: Sequence[Row], got: Row, channels: Mapping[str, Sequence[str]]) -> list[str]:
    """asked: the rows of the request; got: the whole answer. A row may be refused, and fail in no other way."""
    if len(got["decisions"]) != len(asked):
        return [f"{len(got['decisions'])} decisions on {len(asked)} rows"]
    wrong = {one["row"] for one in got["errors"]}
    if wrong != {at for at, one in enumerate(got["decisions"]) if one is None}:
        return ["rows without a decision are not the rows with errors"]
    out = [f"row {one['row']}: {one['status']} {one['detail']}" for one in got["errors"] if one["status"] not in REFUSED]
    for at, (row, one) in enumerate(zip(asked, got["decisions"], strict=True)):
        if one is not None:
            out += [f"row {at}: {fault}" for fault in faults_of_decision(row, one, got["decided_at"], channels)]
    return out


def _faults_of_send(one: Row, asked: Row, channels: Mapping[str, Sequence[str]]) -> list[str]:
    out = []
    candidates = asked.get("candidates")
    if candidates is not None:
        fits = [c for c in candidates if c["campaign"] == one["campaign"] and c.get("channel") in (None, one["channel"])]
        if not fits:
            out.append(f"sends {one['campaign']} by {one['channel']}, which was not among the candidates")
    if one["channel"] not in channels.get(one["campaign"], (one["channel"],)):
        out.append(f"sends {one['campaign']} by {one['channel']}, a channel the campaign does not use")
    if not 0 < one["propensity"] <= 1 + _TOLERANCE:
        out.append(f"propensity {one['propensity']} of a send")
    return out


def faults_of_explained_decision(got: Row) -> list[str]:
    """With `explain`: the probabilities of all choices, `none` included, are one in sum."""
    told = [one["propensity"] for one in got["explain"] if one["propensity"] is not None]
    if not told or got["propensity_none"] is None or len(got["sends"]) > 1:
        return []
    total = sum(told) + got["propensity_none"]
    return [] if abs(total - 1) <= _TOLERANCE else [f"propensities of all choices are {total:.9f} in sum"]


def grants_of(got: Row, decided_at: str) -> list[Grant]:
    """The sends to count. Those the ledger does not know are at-least-once by contract and count nowhere."""
    if got.get("unledgered"):
        return []
    at = _time(decided_at)
    return [Grant(got["user"], one["decision_id"], one["campaign"], one["channel"], at) for one in got["sends"]]


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
