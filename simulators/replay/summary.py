"""A replay's counts in a few lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa

from serve_app.vocabulary import Reason
from simulators.estimators import Estimated, Suite
from simulators.replay.spec import CONTROL

__all__ = ["estimate_lines", "summary"]


def summary(counts: pa.Table, targets: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows (what, logged, each target): volumes, reach, reasons, and how far the log's environment goes."""
    total: defaultdict[tuple[str, str, str, int], int] = defaultdict(int)
    for row in counts.to_pylist():
        total[row["policy"], row["measure"], row["dimension"], row["key"]] += row["value"]
    names = ["logged", *targets]

    def line(text: str, measure: str, dimension: str = "", key: int = 0) -> tuple[str, ...]:
        return (text, *(f"{total[name, measure, dimension, key]:,}" for name in names))

    decisions = {name: sum(total[name, "decisions", "reason", int(one)] for one in Reason) for name in names}
    rows = [
        ("decisions", *(f"{decisions[name]:,}" for name in names)),
        line("sends", "sends"),
        line("users", "users"),
        line("users reached", "users_reached"),
    ]
    seen = [one for one in Reason if any(total[name, "decisions", "reason", int(one)] for name in names)]
    rows += [line(f"  {one.name}", "decisions", "reason", int(one)) for one in seen]
    beyond = [total[name, "decisions_beyond_divergence", "", 0] / max(decisions[name], 1) for name in names]
    rows.append(("after first divergence", "", *(f"{one:.1%}" for one in beyond[1:])))
    rows.append(line("carried scores", "carried"))
    return rows


def estimate_lines(suite: Suite, targets: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows (metric, estimator, each target's paired difference from the log), refusals with their reasons."""
    said: dict[tuple[str, str], dict[str, str]] = {}
    for one in suite.estimates(control=CONTROL):
        if one.subject.versus is None or one.subject.policy == CONTROL or one.subject.group is not None:
            continue
        if isinstance(one, Estimated):
            span = f" [{one.interval.low:+.4g}, {one.interval.high:+.4g}]" if one.interval else ""
            text = f"{one.value:+.4g}{span} {one.verdict.standing}"
        else:
            text = f"refused: {one.verdict.reasons[0]}"
        said.setdefault((one.subject.metric, one.subject.estimator), {})[one.subject.policy] = text
    return [(*key, *(by_target[name] for name in targets)) for key, by_target in said.items()]
