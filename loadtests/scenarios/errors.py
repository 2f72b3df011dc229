"""What goes wrong before or around a run. Scenarios know nothing of the server's code, so this is not one of its errors."""

from __future__ import annotations

__all__ = ["LoadError"]


class LoadError(Exception):
    """The run cannot start or cannot be judged; the message names what is wrong and how to mend it."""
