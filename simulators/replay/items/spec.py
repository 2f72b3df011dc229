"""What a replay of lists is asked to do, as plain values that travel to workers and name its result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import orjson

from serve_app.errors import InvalidInput
from serve_app.log.fingerprint import code_version, fingerprint
from serve_app.policy.compile import CompiledPolicy, compile_policy
from serve_app.policy.document import parse_policy
from serve_app.vocabulary import Surface
from simulators.replay.spec import Target

__all__ = ["LIST_SURFACES", "METRICS", "ListsSpec", "compiled_for", "surfaces_named"]

LIST_SURFACES = (Surface.related, Surface.gateway, Surface.widgets, Surface.reviews)
METRICS = ("clicks", "carts", "conversions", "revenue")


@dataclass(frozen=True, slots=True)
class ListsSpec:
    """data: the data folder. surfaces: names of LIST_SURFACES. targets, behaviour: as in `ReplaySpec`. start, end: the
    window that counts, microseconds UTC. attribution_us: how long after a list an event counts for its slot; lists younger
    than that at log_end are left out of estimates. segments: only users in one of these at decision time count; none:
    everybody.
    release: version of the release whose models score anew; empty: the logged scores. retrieval: the candidates, too, are
    found anew by that release. drawings: how often each list is drawn for marginals; 0: no IIPS."""

    data: str
    surfaces: tuple[str, ...]
    targets: tuple[Target, ...]
    behaviour: tuple[Target, ...]
    start: int
    end: int
    attribution_us: int = 86_400_000_000
    log_end: int = 2**62
    segments: tuple[str, ...] = ()
    release: str = ""
    retrieval: bool = False
    drawings: int = 0

    def digest(self, files: Sequence[str]) -> str:
        """Names a result: equal inputs, equal code, equal digest. files: the log's files that are read."""
        said = {**asdict(self), "data": "", "files": sorted(files), "code": code_version(), "fingerprint": fingerprint()}
        return hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest()[:20]


def surfaces_named(names: Sequence[str]) -> tuple[bool, tuple[str, ...]]:
    """(whether notifications are meant, the list surfaces meant) by the words of `--surface`; none: notifications alone.
    InvalidInput names what is no surface."""
    known = [one.name for one in Surface]
    for name in names:
        if name not in (*known, "all"):
            raise InvalidInput(f"no surface {name!r}", field="surface", hint=f"one of {', '.join(known)}, all")
    every = "all" in names
    lists = tuple(one.name for one in LIST_SURFACES if every or one.name in names)
    return every or not names or Surface.notification.name in names, lists


def compiled_for(target: Target, surface: str, heads: Sequence[str]) -> CompiledPolicy:
    """A policy compiled for one surface's heads. InvalidInput where it weighs a head that is not among them."""
    document = parse_policy(orjson.loads(target.document), name=target.name)
    try:
        return compile_policy(document, heads={surface: tuple(heads)})
    except InvalidInput as error:
        hint = f"{error.hint}; a head that was not logged can be scored with --release, by a release that has it"
        raise InvalidInput(f"policy {target.name}: {error.message}", field=error.field, hint=hint) from None
