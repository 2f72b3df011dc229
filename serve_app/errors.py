"""The exceptions of Hindcast.

::

    HindcastError                  everything below; str(error) is one clear line, `hint` says what to do
      InvalidInput                 the caller's data is wrong; names the field
        UnknownIdentifier          a well-formed id that nothing known carries
        ContradictoryPolicy        a policy document that cannot be obeyed
      DamagedArtifact              a file is corrupt, truncated, of another schema version, or fails its checksum
      NotReady                     a needed part is not loaded or not reachable yet; a retry may succeed
        LedgerUnavailable          no commit was attempted
        OutcomeUnknown             a commit was issued and its outcome could not be learned
      ResourceShortage             port in use, too little memory or disk, wrong Python
"""

from __future__ import annotations

__all__ = [
    "ContradictoryPolicy",
    "DamagedArtifact",
    "HindcastError",
    "InvalidInput",
    "LedgerUnavailable",
    "NotReady",
    "OutcomeUnknown",
    "ResourceShortage",
    "UnknownIdentifier",
    "plain_words",
]


class HindcastError(Exception):
    """Base of all errors raised on purpose. `field` names the offending input, `hint` the fix."""

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        fix = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.message}{fix}"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default reduction between Ray processes.
        return (_rebuild, (type(self), self.message, self.field, self.hint))


def _rebuild(kind: type[HindcastError], message: str, field: str | None, hint: str | None) -> HindcastError:
    return kind(message, field=field, hint=hint)


class InvalidInput(HindcastError):
    """The caller's data is wrong."""


class UnknownIdentifier(InvalidInput):
    """A well-formed id that nothing known carries."""


class ContradictoryPolicy(InvalidInput):
    """A policy document whose rules cannot all be obeyed. `also`: the further contradictions of the same document."""

    also: tuple[ContradictoryPolicy, ...] = ()


class DamagedArtifact(HindcastError):
    """A file is corrupt, truncated, of another schema version, or fails its checksum."""


class NotReady(HindcastError):
    """A needed part is not loaded or not reachable yet."""


class LedgerUnavailable(NotReady):
    """The ledger could not be reached and no commit was attempted."""


class OutcomeUnknown(NotReady):
    """A commit was issued and its outcome could not be learned; retry the same idempotency key."""


class ResourceShortage(HindcastError):
    """The machine lacks what is needed: a free port, memory, disk, a fitting Python."""


def plain_words(message: str) -> str:
    """What a validator of ours said, without the words pydantic puts before it."""
    return message.removeprefix("Value error, ")
