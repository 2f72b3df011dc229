"""Making lists again: values under a policy's weights, then the very selector that serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from serve_app.batch import Ragged
from serve_app.errors import InvalidInput
from serve_app.policy.assign import assign
from serve_app.policy.compile import CompiledPolicy
from serve_app.stages.ranking.selector import Selection, SelectorInput, select
from serve_app.stages.ranking.settings import ListSettings, Redundancy
from serve_app.stages.ranking.stage import values_of
from simulators.replay.items.logged import Lists

__all__ = ["Made", "Vectors", "as_logged", "drawn_variants", "made", "under"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

Vectors = Callable[[Lists], tuple[F32, I32]]
"""(vectors f32[rows, d], row i32[m] of each candidate): embeddings of the release that made the lists."""


@dataclass(frozen=True)
class Made:
    """What the selector is asked: n lists, their settings, and values f64[m] of the candidates."""

    given: SelectorInput
    settings: tuple[ListSettings, ...]

    def select(self, *, follow: I32 | None = None, distributions: bool = False) -> Selection:
        """See `serve_app.stages.ranking.selector.select`."""
        return select(self.given, self.settings, follow=follow, distributions=distributions)

    def of(self, rows: I64) -> Made:
        """Some of the lists, in that order."""
        g = self.given
        places = Ragged(np.arange(int(g.offsets[-1])), g.offsets).take(rows)
        flat = places.values
        given = replace(
            g, offsets=places.offsets, request_id=g.request_id[rows], slots=g.slots[rows], setting=g.setting[rows],
            identity=g.identity[flat], category=g.category[flat], value=g.value[flat], allowed=g.allowed[flat],
            vector_row=None if g.vector_row is None else g.vector_row[flat],
        )  # fmt: skip
        return Made(given, self.settings)

    def with_noise(self, request_id: U64) -> Made:
        """The same under another draw."""
        return Made(replace(self.given, request_id=request_id), self.settings)


def as_logged(lists: Lists, policies: Sequence[CompiledPolicy], vectors: Vectors | None = None) -> Made:
    """Under the policies that made them (of `lists.revisions`), in the arms and cells the log names."""
    return made(lists, policies, lists.policy, lists.requests["variant"], None, vectors)


def under(lists: Lists, policy: CompiledPolicy, vectors: Vectors | None = None, allowed: Bools | None = None) -> Made:
    """Under one other policy, in the arms it draws itself. allowed bool[m]: what its filters leave; None: everything."""
    return made(lists, [policy], np.zeros(len(lists), np.int16), drawn_variants(lists, policy), allowed, vectors)


def drawn_variants(lists: Lists, policy: CompiledPolicy) -> I16:
    """i16[n]: the policy's own assignment of each list, as the server draws it: anonymous ones by request."""
    key = np.where(lists.logged_user != 0, lists.logged_user, lists.requests["request_id"])
    drawn: I16 = assign(policy.trials, key, lists.requests["decided_at"]).variant
    return drawn


def made(
    lists: Lists, policies: Sequence[CompiledPolicy], policy: I16, variant: I16, allowed: Bools | None,
    vectors: Vectors | None,
) -> Made:  # fmt: skip
    """policy i16[n] indexes `policies`. InvalidInput where similarity by embedding is asked for without vectors."""
    settings, setting = _settings(lists, policies, policy, variant)
    kept = np.ones(len(lists.candidates["thing"]), np.bool_) if allowed is None else allowed
    value = values_of(lists.candidates["heads"], lists.head_names, settings, setting, lists.offsets, kept)
    given = SelectorInput(
        offsets=lists.offsets,
        request_id=lists.requests["request_id"],
        slots=lists.requests["slots"],
        setting=setting,
        identity=lists.candidates["thing"],
        category=lists.candidates["category"],
        value=value,
        allowed=kept & ~np.isnan(value),
    )
    if any(one.redundancy == Redundancy.embedding and one.mmr_lambda < 1 for one in settings):
        if vectors is None:
            raise InvalidInput(
                "similarity by embedding needs the vectors of the release that made the lists",
                field=f"surfaces.{lists.surface.name}.diversity.redundancy",
                hint="keep that release in the data folder, or use redundancy: category",
            )
        known, rows = vectors(lists)
        given = replace(given, vectors=known, vector_row=rows)
    return Made(given, tuple(settings))


def _settings(lists: Lists, policies: Sequence[CompiledPolicy], policy: I16, variant: I16) -> tuple[list[ListSettings], I32]:
    pairs = np.stack([policy.astype(np.int64), variant.astype(np.int64)], axis=1)
    distinct, inverse = np.unique(pairs, axis=0, return_inverse=True)
    settings = [policies[index].list_settings(lists.surface, arm) for index, arm in distinct.tolist()]
    return settings, inverse.reshape(-1).astype(np.int32)
