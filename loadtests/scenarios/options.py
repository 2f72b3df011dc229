"""The plan as command-line options, so that Locust carries it to its workers."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from pydantic_core import PydanticUndefined

from loadtests.scenarios.plan import Plan, Scenario, read_plan

__all__ = ["API_KEY", "add_options", "arguments_of", "plan_of"]

API_KEY = "HINDCAST_API_KEY"
"""Environment variable with the key that requests carry; on the command line everybody could read it."""
_PREFIX = "load_"


def add_options(parser: Any) -> None:
    """One option a field of the plan."""
    group = parser.add_argument_group("Hindcast")
    for name, field in Plan.model_fields.items():
        kind = float if field.annotation in (float, float | None) else int if field.annotation in (int, int | None) else str
        choices = [one.value for one in Scenario] if name == "scenario" else None
        default = None if field.default is PydanticUndefined else field.default
        group.add_argument(
            f"--{_flag(name)}",
            dest=_PREFIX + name,
            type=kind,
            choices=choices,
            default=default,
            help=field.description or name,
        )
    group.add_argument("--out", dest="out", default="load-result", help="folder of result.json")


def _flag(name: str) -> str:
    # Locust has a --users of its own, which it sets to 1 where nothing is said.
    return "waiting-users" if name == "users" else name.replace("_", "-")


def plan_of(options: Namespace) -> Plan:
    """Back from options."""
    return read_plan(**{name: getattr(options, _PREFIX + name) for name in Plan.model_fields})


def arguments_of(plan: Plan) -> list[str]:
    """A plan as arguments of `locust`."""
    out = []
    for name, value in plan.model_dump(mode="json", exclude_none=True).items():
        out += [f"--{_flag(name)}", str(value)]
    return out
