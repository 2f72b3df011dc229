"""Where a population comes from: the catalogue's users, the ledger's user state, and everybody who ever did anything.

The ledger's word on zone and region replaces the catalogue's, as it does for a request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.catalogue import SCHEMAS
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.ids import hash_id
from serve_app.ledger.columns import LedgerView, UserState
from serve_app.ledger.protocol import Ledger
from serve_app.policy.zones import zone_name
from serve_app.regions import region_name
from serve_app.segments.events import DayEvents, EventHistory
from serve_app.segments.population import Population, Text
from serve_app.vocabulary import Channel

__all__ = ["LedgerStates", "load_history", "load_population", "read_states"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_ITEM_CHANGE = "item"
_STATE_COLUMNS = ("zone", "region", "consent_ad_at", "consent_night_at", "customer_until", "reachable", "opted_out")


@dataclass(frozen=True, slots=True)
class LedgerStates:
    """Users the ledger knows (sorted) with their state, and the categories of items stored since the catalogue."""

    users: U64
    state: UserState
    item_categories: Mapping[int, str]


def read_states(ledger: Ledger) -> LedgerStates:
    """All of a ledger's user states."""
    views: list[LedgerView] = list(ledger.snapshot(0, 100_000))
    users = np.concatenate([np.empty(0, np.uint64), *(one.users for one in views)])
    unknown = UserState.unknown(0)
    columns = [
        np.concatenate([getattr(unknown, name), *(getattr(one.state, name) for one in views)]) for name in _STATE_COLUMNS
    ]
    order = np.argsort(users)
    categories: dict[int, str] = {}
    after = 0
    while page := ledger.catalogue_changes(after):
        after = page[-1].seq
        for change in page:
            if change.kind == _ITEM_CHANGE:
                said = orjson.loads(change.payload)
                if said.get("category"):
                    categories[hash_id(said["item"])] = said["category"]
    return LedgerStates(users[order], UserState(*(one[order] for one in columns)), categories)


def load_population(
    data: Path, days: Sequence[tuple[int, DayEvents]], ledger: LedgerStates | None, as_of: int
) -> Population:
    """Everybody known to the catalogue, the ledger or the events. Without a ledger there are no flags."""
    table = _catalogue(data, "users", ("user", "zone", "region", "created_at"))
    listed: U64 = table["user"].to_numpy()
    users = np.unique(listed if ledger is None else np.concatenate([listed, ledger.users]))
    missing = [_missing(users, one.users) for _, one in days]
    users = np.union1d(users, np.concatenate([np.empty(0, np.uint64), *missing]))
    row = np.searchsorted(users, listed)
    created = np.zeros(len(users), np.int64)
    created[row] = table["created_at"].to_numpy()
    regions = pc.utf8_upper(table["region"])  # segments and the ledger spell them in capitals
    texts = {"zone": _texts(table["zone"], row, len(users)), "region": _texts(regions, row, len(users))}
    if ledger is None:
        return Population(users, texts, {}, created)
    place = np.searchsorted(users, ledger.users)
    texts["zone"] = _overlaid(texts["zone"], place, ledger.state.zone, zone_name)
    texts["region"] = _overlaid(texts["region"], place, ledger.state.region, region_name)
    return Population(users, texts, _flags(ledger.state, place, len(users), as_of), created)


def load_history(data: Path, users: U64, days: Sequence[tuple[int, DayEvents]], ledger: LedgerStates | None) -> EventHistory:
    """The events over `users`, with the categories of the catalogue's items and of items stored since."""
    table = _catalogue(data, "items", ("item", "category"))
    items: U64 = table["item"].to_numpy()
    order = np.argsort(items)
    items, names = items[order], table["category"].take(pa.array(order))
    if ledger is not None:
        new = {item: name for item, name in ledger.item_categories.items() if not _has(items, item)}
        items = np.concatenate([items, np.fromiter(new, np.uint64, len(new))])
        names = pa.chunked_array([*names.chunks, pa.array(list(new.values()), pa.string())])
        order = np.argsort(items)
        items, names = items[order], names.take(pa.array(order))
    column = _texts(names, np.arange(len(items)), len(items))
    return EventHistory(users, days, items, column.codes, column.names)


def _has(items: U64, item: int) -> bool:
    place = int(np.searchsorted(items, np.uint64(item)))
    return place < len(items) and int(items[place]) == item


def _catalogue(data: Path, name: str, columns: Sequence[str]) -> pa.Table:
    """Columns of one catalogue table; validated when it was written, so only its schema is checked here."""
    path = data / "catalogue" / f"{name}.parquet"
    if not path.is_file():
        if name == "items" or not path.parent.is_dir():
            hint = "run `hindcast world` or `hindcast import`"
            raise InvalidInput(f"{data} holds no catalogue", field="catalogue", hint=hint)
        return SCHEMAS[name].empty_table().select(columns)
    try:
        table = pq.read_table(path, columns=list(columns), partitioning=None)
        return table.cast(pa.schema([SCHEMAS[name].field(one) for one in columns]))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DamagedArtifact(f"{path} is not readable: {error}", field=name, hint="restore or rebuild it") from error


def _missing(users: U64, others: U64) -> U64:
    """Those of `others` (sorted) that `users` (sorted) lacks."""
    if len(users) == 0:
        return others
    place = np.minimum(np.searchsorted(users, others), len(users) - 1)
    return others[users[place] != others]


def _texts(column: pa.ChunkedArray, row: I64, rows: int) -> Text:
    """A text column spread to `row` of n rows; names sorted, empty ones unknown."""
    encoded = column.combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    names = tuple(sorted(filter(None, texts)))
    number = {name: at for at, name in enumerate(names)}
    translate = np.array([number[one] if one else -1 for one in texts], np.int32)
    codes = np.full(rows, -1, np.int32)
    if len(texts):
        codes[row] = translate[encoded.indices.to_numpy(zero_copy_only=False)]
    return Text(codes, names)


def _overlaid(column: Text, place: I64, stored: npt.NDArray[np.int16], name_of: Callable[[int], str]) -> Text:
    """The column with the ledger's values where it has one (index >= 0)."""
    known = stored >= 0
    numbers, inverse = np.unique(stored[known], return_inverse=True)
    said = [name_of(int(one)) for one in numbers]
    names = tuple(sorted({*column.names, *said}))
    number = {name: at for at, name in enumerate(names)}
    translate = np.array([*(number[one] for one in column.names), -1], np.int32)
    codes = translate[column.codes]
    if len(said):
        codes[place[known]] = np.array([number[one] for one in said], np.int32)[inverse]
    return Text(codes, names)


def _flags(state: UserState, place: I64, rows: int, as_of: int) -> dict[str, npt.NDArray[np.bool_]]:
    columns = {
        "consent_ad": state.consent_ad_at != 0,
        "consent_night": state.consent_night_at != 0,
        "customer": state.customer_until > as_of,
    }
    for channel in Channel:
        columns[f"reachable_{channel.name}"] = (state.reachable >> channel & 1).astype(np.bool_)
        columns[f"opted_out_{channel.name}"] = (state.opted_out >> channel & 1).astype(np.bool_)
    flags = {}
    for name, values in columns.items():
        flags[name] = np.zeros(rows, np.bool_)
        flags[name][place] = values
    return flags
