"""The policy document: everything a team decides about lists and sends, in one immutable, content-addressed revision."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StrictFloat, StrictInt, ValidationError, model_validator

from serve_app.errors import ContradictoryPolicy, InvalidInput, plain_words
from serve_app.policy.base import Strict
from serve_app.policy.consistency import check_consistency
from serve_app.policy.lists import Surfaces
from serve_app.policy.overrides import EXPERIMENT_ROOTS, apply_overrides
from serve_app.policy.reader import Positions, read_document
from serve_app.policy.rules import Cap, Deferral, KillSwitches, MessageClasses, MinGap, QuietHours, RegionRule
from serve_app.policy.segment_tree import Segment
from serve_app.policy.trials import Cells, Experiment, Flips, Holdout

__all__ = [
    "DEFAULT_POLICY",
    "PolicyDocument",
    "canonical_json",
    "load_policy",
    "parse_policy",
    "review_policy",
    "revision_of",
]

DEFAULT_POLICY = Path(__file__).with_name("default.yaml")

RegionCode = Annotated[str, Field(pattern=r"^[a-z]{2}$")]


class PolicyDocument(Strict):
    """The whole document. Building one checks every bound and every contradiction between its parts.

    Raises pydantic.ValidationError for a malformed part and ContradictoryPolicy for parts that cannot all be obeyed;
    `parse_policy` and `load_policy` turn both into one InvalidInput that names line, field and fix.
    """

    model_config = ConfigDict(title="Policy")

    format: Literal[1] = 1
    """Version of this schema."""
    name: Annotated[str, Field(min_length=1, max_length=120)]
    description: Annotated[str, Field(max_length=2000)] = ""
    default_zone: str = "Asia/Seoul"
    """IANA zone assumed for users whose zone is unknown."""
    message_classes: MessageClasses = MessageClasses()
    caps: tuple[Cap, ...] = Field(default=(), max_length=32)
    min_gap: MinGap = MinGap()
    quiet_hours: tuple[QuietHours, ...] = Field(default=(), max_length=32)
    regions: dict[RegionCode, RegionRule] = Field(default_factory=dict)
    """Rules by ISO 3166-1 region code in lower case."""
    other_regions: RegionRule = RegionRule()
    """For users of an unlisted or unknown region."""
    kill_switches: KillSwitches = KillSwitches()
    duplicate_window_hours: Annotated[StrictFloat, Field(ge=0, le=24 * 366)] = 0
    """The same campaign is not sent again to a user within this time, on any channel; 0: only the same request counts."""
    threshold: Annotated[StrictFloat, Field(ge=-1e6, le=1e6)] = 0.0
    """A candidate whose value lies below is not sent."""
    order: Literal["priority_then_value", "value"] = "priority_then_value"
    """Which passing candidate goes first."""
    max_sends_per_decision: Annotated[StrictInt, Field(ge=1, le=16)] = 1
    deferral: Deferral = Deferral()
    holdouts: tuple[Holdout, ...] = Field(default=(), max_length=64)
    experiments: tuple[Experiment, ...] = Field(default=(), max_length=8)
    cells: Cells | None = None
    flips: Flips = Flips()
    surfaces: Surfaces = Surfaces()
    segments: tuple[Segment, ...] = Field(default=(), max_length=64)
    segment_staleness_hours: Annotated[StrictFloat, Field(gt=0, le=24 * 366)] = 48
    """Older segment membership is not trusted."""

    @model_validator(mode="after")
    def _obeyable(self) -> Self:
        check_consistency(self)
        return self

    @cached_property
    def revision(self) -> str:
        """Content hash of the canonical JSON; of a stored document, of the bytes it was stored as."""
        return revision_of(canonical_json(self))

    def stored_as(self, revision: str) -> Self:
        """The document under the revision it was stored with. All its values were spelled out then, so that a later version
        of this schema, which may know further settings, neither changes what it says nor what it is called."""
        self.__dict__["revision"] = revision  # where cached_property looks
        return self

    @property
    def ad_label(self) -> str | None:
        """The one label the document's regions demand of advertising; None where none does."""
        labels = {rule.ad_label for rule in (*self.regions.values(), self.other_regions)} - {None}
        return next(iter(labels), None)

    @property
    def own_window_hours(self) -> float:
        """How far back the rules look as they stand here, whatever arms and cells change."""
        own = [cap.window.longest_hours for cap in self.caps]
        own += [self.min_gap.minutes / 60, self.duplicate_window_hours]
        return max(own)

    @cached_property
    def longest_window_hours(self) -> float:
        """How far back history must reach for every rule of the document, in every arm and cell. Each setting has one
        owner among the trials, so the longest window of all combinations is that of one arm or cell."""
        arms = [arm.overrides for one in self.experiments for arm in one.arms]
        cells = [cell.overrides for cell in self.cells.variants] if self.cells else []
        changed = [one for one in (*arms, *cells) if any(path.startswith(_WITH_WINDOWS) for path in one)]
        variants = [apply_overrides(self, one, field="experiments", roots=EXPERIMENT_ROOTS) for one in changed]
        return max(one.own_window_hours for one in (self, *variants))

    @property
    def longest_window_us(self) -> int:
        """`longest_window_hours` in microseconds."""
        return round(self.longest_window_hours * 3_600e6)


