"""What a surface asks of retrieval: how many candidates each source may give, and which filters apply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.stages.retrieval.evidence import QUOTA_SOURCES
from serve_app.stages.stage import Context
from serve_app.vocabulary import Source, Surface

__all__ = ["DEFAULT_RETRIEVAL", "RequestSettings", "SurfaceRetrieval", "settings_of"]

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """Of a batch: quotas i32[n, 7], drops i32[n, 2] (seen, bought), the largest quotas, room for all candidates."""

    quotas: I32
    drops: I32
    most: tuple[int, ...]
    room: int


@dataclass(frozen=True)
class SurfaceRetrieval:
    """Quotas by Source, and whether seen or bought items are dropped."""

    quotas: Mapping[Source, int]
    drop_seen: bool = False
    drop_bought: bool = False
    counts: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Quotas in the order of QUOTA_SOURCES."""
    room: int = field(init=False, repr=False, compare=False)
    """Most candidates of a request: co-visits and sessions give two lists each."""

    def __post_init__(self) -> None:
        counts = tuple(int(self.quotas.get(source, 0)) for source in QUOTA_SOURCES)
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "room", sum(counts) + sum(counts[2:4]))

    @cached_property
    def alone(self) -> RequestSettings:
        """Of a batch of one request."""
        drops = np.array([(self.drop_seen, self.drop_bought)], np.int32)
        return RequestSettings(np.array([self.counts], np.int32), drops, self.counts, self.room)


def _quotas(*counts: int) -> Mapping[Source, int]:
    """Counts in the order of QUOTA_SOURCES."""
    return MappingProxyType(dict(zip(QUOTA_SOURCES, counts, strict=True)))


DEFAULT_RETRIEVAL: Mapping[Surface, SurfaceRetrieval] = MappingProxyType(
    {
        Surface.related: SurfaceRetrieval(_quotas(60, 80, 50, 60, 20, 0, 10)),
        Surface.gateway: SurfaceRetrieval(_quotas(0, 80, 50, 60, 60, 20, 10)),
    }
)


def settings_of(batch: Batch, context: Context) -> RequestSettings:
    """What the policies say of each request; few settings serve many requests."""
    surface, policy = batch.requests["surface"].tolist(), batch.requests["policy"].tolist()
    variant = batch.requests["variant"].tolist() if "variant" in batch.requests else [0] * len(surface)
    if len(surface) == 1:
        return _setting(context, policy[0], surface[0], variant[0]).alone
    known: dict[tuple[int, int, int], SurfaceRetrieval] = {}
    each = []
    for key in zip(policy, surface, variant, strict=True):
        if key not in known:
            known[key] = _setting(context, *key)
        each.append(known[key])
    return RequestSettings(
        np.array([one.counts for one in each], np.int32).reshape(-1, len(QUOTA_SOURCES)),
        np.array([(one.drop_seen, one.drop_bought) for one in each], np.int32).reshape(-1, 2),
        tuple(map(max, zip(*(one.counts for one in known.values()), strict=True))) or (0,) * len(QUOTA_SOURCES),
        sum(one.room for one in each),
    )


def _setting(context: Context, policy: int, surface: int, variant: int) -> SurfaceRetrieval:
    if 0 <= policy < len(context.policies):
        chosen: SurfaceRetrieval | None = context.policies[policy].retrieval(Surface(surface), variant)
        if chosen is not None:
            return chosen
    return DEFAULT_RETRIEVAL[Surface(surface)]
