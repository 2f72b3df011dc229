"""What a caller may say when a process it asked for decisions ended, refused or failed: in the words of our errors."""

from __future__ import annotations

import asyncio

from serve_app.errors import HindcastError, LedgerUnavailable, OutcomeUnknown

__all__ = ["called_off", "own_error", "undecided"]


def called_off(error: BaseException) -> bool:
    """Whether the task under way was itself told to end. Else a CancelledError only says that a call was cut short: a
    channel closes with the replica at its other end."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def own_error(error: BaseException | None) -> HindcastError | None:
    """The error of ours that a remote call wrapped, if there is one."""
    while error is not None:
        if type(error).__module__ == HindcastError.__module__ and isinstance(error, HindcastError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None


def undecided(error: BaseException, *, committing: bool) -> HindcastError:
    """A call to decide that got no answer because the process it went to is gone. It may have committed before it ended, so
    the outcome is unknown; a dry run (`committing` False) commits nothing."""
    said = f"the process that was deciding ended before it answered: {type(error).__name__}"
    if committing:
        return OutcomeUnknown(said, field="decision", hint="retry with the same idempotency key")
    return LedgerUnavailable(said, field="decision", hint="retry")
