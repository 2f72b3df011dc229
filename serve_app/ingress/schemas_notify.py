"""What callers send and get for send decisions."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.ingress.schemas import Channel, FeatureValue, Id, Moment, Rehearsal, StageName, Strict

__all__ = [
    "MAX_CANDIDATES",
    "MAX_ROWS",
    "MAX_SENDS",
    "MAX_TEXT",
    "CandidateAsked",
    "DecideAnswer",
    "DecideBatchAnswer",
    "DecideBatchRequest",
    "DecideRequest",
    "DecideRow",
    "ExplainedCandidate",
    "GateWord",
    "RowAnswer",
    "Send",
    "StoredDecision",
]

ActionName = Literal["none", "send", "suppress", "defer"]

MAX_ROWS, MAX_CANDIDATES, MAX_SENDS, MAX_TEXT = 10_000, 200, 16, 200
"""Bounds of a batch, of a decision, and of every id and key in it (characters)."""


class CandidateAsked(Strict):
    """A message that could be sent."""

    campaign: Id
    item: Id | None = Field(None, description="the product it is about; absent: the campaign's own")
    channel: Channel | None = Field(None, description="absent: every channel the campaign allows")


class DecideRow(Strict):
    """One user's decision."""

    user: Id
    candidates: list[CandidateAsked] | None = Field(
        None, max_length=MAX_CANDIDATES, description="messages to choose from; absent: every campaign that is live"
    )
    max_sends: int = Field(
        1,
        ge=1,
        le=MAX_SENDS,
        description="how many of them may be sent; never more than the policy's max_sends_per_decision",
    )
    idempotency_key: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_TEXT,
        description="the same key gives the same decision, however often it is retried",
    )
    expires_at: Moment | None = Field(None, description="not to be sent, nor deferred, beyond this time")


class DecideRequest(DecideRow, Rehearsal):
    """Whether, what and by which channel to send to one user, now."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user": "17850", "candidates": [{"campaign": "spring", "channel": "push"}]}]}
    )

    explain: bool = Field(False, description="say, per candidate, what every gate said")


class DecideBatchRequest(Rehearsal):
    """Decisions for many users at once. Rows are decided in order; a user may stand in several."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"rows": [{"user": "17850"}, {"user": "13047"}]}]})

    rows: list[DecideRow] = Field(min_length=1, max_length=MAX_ROWS)


class Send(BaseModel):
    """One granted message."""

    decision_id: str = Field(description="give it back in events about this message")
    slot: int
    campaign: str
    item: str | None
    channel: Channel
    status: Literal["granted", "queued"] = Field(description="granted: send it now; queued: a worker sends it")
    propensity: float = Field(description="probability of this choice, given history and arm")


class GateWord(BaseModel):
    """What one gate said of one candidate."""

    gate: str
    outcome: Literal["keep", "suppress", "defer"]
    reason: str | None = None
    used: float | None = None
    limit: float | None = None
    next_free_at: datetime | None = None


class ExplainedCandidate(BaseModel):
    """Why a message is or is not sent."""

    campaign: str | None
    item: str | None
    channel: Channel | None
    action: ActionName
    reason: str
    value: float | None
    propensity: float | None
    ghost: bool = Field(description="would have been sent but for a holdout")
    heads: dict[str, float | None] | None = None
    features: dict[str, FeatureValue] | None = None
    gates: list[GateWord]


class RowAnswer(BaseModel):
    """One decision."""

    user: str
    request_id: str
    decision_id: str
    action: ActionName
    reason: str
    until: datetime | None = Field(None, description="a deferral's end")
    decided_again_as: str | None = Field(
        None, description="of a deferral: the decision that answers it, from `until` on, at GET /v1/decisions/{id}"
    )
    sends: list[Send] = Field(default_factory=list)
    unledgered: bool = Field(
        False, description="sent without the ledger, which is down: at least once, counted nowhere; a retry sends again"
    )
    replayed: bool = Field(False, description="this idempotency key was decided before; this is that decision")
    degraded: list[StageName] = Field(default_factory=list, description="stages that fell back")
    propensity_none: float | None = Field(None, description="probability that nothing was chosen")
    explored: bool = Field(False, description="a declared random flip changed the choice")


class DecideAnswer(RowAnswer):
    """The decision on one user."""

    release: str
    policy: str
    decided_at: datetime
    dry_run: bool = False
    explain: list[ExplainedCandidate] | None = None


class RowProblem(BaseModel):
    """A row that could not be decided; the others are not affected."""

    row: int
    type: str
    detail: str
    field: str | None = None
    status: int


class DecideBatchAnswer(BaseModel):
    """Decisions in row order; rows with errors are null and stand in `errors`."""

    release: str
    policy: str
    decided_at: datetime
    dry_run: bool = False
    decisions: list[RowAnswer | None]
    errors: list[RowProblem]


class StoredCandidate(ExplainedCandidate):
    """Why a message was or was not sent, holdouts included."""

    ghost_first: bool = Field(False, description="the user's first would-send under that holdout, marked in both arms")
    holdout: str | None = Field(None, description="the holdout that silenced it")
    propensity_shadow: float | None = Field(None, description="probability that it is chosen on its shadow history")


class AssignedArm(BaseModel):
    """The arm of one experiment."""

    experiment: str
    arm: int = Field(description="its place among the arms, from 0")
    arm_id: str | None = Field(None, description="its id, where the policy that decided is known")
    propensity: float


class AssignedHoldout(BaseModel):
    """Whether a holdout holds the user out."""

    holdout: str
    held_out: bool
    propensity: float


class StoredDecision(BaseModel):
    """A decision as the ledger, or else the log, keeps it, gate by gate."""

    request_id: str
    decision_id: str
    decided_at: datetime
    release: str | None
    policy: str | None
    code_version: str | None = None
    source: Literal["ledger", "log"] = Field("ledger", description="where it was found")
    action: ActionName
    reason: str
    until: datetime | None
    decided_again_as: str | None = Field(None, description="of a deferral: the decision that answers it, from `until` on")
    answers_deferral: str | None = Field(None, description="the deferral that this decision answers")
    cell: int | None
    propensity_cell: float | None = None
    experiments: list[AssignedArm] = Field(default_factory=list)
    holdouts: list[AssignedHoldout] = Field(default_factory=list)
    zone: str | None = None
    region: str | None = None
    read_version: int | None
    commit_version: int | None = Field(None, description="ledger version written, where the log knows it; null: none")
    degraded: list[StageName]
    propensity_none: float | None
    explored: bool
    forced: bool = False
    sends: list[Send]
    candidates: list[StoredCandidate]
