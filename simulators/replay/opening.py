"""Opening one bucket group for a replay: from its pack, or from the log, then compared with the server and packed."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from serve_app.errors import DamagedArtifact
from serve_app.log.erasure import load_erased
from serve_app.log.fingerprint import code_version, fingerprint
from serve_app.log.reader import BucketGroup
from serve_app.policy.compile import CompiledPolicy
from serve_app.release.manifest import write_text_atomically
from simulators.replay.beginnings import of_unsure_users
from simulators.replay.course import Course, follow_log
from simulators.replay.opportunities import Opportunities
from simulators.replay.pack import pack_of, read_pack
from simulators.replay.pack_shelf import SOURCE_ITSELF, pack_path, remove_stale, source_of
from simulators.replay.parity import Mismatch, Parity, ParityCheck
from simulators.replay.partition import Partition, read_partition
from simulators.replay.spec import ReplaySpec, compiled
from simulators.replay.stream import stream_log

__all__ = ["Opened", "behaviour_of", "opened"]

I64 = npt.NDArray[np.int64]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """people: the group's users but its bots, and known i64[n], how many of its user's failed deliveries each decision knew
    of. requests: decisions of bots, too. bots: users, and decisions of theirs. parity: of all decisions. set_aside: see
    `Opportunities`."""

    people: Partition
    known: I64
    requests: int
    bots: tuple[int, int]
    set_aside: I64
    heads: tuple[str, ...]
    parity: Parity = field(default_factory=Parity)


def behaviour_of(asked: Opportunities, spec: ReplaySpec) -> list[CompiledPolicy]:
    """The policies of `asked.revisions`, for the heads that were logged."""
    documents = {one.name: one for one in spec.behaviour}
    return [compiled(documents[revision], _heads(asked, spec)) for revision in asked.revisions]


def opened(group: BucketGroup, spec: ReplaySpec, shelf: Path | None = None) -> Opened:
    """shelf: the folder of packs; None reads the log. A damaged pack is made anew, unless the log is packs alone
    (DamagedArtifact)."""
    if shelf is None:
        return _compared(group, spec)
    if not group.files:
        return _from_pack(pack_path(shelf, group, SOURCE_ITSELF), spec)
    source = source_of(Path(spec.data), group)
    path = pack_path(shelf, group, source, spec.start)
    if path.is_dir():
        try:
            return _from_pack(path, spec)
        except DamagedArtifact as error:
            _LOG.warning("a pack is made anew: %s", error)
    erasures = load_erased(spec.data).lines
    read = _compared(group, spec)
    _keep(read, path, shelf, group, source, erasures)
    return read


def _compared(group: BucketGroup, spec: ReplaySpec) -> Opened:
    """Read from the log, every column of every decision compared with what the serving core decides."""
    whole = read_partition(group, start_at=spec.start)
    check, unsure = ParityCheck(whole.asked), None
    known = np.empty(0, np.int64)
    if len(whole.asked):
        behaviour = behaviour_of(whole.asked, spec)
        known = follow_log(whole.asked, Course(whole.asked, behaviour, whole.start, whole.failures()), check)
        unsure = of_unsure_users(whole, [one.longest_window_us for one in behaviour])
    bots = whole.bots()
    people, known = whole.without(bots), known[~np.isin(whole.asked.batch.requests["user"], bots)]
    left_out = len(bots), len(whole.asked) - len(people.asked)
    return Opened(
        people,
        known,
        len(whole.asked),
        left_out,
        whole.asked.set_aside,
        _heads(whole.asked, spec),
        check.result(unsure),
    )


def _heads(asked: Opportunities, spec: ReplaySpec) -> tuple[str, ...]:
    return tuple(asked.batch.meta["heads"]) or spec.heads


def _keep(read: Opened, path: Path, shelf: Path, group: BucketGroup, source: str, erasures: int) -> None:
    """Remove what is in the way of a pack, and pack what was read from the log: in this order, so that nothing half-made
    outlives whoever is killed between the two."""
    said: dict[str, Any] = {
        "low": group.low,
        "high": group.high,
        "source": source,
        "erasures": erasures,
        "requests": read.requests,
        "bots": list(read.bots),
        "copies": read.people.copies,
        "parity": asdict(read.parity),
    }
    shelf.mkdir(parents=True, exist_ok=True)
    remove_stale(shelf, group, source)
    pack_of(read.people, read.known, path, said)


def _from_pack(path: Path, spec: ReplaySpec) -> Opened:
    people = read_pack(path)
    said = people.said
    return Opened(
        people, people.known, said["requests"], (said["bots"][0], said["bots"][1]), people.asked.set_aside,
        _heads(people.asked, spec), _parity_of(said["parity"]) if said["parity"] else _compared_once(path, people, spec),
    )  # fmt: skip


def _parity_of(said: Mapping[str, Any]) -> Parity:
    plain = dict(said)
    examples = [Mismatch(**one) for one in plain.pop("examples")]
    return Parity(**plain, examples=examples)


def _compared_once(path: Path, people: Partition, spec: ReplaySpec) -> Parity:
    """Of a pack that is the log itself: nothing was compared when it was made. Kept beside it for this version of the
    code."""
    kept, version = path / "compared.json", {"code": code_version(), "fingerprint": fingerprint()}
    if kept.is_file():
        said = orjson.loads(kept.read_bytes())
        if said["version"] == version:
            return _parity_of(said["parity"])
    check = ParityCheck(people.asked)
    if len(people.asked):
        told, _ = stream_log(people.asked, behaviour_of(people.asked, spec), people.start, people.failures())
        check.take(told)
    parity = check.result()
    if os.access(path, os.W_OK):
        write_text_atomically(kept, orjson.dumps({"version": version, "parity": asdict(parity)}).decode())
    return parity
