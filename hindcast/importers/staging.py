"""An import is all or nothing: a whole data folder is built aside and renamed into place."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hindcast.importers.report import ImportReport
from serve_app.catalogue import Catalogue, write_catalogue
from serve_app.errors import InvalidInput, NotReady
from serve_app.log.compaction import watermark_rows
from serve_app.log.journal import living_writers
from serve_app.log.rows import fill
from serve_app.log.writer import LogWriter
from serve_app.policies import store_policy
from serve_app.policy.document import PolicyDocument

__all__ = ["REPORT_NAME", "Imported", "import_into"]

REPORT_NAME = "import.json"
_OUR_FOLDERS = {"catalogue", "log", "journal", "releases", "policies", "ledger", "world", "run"}


@dataclass(slots=True)
class Imported:
    """What an importer makes: catalogue, log tables by name, report, and the policies its decisions were logged under."""

    catalogue: Catalogue
    report: ImportReport
    log: dict[str, pa.RecordBatch] = field(default_factory=dict)
    policies: tuple[PolicyDocument, ...] = ()


def import_into(
    data: Path, load: Callable[[], Imported], *, replace: bool = False, progress: Callable[[str], None] = lambda _: None
) -> ImportReport:
    """Run `load`, write catalogue and log aside, and put them in place as data folder `data`.

    InvalidInput: `data` holds something and `replace` is false, or holds something that is not a data folder's. NotReady:
    a server writes into it. On any error `data` is as it was.
    """
    _check_target(data, replace=replace)
    began = time.monotonic()
    data.parent.mkdir(parents=True, exist_ok=True)
    aside = data.parent / f".{data.name}.import-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        progress("reading")
        imported = load()
        imported.report.check()
        progress("writing catalogue and log")
        _write(aside, imported)
        imported.report.seconds = round(time.monotonic() - began, 3)
        (aside / "log" / REPORT_NAME).write_text(imported.report.as_json())
        _put_in_place(aside, data)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return imported.report


def _check_target(data: Path, *, replace: bool) -> None:
    if not data.exists():
        return
    if not data.is_dir():
        raise InvalidInput(f"{data} is not a folder", field="--data")
    found = {one.name for one in data.iterdir()}
    if found and not replace:
        raise InvalidInput(
            f"{data} is not empty", field="--data", hint="name another folder, or pass --replace to lose its content"
        )
    if found - _OUR_FOLDERS:
        strange = ", ".join(sorted(found - _OUR_FOLDERS)[:3])
        raise InvalidInput(f"{data} holds {strange}: not a data folder, not replaced", field="--data")
    writers = living_writers(data)
    if writers:
        raise NotReady(f"{', '.join(writers)} is writing into {data}", field="--data", hint="stop the server first")


def _write(aside: Path, imported: Imported) -> None:
    catalogue, log, report = imported.catalogue, imported.log, imported.report
    write_catalogue(catalogue, aside / "catalogue")
    for policy in imported.policies:
        store_policy(aside, policy)
    log = {**log, **_dictionaries(catalogue)}
    tables = {name: pa.Table.from_batches([rows]) for name, rows in log.items()}
    source = f"import:{report.source}"
    marks = watermark_rows(tables, time.time_ns() // 1000, source, synthetic_clock=report.synthetic_clock)
    # One file a day: a shop's day is small, and many small files are slow to read.
    with LogWriter(aside, groups=1) as writer:
        for name, rows in [*log.items(), ("watermark", marks)]:
            report.written[f"log.{name}"] = writer.write(name, rows)
    for name in ("items", "users", "reviews", "widgets", "campaigns"):
        count = len(getattr(catalogue, name))
        if count:
            report.written[f"catalogue.{name}"] = count


def _dictionaries(catalogue: Catalogue) -> Mapping[str, pa.RecordBatch]:
    # "First seen" on one day, so that a dictionary is one file.
    def columns(table: pa.Table, key: str) -> dict[str, object]:
        known = table["created_at"].filter(pc.greater(table["created_at"], 0))
        first = pc.min(known).as_py() or 0
        return {"ts": np.full(len(table), first, np.int64), key: table[key], f"{key}_id": table[f"{key}_id"]}

    users, items = catalogue.users, catalogue.items
    return {
        "users": fill("users", len(users), columns(users, "user")),
        "items": fill("items", len(items), columns(items, "item")),
    }


def _put_in_place(aside: Path, data: Path) -> None:
    old = data.parent / f".{data.name}.replaced-{os.getpid()}"
    if data.exists():
        data.rename(old)
    try:
        aside.rename(data)
    except OSError:
        if old.exists():
            old.rename(data)
        raise
    shutil.rmtree(old, ignore_errors=True)
