"""What a stage is: a plain object with a name and `run(batch, context) -> batch`.

A stage is built once from immutable parts (a release's tables, a compiled policy) and is a pure function of batch and
context after that: no I/O, no clock, no unseeded randomness, no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from serve_app.batch import Batch

__all__ = ["Context", "Stage"]


@dataclass(frozen=True, slots=True)
class Context:
    """What all requests of a batch share. `policies` are compiled policies; the request column `policy` indexes them.
    `parts` holds stage-specific immutable inputs by name (availability, histories, segments), set by the shell."""

    policies: tuple[Any, ...] = ()
    parts: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Stage(Protocol):
    """One step of the chain."""

    name: str

    def run(self, batch: Batch, context: Context) -> Batch:
        """Return the batch with this stage's columns set; never mutates columns of the input in place."""
