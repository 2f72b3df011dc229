"""The scenarios by name. Light: a command line that lists them imports nothing else."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["SCENARIOS", "Scenario"]


class Scenario(StrEnum):
    """What `hindcast load` can run."""

    baseline = "baseline"
    shoppers = "shoppers"
    senders = "senders"
    ramp = "ramp"
    spike = "spike"
    soak = "soak"
    replay = "replay"


SCENARIOS = {
    Scenario.baseline: "shoppers and senders at one rate",
    Scenario.shoppers: "shoppers alone: page, product, related products, widgets, basket, order, their events",
    Scenario.senders: "notification senders alone: single decisions and batches",
    Scenario.ramp: "ten steps from a tenth of the rate to the rate; says which step was the last to hold",
    Scenario.spike: "the rate, then ten times the rate for half a minute, then the rate again",
    Scenario.soak: "the baseline for an hour",
    Scenario.replay: "a trace of requests at its own times, or faster",
}
