"""A pack: a replay's own reading of one bucket group, kept, so that the next replay of the log need not read it all again.

A folder of Parquet files and ``pack.json``: opportunities in replay order, users' histories at the start, how many failed
deliveries each decision knew of, and events. It holds what any replay may ask for; what only the comparison with the server
needs (every gate's word) was compared when the pack was made, and the result of that comparison is in it. Bots are left out,
counted. Columns are read when they are used (`pack_lazy`), and stand narrow on disk (`pack_columns`): a decision with one
candidate and one head takes about 20 bytes.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.batch import Batch, lengths_to_offsets
from serve_app.columns import CANDIDATE_COLUMNS, REQUEST_COLUMNS
from serve_app.errors import DamagedArtifact
from serve_app.ledger.columns import HISTORY_DTYPE, Histories
from serve_app.log.places import region_indices, zone_indices
from serve_app.log.schema import TABLES
from serve_app.policy.zones import UNKNOWN_ZONE, zone_name
from serve_app.regions import UNKNOWN_REGION, region_name
from simulators.replay.opportunities import Opportunities
from simulators.replay.pack_columns import Decoder, encode
from simulators.replay.pack_files import read_encoded, write_encoded
from simulators.replay.pack_lazy import LazyArrays, LazyColumns
from simulators.replay.partition import Partition
from simulators.replay.rewards import EVENT_COLUMNS

__all__ = [
    "FORMAT", "ONLY_COMPARED", "PackedPartition", "event_columns", "pack_manifest", "pack_of", "read_pack", "users_columns",
]  # fmt: skip

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

FORMAT = 1
ONLY_COMPARED = ("value", "gate_outcome", "gate_reason", "used", "limit", "next_free_at")
"""Logged columns of candidates that a pack does not keep."""
_MANIFEST = "pack.json"
_LOGGED = "logged "
_PLACES: Mapping[str, tuple[int, Callable[[int], str], Callable[[pa.Array], npt.NDArray[np.int16]]]] = {
    "zone": (UNKNOWN_ZONE, zone_name, zone_indices),
    "region": (UNKNOWN_REGION, region_name, region_indices),
}


class PackedPartition(Partition):
    """A partition read from a pack. said: the pack's manifest. Events are read when they are asked for."""

    said: dict[str, Any]
    _tables: Mapping[str, Decoder]

    def __init__(
        self, asked: Opportunities, start: Histories, known_since: I64, tables: Mapping[str, Decoder], said: dict[str, Any]
    ) -> None:
        vars(self).update(asked=asked, start=start, known_since=known_since, _tables=tables, said=said)
        vars(self)["copies"] = said.get("copies", 0)

    @cached_property
    def events(self) -> pa.Table:  # a field there, made at its first use here
        """Of the same users, `EVENT_COLUMNS`."""
        return _events(self._tables["events"])

    @cached_property
    def known(self) -> I64:
        """i64[n]: how many of its user's failed deliveries each decision knew of."""
        return self._tables["requests"].column("known")

    def bots(self) -> U64:
        """None: they were left out when the pack was made."""
        return np.empty(0, np.uint64)

    def failed(self) -> tuple[U64, I64, U64, npt.NDArray[np.int16]]:
        """(user, at, request, slot) of each delivery that failed."""
        failed = self._tables["failures"]
        return failed.column("user"), failed.column("at"), failed.column("request"), failed.column("slot")


