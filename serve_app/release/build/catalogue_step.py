"""Step `catalogue`: the tables a release keeps, in row order, with the users that only the log knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from serve_app.catalogue import Catalogue, read_catalogue, table_of, write_catalogue
from serve_app.errors import InvalidInput
from serve_app.log.reader import read_log
from serve_app.release.rows import CatalogueRows, in_row_order

__all__ = ["load_rows", "prepare_catalogue"]


def prepare_catalogue(data: Path, folder: Path) -> None:
    """Write `folder`/catalogue and the hashes by row beside it. InvalidInput when there is no item to recommend."""
    catalogue = read_catalogue(data / "catalogue")
    if len(catalogue.items) == 0:
        raise InvalidInput(
            "the catalogue has no items: there is nothing to recommend",
            field="catalogue.items",
            hint="import one (`hindcast import`) or generate a world (`hindcast world`)",
        )
    users = _with_logged_users(catalogue.users, read_log(data, "users", columns=["user", "user_id", "ts"]))
    ordered = in_row_order(Catalogue(catalogue.items, users, catalogue.reviews, catalogue.widgets, catalogue.campaigns))
    write_catalogue(ordered, folder / "catalogue")
    np.save(folder / "item_hashes.npy", ordered.items["item"].to_numpy(), allow_pickle=False)
    np.save(folder / "user_hashes.npy", ordered.users["user"].to_numpy(), allow_pickle=False)


def _with_logged_users(known: pa.Table, logged: pa.Table) -> pa.Table:
    """The catalogue's users, then those only the log names, with nothing known but when they were first seen."""
    hashes, first = np.unique(logged["user"].to_numpy(), return_index=True)
    new = first[~np.isin(hashes, known["user"].to_numpy()) & (hashes != 0)]
    rows = logged.take(pa.array(new))
    nothing = [""] * len(new)
    ids = rows["user_id"].to_pylist()
    added = table_of("users", {"user_id": ids, "zone": nothing, "region": nothing, "created_at": rows["ts"].to_numpy()})
    return pa.concat_tables([known, added])


def load_rows(folder: Path) -> CatalogueRows:
    """What `prepare_catalogue` wrote."""
    return CatalogueRows.load(folder / "catalogue")
