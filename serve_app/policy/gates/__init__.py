"""The gates, cheapest and most legal first. Their order is the order of primary reasons and of `meta["gates"]`."""

from serve_app.policy.gates.caps import caps
from serve_app.policy.gates.channel import channel
from serve_app.policy.gates.consent import consent
from serve_app.policy.gates.duplicate import duplicate
from serve_app.policy.gates.expired import expired
from serve_app.policy.gates.kill_switch import kill_switch
from serve_app.policy.gates.min_gap import min_gap
from serve_app.policy.gates.quiet_hours import quiet_hours
from serve_app.policy.gates.result import Gate, GateResult, HistoryView
from serve_app.policy.gates.segment import segment
from serve_app.policy.gates.threshold import threshold

__all__ = ["GATES", "GATE_NAMES", "HISTORY_GATES", "Gate", "GateResult", "HistoryView"]

GATES: dict[str, Gate] = {
    "kill_switch": kill_switch,
    "expired": expired,
    "duplicate": duplicate,
    "consent": consent,
    "channel": channel,
    "segment": segment,
    "quiet_hours": quiet_hours,
    "caps": caps,
    "min_gap": min_gap,
    "threshold": threshold,
}
GATE_NAMES = tuple(GATES)
HISTORY_GATES = ("duplicate", "caps", "min_gap")
"""Those whose word depends on the history, hence on the shadow it is seen through."""