def pack_of(partition: Partition, known: I64, folder: Path, said: Mapping[str, Any]) -> None:
    """Write `partition`, without its bots, to `folder`, whole or not at all; replaces what is there. known: as
    `course.follow_log` returns. said: what the manifest is to say besides."""
    aside = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    asked = partition.asked
    requests, places = _requests(asked, known)
    counts = np.diff(asked.batch.offsets)
    if len(counts) and (counts != counts[0]).any():
        requests["candidates"] = counts.astype(np.int32)
    tables = {
        "requests": (requests, len(asked)),
        "candidates": (_candidates(asked), asked.batch.candidates.rows),
        "items": ({"hash": asked.item_hashes}, len(asked.item_hashes)),
        "users": (users_columns(partition), len(asked.users)),
        "history": (
            {name: partition.start.entries[name] for name in HISTORY_DTYPE.names or ()},
            len(partition.start.entries),
        ),
        "events": (event_columns(partition.events), len(partition.events)),
        "failures": _failures(partition),
    }
    written = {name: write_encoded(aside, name, encode(columns, rows)) for name, (columns, rows) in tables.items()}
    manifest = {
        "format": FORMAT,
        **said,
        "decisions": len(asked),
        "revisions": list(asked.revisions),
        "heads": list(asked.batch.meta["heads"]),
        "set_aside": asked.set_aside.tolist(),
        "candidates_each": int(counts[0]) if len(counts) and "candidates" not in requests else 0,
        "places": places,
        "scored": "heads" in asked.batch.candidates,
        "tables": written,
    }
    (aside / _MANIFEST).write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def pack_manifest(folder: Path) -> dict[str, Any]:
    """What a pack says of itself. Raises DamagedArtifact where it says nothing that can be read, or in another format."""
    try:
        said: dict[str, Any] = orjson.loads((folder / _MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedArtifact(f"no pack: {error}", field=str(folder), hint="delete the folder") from None
    if said.get("format") != FORMAT:
        raise DamagedArtifact(f"a pack of format {said.get('format')}", field=str(folder), hint="delete the folder")
    return said


def read_pack(folder: Path) -> PackedPartition:
    """Raises DamagedArtifact where a file is missing or is not what was written."""
    said = pack_manifest(folder)
    tables = {name: read_encoded(folder, name, one) for name, one in said["tables"].items()}
    requests, candidates, users = tables["requests"], tables["candidates"], tables["users"]
    counts = users.column("requests").astype(np.int64)
    offsets = lengths_to_offsets(
        requests.column("candidates") if "candidates" in requests else np.full(said["decisions"], said["candidates_each"])
    )
    luts = {name: _lut(name, said["places"][name]) for name in _PLACES}
    source: dict[str, Callable[[], Array]] = {
        name: partial(_placed, requests, name, luts.get(name)) for name in requests.names if name in REQUEST_COLUMNS
    }
    source["user"] = lambda: np.repeat(users.column("user"), counts)
    heads = said["heads"]
    of_candidates: dict[str, Callable[[], Array]] = {
        name: partial(candidates.column, name) for name in candidates.names if name in CANDIDATE_COLUMNS
    }
    if said["scored"]:
        of_candidates["heads"] = partial(_heads, candidates, len(heads))
    batch = Batch(
        LazyColumns(said["decisions"], REQUEST_COLUMNS, source),
        LazyColumns(candidates.rows, CANDIDATE_COLUMNS, of_candidates),
        offsets,
        {"heads": tuple(heads)},
    )
    logged: dict[str, Callable[[], Array]] = {"policy": lambda: batch.requests["policy"], **_logged(requests)}
    set_aside = np.array(said["set_aside"], np.int64)
    items = tables["items"].column("hash")
    asked = Opportunities(
        batch, tuple(said["revisions"]), items, LazyArrays(logged), LazyArrays(_logged(candidates)), set_aside, candidates
    )
    vars(asked).update(users=users.column("user"), begins=lengths_to_offsets(counts))
    start = Histories(_entries(tables["history"]), lengths_to_offsets(users.column("history")))
    return PackedPartition(asked, start, users.column("known_since"), tables, said)


def _requests(asked: Opportunities, known: I64) -> tuple[dict[str, Array], dict[str, list[str]]]:
    """Columns, and the names that zones and regions index: those of a batch index what this process knows."""
    columns = {name: values for name, values in asked.batch.requests.items() if name != "user"}
    places: dict[str, list[str]] = {}
    for name, (unknown, text_of, _) in _PLACES.items():
        distinct, codes = np.unique(columns[name], return_inverse=True)
        places[name] = [text_of(one) if one != unknown else "" for one in distinct.tolist()]
        columns[name] = codes.astype(np.int16)
    columns |= {_LOGGED + name: values for name, values in asked.logged.items() if name != "policy"}
    return {**columns, "known": known}, places


def _candidates(asked: Opportunities) -> dict[str, Array]:
    columns = {name: values for name, values in asked.batch.candidates.items() if name != "heads"}
    heads = asked.batch.candidates["heads"] if "heads" in asked.batch.candidates else np.empty((0, 0), np.float32)
    columns |= {f"head {place}": np.ascontiguousarray(heads[:, place]) for place in range(heads.shape[1])}
    return columns | {_LOGGED + name: one for name, one in asked.logged_candidates.items() if name not in ONLY_COMPARED}


def users_columns(partition: Partition) -> dict[str, Array]:
    """What a pack says of each user."""
    asked = partition.asked
    return {
        "user": asked.users,
        "requests": np.bincount(asked.owner, minlength=len(asked.users)).astype(np.uint32),
        "history": np.diff(partition.start.offsets).astype(np.uint32),
        "known_since": partition.known_since,
    }


def _failures(partition: Partition) -> tuple[dict[str, Array], int]:
    user, at, request, slot = partition.failed()
    return {"user": user, "at": at, "request": request, "slot": slot}, len(user)


def event_columns(events: pa.Table) -> dict[str, Array]:
    """Events as a pack has them: nulls as zeros, told apart by a column of their own."""
    out: dict[str, Array] = {}
    for name in EVENT_COLUMNS:
        column = events[name].combine_chunks()
        known = pc.is_valid(column).to_numpy(zero_copy_only=False)
        out[name] = (
            column.fill_null(0).to_numpy(zero_copy_only=False)
            if column.null_count
            else column.to_numpy(zero_copy_only=False)
        )
        if TABLES["events"].field(name).nullable:
            out[f"{name} known"] = known
    return out


def _events(table: Decoder) -> pa.Table:
    schema = pa.schema([TABLES["events"].field(name).remove_metadata() for name in EVENT_COLUMNS])
    arrays = []
    for one in schema:
        unknown = ~table.column(f"{one.name} known") if one.nullable else None
        arrays.append(pa.array(table.column(one.name), one.type, mask=unknown))
    return pa.table(arrays, schema=schema)


def _entries(table: Decoder) -> npt.NDArray[np.void]:
    out = np.zeros(table.rows, HISTORY_DTYPE)
    for name in HISTORY_DTYPE.names or ():
        out[name] = table.column(name)
    return out


def _logged(table: Decoder) -> dict[str, Callable[[], Array]]:
    return {name.removeprefix(_LOGGED): partial(table.column, name) for name in table.names if name.startswith(_LOGGED)}


def _heads(candidates: Decoder, width: int) -> Array:
    if width == 1:
        return candidates.column("head 0").reshape(-1, 1)
    return np.stack([candidates.column(f"head {place}") for place in range(width)], axis=1)


def _lut(name: str, texts: list[str]) -> npt.NDArray[np.int16]:
    return _PLACES[name][2](pa.array(texts, pa.string()))


def _placed(requests: Decoder, name: str, lut: npt.NDArray[np.int16] | None) -> Array:
    values = requests.column(name)
    return values if lut is None else lut[values]
