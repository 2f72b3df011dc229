"""A log in a store: what it holds, said by one small file, and which folder may be pushed there or pulled into.

::

    URL/log.json                      what is listed below; it is written last, so a reader sees one state or the next
    URL/parts/<table>/day=.../part-*  Parquet files of the log, under the names they have in DATA/log; they never change
    URL/beside/<sha256>               what replays and builds read beside them: catalogue, policies, erasures

``DATA/log/shared.json`` gives a log its identity once it is pushed, and says of a copy where it came from. A copy is read
only: once something else wrote to it, nothing is pulled into it any more.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.log.journal import journal_files
from serve_app.log.migrations import READABLE
from serve_app.log.schema import TABLES
from serve_app.log.snapshot import LogFile, Snapshot, load_snapshot, log_folder
from serve_app.release.manifest import FileEntry, write_text_atomically
from serve_app.stores import Content, Store

__all__ = ["Beside", "SharedFile", "SharedLog", "beside_files", "copied_from", "identity", "may_be_pulled", "read_shared"]

NAME, PARTS, BESIDE = "log.json", "parts", "beside"
_LOCAL = "shared.json"
_PART = re.compile(r"(\w+)/day=\d{4}-\d\d-\d\d/buckets=\d{4}-\d{4}/part-[0-9a-f]{32}\.parquet")
_BESIDE = re.compile(r"catalogue/\w+\.parquet|policies/[0-9a-f]{20}\.json|world/behaviour\.json|log/erased\.jsonl")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATTERNS = ("catalogue/*.parquet", "policies/*.json", "world/behaviour.json", "log/erased.jsonl")


def _part(path: str) -> str:
    found = _PART.fullmatch(path)
    if found is None or found[1] not in TABLES:
        raise ValueError("is no file of a log")
    return path


def _beside(path: str) -> str:
    if not _BESIDE.fullmatch(path):
        raise ValueError("is nothing that lies beside a log")
    return path


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Held(FileEntry):
    @property
    def content(self) -> Content:
        """What the file holds."""
        return Content(self.bytes, self.sha256)


class SharedFile(_Held):
    """One Parquet file: see `serve_app.log.snapshot.LogFile`, and what it holds."""

    table: str
    path: Annotated[str, AfterValidator(_part)]
    day: str
    low: int
    high: int
    rows: int

    def listed(self) -> LogFile:
        """As a snapshot lists it."""
        return LogFile(self.table, self.path, self.day, self.low, self.high, self.rows)


class Beside(_Held):
    """One other file of the data folder, by its path there."""

    path: Annotated[str, AfterValidator(_beside)]


class SharedLog(_Strict):
    """One state of a log in a store. log: its identity; sequence, erased: see `Snapshot`."""

    format: Literal[1] = 1
    schema_version: int
    log: str
    sequence: int
    erased: int
    files: tuple[SharedFile, ...]
    beside: tuple[Beside, ...]

    def names(self) -> dict[str, Content]:
        """What the store holds, by its name there."""
        return {f"{PARTS}/{one.path}": one.content for one in self.files} | {
            f"{BESIDE}/{one.sha256}": one.content for one in self.beside
        }


def ours(name: str) -> bool:
    """Whether a file of this name in the store is, or was, part of a log."""
    folder, _, rest = name.partition("/")
    return bool(_PART.fullmatch(rest) if folder == PARTS else folder == BESIDE and _SHA256.fullmatch(rest))


def read_shared(store: Store) -> SharedLog | None:
    """What the store holds; None: no log. DamagedArtifact: it cannot be read, or is of a schema this code does not know."""
    content = store.read(NAME)
    if content is None:
        return None
    try:
        shared = SharedLog.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(one) for one in first["loc"])
        raise DamagedArtifact(
            f"it does not describe a log: {where}: {first['msg']}", field=f"{store.url}/{NAME}", hint="push the log again"
        ) from None
    if shared.schema_version not in READABLE:
        raise DamagedArtifact(
            f"the log has schema version {shared.schema_version}, this code reads {READABLE[0]} to {READABLE[-1]}",
            field=store.url,
            hint="use the version of hindcast that pushed it",
        )
    return shared


class _Copy(_Strict):
    """Where a copy came from, its state, and the one before: of which of the two the snapshot is, only its file says."""

    url: str
    sequence: int
    before: int


class _Local(_Strict):
    log: str
    copy_of: _Copy | None = None


def _read_local(data: Path) -> _Local | None:
    path = log_folder(data) / _LOCAL
    try:
        return _Local.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        message = f"it does not say which log this is: {error.errors()[0]['msg']}"
        raise DamagedArtifact(
            message, field=str(path), hint="delete it; then push to, or pull into, an empty folder"
        ) from None


def identity(data: Path) -> str:
    """Names this log, whatever its folder is called; given when it is first asked for."""
    local = _read_local(data)
    if local is None:
        local = _Local(log=uuid.uuid4().hex)
        write_text_atomically(log_folder(data) / _LOCAL, local.model_dump_json())
    return local.log


def copied_from(data: Path, url: str, shared: SharedLog, before: int) -> None:
    """Say that DATA/log is, or will be in a moment, this state of the log at `url`. before: the sequence it has now."""
    copy = _Copy(url=url, sequence=shared.sequence, before=before)
    write_text_atomically(log_folder(data) / _LOCAL, _Local(log=shared.log, copy_of=copy).model_dump_json())


def may_be_pulled(data: Path, shared: SharedLog) -> Snapshot:
    """What DATA/log holds now: nothing, or an older state of this log that nobody wrote to. Else InvalidInput."""
    snapshot, local, journalled = load_snapshot(data), _read_local(data), journal_files(data)
    copy = local.copy_of if local is not None else None
    if local is None and snapshot.sequence == 0 and not journalled:
        return snapshot
    if local is None or copy is None:
        said = "it holds a log of its own"
    elif local.log != shared.log:
        said = "it holds a copy of another log"
    elif snapshot.sequence not in (copy.sequence, copy.before) or journalled:
        said = "its copy was written to since it was pulled"
    elif shared.sequence < snapshot.sequence:
        said = "it holds a newer state of this log"
    else:
        return snapshot
    raise InvalidInput(said, field=str(data), hint="pull into an empty folder")


def beside_files(data: Path) -> list[str]:
    """Paths within DATA of what there is beside the log."""
    found = {path.relative_to(data).as_posix() for pattern in _PATTERNS for path in data.glob(pattern)}
    return sorted(path for path in found if _BESIDE.fullmatch(path))
