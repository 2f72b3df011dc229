"""The server under fire: its policies, users and campaigns, and how to kill its parts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from serve_app.policies import promote_policy, store_policy
from serve_app.policy.document import parse_policy
from serve_app.running.instance import Instance
from serve_app.settings import EXPENDABLE
from tests.chaos.exactness_checker import Person
from tests.chaos.fire_clients import hashed

HOT = [f"hot-{number:02d}" for number in range(50)]
OTHERS = [f"other-{number:03d}" for number in range(300)]
ZONES = ("Asia/Seoul", "America/New_York", "Europe/Berlin")
SKEW_MS = (0, 2_000, -1_000)
CAMPAIGNS: dict[str, tuple[str, list[str], str]] = {
    "sale": ("advertising", ["push", "email"], "shoes"),
    "trend": ("advertising", ["push"], "books"),
    "brand": ("advertising", ["email", "sms"], "shoes"),
    "price": ("informational", ["push", "sms"], "books"),
    "stock": ("informational", ["push", "email"], "shoes"),
    "points": ("informational", ["sms"], "books"),
}

# Short windows, so that caps free up and fill again all the time; hours are exact in binary.
_ROLLING_HOURS = {"short": 1 / 1024, "long": 1 / 512}  # 3.5 s and 7 s
_RULES: dict[str, dict[str, Any]] = {
    "first": {"global": 3, "push": 2, "campaign": 1, "category": 150, "gap": 1 / 128},
    "second": {"global": 2, "push": 1, "campaign": 1, "category": 100, "gap": 1 / 64},
}


def policy_document(name: str) -> dict[str, Any]:
    """One of the two policies that are promoted in turns: four caps, a minimum gap, a holdout, flips, no law."""
    rules = _RULES[name]
    return {
        "name": name,
        "message_classes": {
            "informational": {"bypass_min_gap": True, "bypass_threshold": True},
            "advertising": {"bypass_threshold": True},
        },
        "caps": [
            {"id": "all", "scope": "global", "limit": rules["global"], "window": {"rolling_hours": _ROLLING_HOURS["long"]}},
            {"id": "push", "scope": "channel", "only": ["push"], "limit": rules["push"],
             "window": {"rolling_hours": _ROLLING_HOURS["short"]}},
            {"id": "campaign", "scope": "campaign", "limit": rules["campaign"],
             "window": {"rolling_hours": _ROLLING_HOURS["short"]}},
            {"id": "category", "scope": "category", "limit": rules["category"], "window": {"calendar": "day"}},
        ],
        "min_gap": {"minutes": rules["gap"]},
        "other_regions": {
            "ad_consent_required": False, "night_consent_required": False, "consent_valid_days": 0, "ad_label": None,
        },
        "max_sends_per_decision": 2,
        "holdouts": [{"id": "quiet", "scope": "global", "percent": 10.0, "salt": "fire", "blocking": False}],
        "flips": {"probability": 0.05},
        "surfaces": {"notification": {"head_weights": {"p_click": 1.0}}},
    }  # fmt: skip


def prepare_data(data: Path) -> dict[str, str]:
    """Mark the folder as expendable, store both policies, put the first in force. Gives revisions by name."""
    (data / EXPENDABLE).touch()
    revisions = {name: store_policy(data, parse_policy(policy_document(name))) for name in _RULES}
    promote_policy(data, revisions["first"], now=2)
    return revisions


def people_and_campaigns(url: str) -> dict[int, Person]:
    """PUT everybody and everything; gives the users with the version they begin the run with."""
    people = {}
    with httpx.Client(base_url=url, timeout=60.0) as http:
        for number, name in enumerate(HOT + OTHERS):
            zone = ZONES[number % len(ZONES)]
            known = {"zone": zone, "region": "us", "reachable": ["push", "email", "sms"]}
            answer = http.put(f"/v1/users/{name}", json=known).raise_for_status().json()
            people[hashed(name)] = Person(hashed(name), zone, answer["version"], answer["version"])
        for name, (kind, channels, category) in CAMPAIGNS.items():
            campaign = {"text": f"about {name}", "message_class": kind, "channels": channels, "category": category}
            http.put(f"/v1/campaigns/{name}", json=campaign).raise_for_status()
    return people


def processes(deployment: str) -> list[psutil.Process]:
    """Replica processes of a deployment on this machine (of the session's one server)."""
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if f"ServeReplica:hindcast:{deployment}" in command:
            found.append(process)
    return found


def kill_one(deployment: str) -> float:
    """kill -9 a replica; gives the time."""
    victim = min(processes(deployment), key=lambda process: process.pid)
    os.kill(victim.pid, signal.SIGKILL)
    return time.monotonic()


def replicas_of(instance: Instance, role: str) -> int:
    """How many replicas of a role report to the board."""
    return sum(one["role"] == role for one in instance.get("/v1/replicas")["replicas"])
