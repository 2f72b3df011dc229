"""One request: sent, timed from when it was meant to leave, verified, recorded."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

import orjson

from loadtests.scenarios.answers import Contract
from loadtests.scenarios.plan import Phase, phase_at
from loadtests.scenarios.recording import Recording
from loadtests.scenarios.step import REFUSED, Answer, Step

__all__ = ["Client"]

_JSON = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}


@dataclass
class Client:
    """What every request of a worker needs. began: the monotonic clock at the run's start."""

    contract: Contract
    recording: Recording
    phases: tuple[Phase, ...]
    verify: float
    key: str | None
    began: float
    rng: random.Random

    def perform(self, session: Any, step: Step, intended: float) -> tuple[Answer, bool]:
        """Send `step`, which was meant to leave at `intended` (monotonic), over a locust FastHttpSession. The answer, and
        whether it was what it should be."""
        left = time.monotonic()
        self.recording.left(max(0.0, left - intended))
        try:
            return self._answered(session, step, intended, left)
        except BaseException:  # above all the run's end, which does not wait: it left, so it stands in the rates
            at_s = intended - self.began
            self.recording.lost(phase_at(self.phases, at_s).name, step.route, at_s)
            raise

    def _answered(self, session: Any, step: Step, intended: float, left: float) -> tuple[Answer, bool]:
        headers = _JSON if self.key is None else {**_JSON, "Authorization": f"Bearer {self.key}"}
        # A step that fails is locust's failure, too: its live statistics tell the same story.
        with session.request(
            step.method, step.path, name=step.route, data=step.body, headers=headers, catch_response=True
        ) as response:
            over = time.monotonic()
            answer = _read(response)
            faults = self._faults(step, answer)
            looked = faults is not None
            faults = faults or []
            at_s = intended - self.began
            outcome = _outcome(step, answer, faults)
            cell = self.recording.answered(
                phase_at(self.phases, at_s).name, step.route, at_s, outcome=outcome, status=_status(answer),
                response_s=over - intended, service_s=over - left, size=len(answer.raw), degraded=_is_degraded(answer),
            )  # fmt: skip
            cell.verified += looked
            cell.violations += len(faults)
            for fault in faults:
                self.recording.violated(step.route, fault, _shown(step), answer.raw.decode(errors="replace"))
            response.request_meta["response_time"] = (over - intended) * 1e3
            if outcome == "ok":
                response.success()
            else:
                response.failure(f"{outcome} {_status(answer)}" + (f": {faults[0][:80]}" if faults else ""))
        return answer, not faults

    def _faults(self, step: Step, answer: Answer) -> list[str] | None:
        """What is wrong with the answer; None: not looked at. Problems are always looked at, results as often as asked."""
        if answer.good and self.verify < 1 and self.rng.random() >= self.verify:
            return None
        out = self.contract.faults(step.route, answer)
        self.recording.checks["schema"] += 1
        wanted = step.expect or 200
        if answer.status in (0, *REFUSED) or out:
            return out
        if answer.status != wanted:
            if step.expect or answer.status < 500:
                out.append(f"status {answer.status} where {wanted} was due")
        elif step.check is not None:
            self.recording.checks["content"] += 1
            try:
                out += step.check(answer)
            except Exception as error:  # noqa: BLE001 - what a check breaks on is not what was promised
                out.append(f"cannot be verified: {error!r}")
        return out


def _read(response: Any) -> Answer:
    if response.status_code == 0:
        return Answer(0, error=str(getattr(response, "error", "no answer")))
    raw = response.content or b""
    headers = response.headers or {}
    media = headers.get("content-type", "")
    content = None
    if "json" in media:
        try:
            content = orjson.loads(raw)
        except orjson.JSONDecodeError:
            content = None
    return Answer(response.status_code, content, media, headers.get("retry-after"), "", raw)


def _outcome(step: Step, answer: Answer, faults: list[str]) -> str:
    if faults:
        return "failed"
    if answer.status == (step.expect or 200):
        statuses = {row.get("status") for row in _row_problems(answer)}
        return "ok" if not statuses else "refused" if statuses <= {*REFUSED} else "failed"
    return "refused" if answer.status in REFUSED else "failed"


def _row_problems(answer: Answer) -> list[dict[str, Any]]:
    """Rows of a batch that were not decided: the answer is a 200 all the same."""
    said = answer.content
    rows = said.get("errors") if isinstance(said, dict) and "decisions" in said else None
    return [one for one in rows if isinstance(one, dict)] if isinstance(rows, list) else []


def _status(answer: Answer) -> str:
    if answer.status == 0:
        return answer.error.split(":")[0].split("(")[0][:40] or "no answer"
    said = [answer.content] if isinstance(answer.content, dict) and not answer.good else _row_problems(answer)
    kind = str(said[0].get("type", "")) if said else ""
    return f"{answer.status} {kind.rsplit(':', 1)[-1]}".strip()


def _is_degraded(answer: Answer) -> bool:
    """The answer says so, or one of its rows does."""
    said = answer.content
    if not isinstance(said, dict):
        return False
    return bool(said.get("degraded")) or any(row and row.get("degraded") for row in said.get("decisions") or ())


def _shown(step: Step) -> str:
    return f"{step.method} {step.path} {(step.body or b'').decode(errors='replace')}"