_WITH_WINDOWS = ("caps.", "min_gap.", "duplicate_window_hours")


def revision_of(content: bytes) -> str:
    """20 hex digits of the SHA-256 of a document's canonical JSON."""
    return hashlib.sha256(content).hexdigest()[:20]


def canonical_json(document: PolicyDocument) -> bytes:
    """Sorted keys, no spaces, defaults spelled out, UTF-8: the bytes the revision is a hash of."""
    data = document.model_dump(mode="json")
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def parse_policy(data: Any, *, positions: Positions | None = None, name: str = "policy") -> PolicyDocument:
    """From plain data (as JSON or YAML gives it). Raises InvalidInput or ContradictoryPolicy naming line, field and fix of
    the first problem, and how many more there are."""
    made, problems = _parsed(data, positions or Positions({}), name)
    if made is None:
        first = problems[0]
        more = f"; {len(problems) - 1} more after it" if len(problems) > 1 else ""
        raise type(first)(first.message + more, field=first.field, hint=first.hint) from None
    return made


def load_policy(path: str | Path) -> PolicyDocument:
    """Read a YAML or JSON file. Raises InvalidInput or ContradictoryPolicy naming file, line, field and fix."""
    path = Path(path)
    data, positions = read_document(path)
    return parse_policy(data, positions=positions, name=path.name)


def review_policy(path: str | Path) -> tuple[PolicyDocument | None, Positions, list[InvalidInput]]:
    """Every problem of a file at once: (the document, lines of its keys, none), or (None, lines, problems by line).
    Raises InvalidInput for a file that is no YAML or JSON at all."""
    path = Path(path)
    data, positions = read_document(path)
    made, problems = _parsed(data, positions, path.name)
    return made, positions, problems


def _parsed(data: Any, positions: Positions, name: str) -> tuple[PolicyDocument | None, list[InvalidInput]]:
    try:
        return PolicyDocument.model_validate(data), []
    except ValidationError as error:
        # By line; but a misspelt key is also a missing one, and its spelling is named first.
        found = sorted(error.errors(), key=lambda one: (one["type"] == "missing", positions.line(_path(one))))
        return None, [_malformed(one, positions, name) for one in _one_for_each_value(found)]
    except ContradictoryPolicy as error:
        return None, [_located(one, positions, name) for one in (error, *error.also)]


def _one_for_each_value(errors: Sequence[Any]) -> list[Any]:
    """A value that fits no member of a union fails once for each member; the first says it."""
    kept: dict[tuple[Any, ...], Any] = {}
    for one in errors:
        kept.setdefault((_path(one), one["type"] in ("extra_forbidden", "missing")), one)
    return list(kept.values())


def _path(error: Any) -> tuple[int | str, ...]:
    return tuple(part for part in error["loc"] if part not in _UNION_TAGS)


def _malformed(error: Any, positions: Positions, name: str) -> InvalidInput:
    path = _path(error)
    return InvalidInput(f"{name}{positions.text(path)}: {_words(error)}", field=_dotted(path), hint=_fix(error))


def _located(error: ContradictoryPolicy, positions: Positions, name: str) -> ContradictoryPolicy:
    where = positions.text(tuple((error.field or "").split(".")))
    return ContradictoryPolicy(f"{name}{where}: {error.message}", field=error.field, hint=error.hint)


# pydantic names the member of a union, or the key of a mapping, that it tried.
_UNION_TAGS = frozenset({"and", "or", "not", "attribute", "membership", "event_count", "last_event", "bucket", "segment"})
_UNION_TAGS |= {"bool", "int", "float", "str", "tuple[str, ...]", "[key]", "tuple[nullable[str],...]"}


def _dotted(path: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in path) or "document"


def _words(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key"
    if error["type"] == "missing":
        return "missing"
    text = plain_words(str(error["msg"]))
    text = re.sub(" or instance of [A-Za-z]+", "", text)
    text = text.replace("valid tuple", "valid list").replace("Tuple should", "the list should")
    return text[0].lower() + text[1:]


def _fix(error: Any) -> str | None:
    if error["type"] == "extra_forbidden":
        return "remove it or correct its spelling"
    if error["type"] == "missing":
        return "state it"
    if error["type"] == "value_error":
        return None  # our own words, which say what to do
    shown = repr(error.get("input"))
    return f"got {shown if len(shown) <= 60 else shown[:57] + '...'}"
