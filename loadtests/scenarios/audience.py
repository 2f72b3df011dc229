"""Who asks, for what, and under which caps: the facts a run needs before it starts, in one JSON file that can be carried to
the machines that make the load."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtests.scenarios.errors import LoadError

__all__ = ["Audience", "Campaign", "CapRule", "SendRules", "audience_of_folder", "read_audience"]


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Campaign(_Plain):
    """A message that may be asked for."""

    id: str
    message_class: str
    category: str
    channels: tuple[str, ...]


class CapRule(_Plain):
    """A cap as the policy states it. limits: the limit of each cell, by its index; `limit` where there are no cells."""

    id: str
    scope: str
    only: tuple[str, ...] = ()
    limit: int
    limits: dict[int, int] = Field(default_factory=dict)
    rolling_s: float | None = None
    calendar: str | None = None
    classes: frozenset[str]
    """Classes that the cap both counts and binds, less those that bypass caps."""


class SendRules(_Plain):
    """What of the policy a client can hold the server to."""

    policy: str
    caps: tuple[CapRule, ...]
    not_judged: tuple[str, ...] = ()
    """Caps that experiments or cells change in ways beyond their limit."""


class Audience(_Plain):
    """Everything that requests are made of. `rules` is None where the policy could not be read: caps are not judged then."""

    users: tuple[str, ...] = Field(min_length=1)
    items: tuple[str, ...] = Field(min_length=1)
    categories: tuple[str, ...] = ()
    widgets: tuple[str, ...] = ()
    reviewed: tuple[str, ...] = ()
    campaigns: tuple[Campaign, ...] = ()
    rules: SendRules | None = None

    def part(self, worker: int, workers: int) -> Audience:
        """The users of one of several workers: each user is asked by one worker only, so that it can count their sends."""
        own = self.users[worker::workers]
        if not own:
            raise LoadError(f"{len(self.users)} users do not suffice for {workers} workers")
        return self.model_copy(update={"users": own})


def read_audience(path: Path) -> Audience:
    """From its file. LoadError says what is wrong."""
    try:
        return Audience.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise LoadError(f"{path}: no such file; make one with `hindcast load audience`") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise LoadError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def audience_of_folder(
    data: Path, *, release: str | None = None, policy: str | None = None, most: int = 200_000
) -> Audience:
    """From a data folder: the catalogue of `release` (else of the folder) and the caps of the policy revision.

    most: users and items are thinned, evenly, to so many.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    own = data / "releases" / (release or "") / "catalogue"
    catalogue = own if release and own.is_dir() else data / "catalogue"
    if not (catalogue / "items.parquet").exists():
        raise LoadError(f"{catalogue}: holds no catalogue; name a data folder with --data, or a file with --audience")

    def table(name: str) -> Any:
        return pq.read_table(catalogue / f"{name}.parquet")

    items, campaigns = table("items"), table("campaigns")
    shown = items.filter(items["available"])
    users = table("users")["user_id"].to_pylist()
    if not users:
        raise LoadError(f"{catalogue}: names no users; make an audience file of your own and pass it with --audience")
    now = time.time_ns() // 1000
    live = campaigns.filter(
        pc.and_(
            pc.less_equal(campaigns["starts_at"], now),
            pc.or_(pc.equal(campaigns["expires_at"], 0), pc.greater(campaigns["expires_at"], now)),
        )
    )
    return Audience(
        users=_thinned(users, most),
        items=_thinned(shown["item_id"].to_pylist(), most),
        categories=tuple(sorted(set(shown["category"].to_pylist()) - {""})),
        widgets=tuple(table("widgets")["widget_id"].to_pylist()),
        reviewed=_thinned(sorted(set(table("reviews")["item_id"].to_pylist()) & set(shown["item_id"].to_pylist())), most),
        campaigns=tuple(
            Campaign(
                id=one["campaign_id"],
                message_class=one["message_class"],
                category=one["category"],
                channels=tuple(one["channels"]),
            )
            for one in live.to_pylist()
        ),
        rules=_rules(data / "policies" / f"{policy}.json", policy) if policy else None,
    )


def _thinned(names: Sequence[str], most: int) -> tuple[str, ...]:
    if len(names) <= most:
        return tuple(names)
    return tuple(names[at] for at in np.linspace(0, len(names) - 1, most).astype(int).tolist())


def _rules(path: Path, revision: str) -> SendRules | None:
    if not path.exists():
        return None
    document = json.loads(path.read_text())
    spared = {name for name, rule in document["message_classes"].items() if rule.get("bypass_caps")}
    cells = [one.get("overrides", {}) for one in (document.get("cells") or {}).get("variants", [])]
    arms = [arm.get("overrides", {}) for one in document.get("experiments", []) for arm in one["arms"]]
    caps, odd = [], []
    for cap in document["caps"]:
        own, limit_key = f"caps.{cap['id']}.", f"caps.{cap['id']}.limit"
        changed = {key for one in (*cells, *arms) for key in one if key.startswith(own)}
        if changed - {limit_key}:
            odd.append(cap["id"])
            continue
        tried = [arm[limit_key] for arm in arms if limit_key in arm]  # not told apart: the loosest one is held to
        limits = {at: max([cell.get(limit_key, cap["limit"]), *tried]) for at, cell in enumerate(cells)}
        rolling = cap["window"].get("rolling_hours")
        caps.append(
            CapRule(
                id=cap["id"],
                scope=cap["scope"],
                only=tuple(cap.get("only", ())),
                limit=max([cap["limit"], *tried]),
                limits=limits,
                rolling_s=rolling * 3600 if rolling is not None else None,
                calendar=cap["window"].get("calendar"),
                classes=frozenset(cap["counts"]) & frozenset(cap["binds"]) - spared,
            )
        )
    return SendRules(policy=revision, caps=tuple(caps), not_judged=tuple(odd))
