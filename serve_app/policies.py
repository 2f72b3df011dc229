"""The policies of a data folder: content-addressed documents, which one is current, which were before.

``DATA/policies/<revision>.json`` holds the canonical JSON whose hash is the revision. ``DATA/policies/current`` is one small
file replaced by one rename: the current revision and the history of promotions, so that the two can never disagree.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.errors import DamagedArtifact, HindcastError, InvalidInput, NotReady, UnknownIdentifier
from serve_app.policy.document import PolicyDocument, canonical_json, parse_policy, revision_of
from serve_app.release.flip import Flip
from serve_app.release.manifest import write_text_atomically
from serve_app.release.pointer import Step, locked, one_before

__all__ = [
    "ListedPolicy",
    "PolicyPromotion",
    "current_policy",
    "list_policies",
    "promote_policy",
    "read_current_policy",
    "read_policy",
    "rollback_policy",
    "store_policy",
]


class PolicyPromotion(BaseModel):
    """One line of the history. `at`: i64 microseconds UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    revision: str
    at: int
    action: Step
    replaced: str | None


class _Current(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    revision: str | None = None
    history: list[PolicyPromotion] = Field(default_factory=list)


class ListedPolicy(BaseModel):
    """One stored policy: its name, or why it cannot be read. promoted_at: newest promotion; 0: never."""

    revision: str
    current: bool
    name: str
    promoted_at: int
    problem: str | None


def _folder(data: Path) -> Path:
    return data / "policies"


def read_current_policy(data: Path) -> tuple[str | None, list[PolicyPromotion]]:
    """(current revision or None, promotions oldest first). DamagedArtifact when the pointer cannot be read."""
    path = _folder(data) / "current"
    try:
        state = _Current.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        state = _Current()
    except ValidationError as error:
        message = f"the pointer to the current policy cannot be read: {error.errors()[0]['msg']}"
        raise DamagedArtifact(message, field=str(path), hint="delete it and promote a policy again") from None
    return state.revision, state.history


def read_policy(data: Path, revision: str) -> PolicyDocument:
    """The stored document. UnknownIdentifier when there is none, DamagedArtifact when its content is not its revision's."""
    path = _folder(data) / f"{revision}.json"
    if Path(revision).name != revision or not path.is_file():
        known = ", ".join(one.revision for one in list_policies(data)) or "none"
        raise UnknownIdentifier(f"no policy {revision!r}", field="revision", hint=f"known: {known}")
    return _read(path)


def _read(path: Path) -> PolicyDocument:
    content = path.read_bytes()
    if revision_of(content) != path.stem:
        message = f"the content has revision {revision_of(content)}"
        raise DamagedArtifact(message, field=str(path), hint="promote the policy again from its source file")
    try:
        return parse_policy(json.loads(content), name=path.name).stored_as(path.stem)
    except (json.JSONDecodeError, UnicodeDecodeError, InvalidInput) as error:
        raise DamagedArtifact(f"the stored policy cannot be read: {error}", field=str(path)) from None


def current_policy(data: Path) -> PolicyDocument:
    """The current document. NotReady when none was promoted yet."""
    revision, _ = read_current_policy(data)
    if revision is None:
        hint = "run `hindcast policy promote FILE`"
        raise NotReady("no policy has been promoted", field=str(_folder(data)), hint=hint)
    return read_policy(data, revision)


def store_policy(data: Path, document: PolicyDocument) -> str:
    """Write the document under its revision (once) and return it."""
    path = _folder(data) / f"{document.revision}.json"
    if not path.exists():
        write_text_atomically(path, canonical_json(document).decode())
    return document.revision


def list_policies(data: Path) -> list[ListedPolicy]:
    """Stored policies, the newest promoted first."""
    current, history = read_current_policy(data)
    promoted = {entry.revision: entry.at for entry in history}
    found = []
    for path in sorted(_folder(data).glob("*.json")):
        try:
            name, problem = _read(path).name, None
        except DamagedArtifact as error:
            name, problem = "", str(error)
        found.append(
            ListedPolicy(
                revision=path.stem,
                current=path.stem == current,
                name=name,
                promoted_at=promoted.get(path.stem, 0),
                problem=problem,
            )
        )
    return sorted(found, key=lambda one: (-one.promoted_at, one.revision))


def promote_policy(data: Path, revision: str, *, now: int, flip: Flip | None = None) -> PolicyPromotion:
    """Make a stored policy current. With a running server (`flip`), all replicas load it before any request is pinned to
    it; when one cannot, the error says so and the old policy stays."""
    with locked(_folder(data)):
        return _switch(data, revision, "promote", now, flip)


def rollback_policy(data: Path, *, now: int, flip: Flip | None = None) -> PolicyPromotion:
    """Make the policy current that the present one replaced. Repeated, it walks further
    back, down to the first."""
    with locked(_folder(data)):
        target = one_before((entry.action, entry.revision) for entry in read_current_policy(data)[1])
        if target is None:
            raise InvalidInput("there is no earlier policy to go back to", field="policies")
        return _switch(data, target, "rollback", now, flip)


def _switch(data: Path, revision: str, action: Step, now: int, flip: Flip | None) -> PolicyPromotion:
    old, history = read_current_policy(data)
    read_policy(data, revision)
    entry = PolicyPromotion(revision=revision, at=now, action=action, replaced=old)
    if flip is not None:
        flip.prepare(revision)
    _write(data, _Current(revision=revision, history=[*history, entry]))
    if flip is not None:
        try:
            flip.commit(revision)
        except HindcastError:
            _write(data, _Current(revision=old, history=history))
            raise
    return entry


def _write(data: Path, state: _Current) -> None:
    write_text_atomically(_folder(data) / "current", state.model_dump_json(indent=1))
