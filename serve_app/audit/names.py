"""Text ids behind hashes, as far as somebody knows them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.errors import HindcastError
from serve_app.ids import hash_id
from serve_app.log.reader import read_log
from serve_app.policies import read_policy
from serve_app.policy.document import PolicyDocument

if TYPE_CHECKING:
    from serve_app.serving.library import Edition

__all__ = ["EditionNames", "FolderNames", "Names"]


class Names(Protocol):
    """Where explanations take names from."""

    def campaign(self, hashed: int) -> str:
        """A campaign's id; "#" and the hash where it is not known."""

    def item(self, hashed: int) -> str | None:
        """An item's id; None for none."""

    def of_policy(self, revision: str | None) -> dict[int, str]:
        """Hash -> id of the experiments and holdouts of a policy."""

    def arms(self, revision: str | None) -> dict[str, tuple[str, ...]]:
        """Experiment id -> ids of its arms; empty where the policy is not known."""


def _unknown(hashed: int) -> str:
    return f"#{hashed:016x}"


def _trial_names(document: PolicyDocument) -> dict[int, str]:
    ids = [*(one.id for one in document.experiments), *(one.id for one in document.holdouts)]
    return {hash_id(one): one for one in ids}


def _arms(document: PolicyDocument) -> dict[str, tuple[str, ...]]:
    return {one.id: tuple(arm.id for arm in one.arms) for one in document.experiments}


class EditionNames:
    """What a serving process knows."""

    def __init__(self, edition: Edition) -> None:
        self._view, self._policy = edition.view, edition.policy
        self._campaigns = dict(zip(edition.campaigns.campaign.tolist(), edition.campaigns.ids, strict=True))

    def campaign(self, hashed: int) -> str:
        """See Names."""
        return self._campaigns.get(hashed, _unknown(hashed))

    def item(self, hashed: int) -> str | None:
        """See Names."""
        if not hashed:
            return None
        row = self._view.rows_of(np.array([hashed], np.uint64))
        return self._view.ids_of(row)[0] if row[0] >= 0 else _unknown(hashed)

    def of_policy(self, revision: str | None) -> dict[int, str]:
        """See Names."""
        if revision is not None and revision != self._policy.revision:
            return {}
        return _trial_names(self._policy.document)

    def arms(self, revision: str | None) -> dict[str, tuple[str, ...]]:
        """See Names."""
        return _arms(self._policy.document) if revision in (None, self._policy.revision) else {}


class FolderNames:
    """What a data folder knows: its catalogue, its log's dictionaries, its policies. `campaigns`: ids known besides."""

    def __init__(self, data: Path, campaigns: tuple[str, ...] = ()) -> None:
        self._data, self._more = data, campaigns

    def campaign(self, hashed: int) -> str:
        """See Names."""
        return self._campaigns.get(hashed, _unknown(hashed))

    def item(self, hashed: int) -> str | None:
        """See Names."""
        if not hashed:
            return None
        found = pc.index(self._items["item"], pa.scalar(hashed, pa.uint64())).as_py()
        return str(self._items["item_id"][found].as_py()) if found >= 0 else _unknown(hashed)

    def of_policy(self, revision: str | None) -> dict[int, str]:
        """See Names."""
        document = self._document(revision)
        return _trial_names(document) if document else {}

    def arms(self, revision: str | None) -> dict[str, tuple[str, ...]]:
        """See Names."""
        document = self._document(revision)
        return _arms(document) if document else {}

    def _document(self, revision: str | None) -> PolicyDocument | None:
        try:
            return read_policy(self._data, revision) if revision else None
        except HindcastError:  # a policy of elsewhere, or of a log that came without its policies
            return None

    @cached_property
    def _campaigns(self) -> dict[int, str]:
        listed = self._column("campaigns", ["campaign_id"])["campaign_id"].to_pylist()
        return {hash_id(one): one for one in (*listed, *self._more)}

    @cached_property
    def _items(self) -> pa.Table:
        parts = [self._column("items", ["item", "item_id"]), read_log(self._data, "items", columns=["item", "item_id"])]
        bare = pa.schema([("item", pa.uint64()), ("item_id", pa.string())])
        return pa.concat_tables([one.replace_schema_metadata(None).cast(bare) for one in parts])

    def _column(self, table: str, columns: list[str]) -> pa.Table:
        path = self._data / "catalogue" / f"{table}.parquet"
        if not path.exists():
            return pa.table({name: pa.array([], pa.uint64() if name == "item" else pa.string()) for name in columns})
        return pq.read_table(path, columns=columns, partitioning=None)
