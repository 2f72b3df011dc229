"""`hindcast world`: build a world, live its days, leave catalogue, log and truth in a data folder, all or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from serve_app.catalogue import SCHEMAS, write_catalogue
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.log.snapshot import LogFile, commit, load_snapshot, log_folder
from serve_app.log.writer import LogWriter
from serve_app.policies import store_policy
from serve_app.policy.document import PolicyDocument, canonical_json, load_policy, parse_policy
from simulators.world.driver import Day, Run, World, world_policy
from simulators.world.record import Recorder
from simulators.world.settings import DAY_US, WorldSettings
from simulators.world.shelf import catalogue_of
from simulators.world.truth import write_day_truth, write_latent

__all__ = ["BEHAVIOUR", "publish", "read_world", "refuse_unless_free"]

BEHAVIOUR = Path(__file__).with_name("behaviour.yaml")
_KNOWN = {"catalogue", "log", "world", "journal", "releases", "policies", "ledger", "run"}
_SNAPSHOT_EVERY = 7  # days
_GROUPS = 4


def refuse_unless_free(data: Path, *, replace: bool) -> None:
    """InvalidInput when `data` holds anything, unless it may be replaced and is a data folder of Hindcast."""
    found = sorted(one.name for one in data.iterdir()) if data.is_dir() else []
    if data.exists() and not data.is_dir():
        raise InvalidInput(f"{data} is not a folder", field="data")
    if found and not replace:
        raise InvalidInput(f"{data} is not empty", field="data", hint="choose another folder, or pass --replace")
    strangers = [name for name in found if name not in _KNOWN]
    if strangers:
        hint = "choose another folder; only a data folder of hindcast is replaced"
        raise InvalidInput(f"{data} holds {strangers[0]!r}, which is none of ours", field="data", hint=hint)


def publish(
    settings: WorldSettings,
    data: Path,
    *,
    policy: PolicyDocument | None = None,
    replace: bool = False,
    code_version: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Write the world to `data`; returns rows by log table. The folder appears at once, when all of it is written.

    With `replace` everything in the folder goes: releases and ledgers of another world would not fit this one.
    progress(days done, days) is called from this thread. Raises InvalidInput for a folder that is not free.
    """
    refuse_unless_free(data, replace=replace)
    data.parent.mkdir(parents=True, exist_ok=True)
    aside = data.with_name(f".{data.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        rows = _write_world(settings, policy or load_policy(BEHAVIOUR), aside, code_version, progress)
        old = data.with_name(f".{data.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if data.exists():
            data.rename(old)
        aside.rename(data)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return rows


def read_world(data: Path) -> tuple[World, PolicyDocument]:
    """The world whose truth lies in `data`/world, built anew from its settings, and the policy its log was written under.

    Raises InvalidInput where there is none, DamagedArtifact where its files cannot be read.
    """
    folder = data / "world"
    if not (folder / "world.json").is_file():
        raise InvalidInput(f"{data} holds no world", field="world", hint="run `hindcast world`")
    try:
        body = json.loads((folder / "world.json").read_text())
        settings = WorldSettings.model_validate(body["settings"])
        document = parse_policy(json.loads((folder / "behaviour.json").read_text()), name="behaviour.json")
    except (OSError, ValueError, KeyError, InvalidInput) as error:
        raise DamagedArtifact(f"{folder / 'world.json'}: {error}", field="world", hint="make the world again") from error
    return World(settings), document


def _write_world(
    settings: WorldSettings,
    document: PolicyDocument,
    data: Path,
    code_version: str,
    progress: Callable[[int, int], None] | None,
) -> dict[str, int]:
    world = World(settings)
    policy = world_policy(document)
    truth = data / "world"
    write_catalogue(catalogue_of(world.model), data / "catalogue")
    write_latent(world.model, truth)
    run = world.start(policy)
    with LogWriter(data, groups=_GROUPS) as writer:
        recorder = Recorder(world.model, policy, writer, code_version)
        recorder.dictionaries(world.environment(policy))
        _live(run, recorder, truth, progress)
        recorder.finish()
    _name_by_content(data)
    rows: dict[str, int] = {}
    for one in load_snapshot(data).files:
        rows[one.table] = rows.get(one.table, 0) + one.rows
    body = {
        "settings": settings.model_dump(mode="json"),
        "policy_revision": policy.revision,
        "rows": rows,
        "tables": sorted(SCHEMAS),
    }
    (truth / "world.json").write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")
    (truth / "behaviour.json").write_bytes(canonical_json(document))
    store_policy(data, document)  # not promoted: what decided the log, for audits and replays
    return rows


def _live(run: Run, recorder: Recorder, truth: Path, progress: Callable[[int, int], None] | None) -> None:
    """Days are lived here and written by one other thread, at most one day behind."""
    settings = run.model.settings

    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = None
        for number in range(settings.days):
            as_of = settings.start_us + number * DAY_US
            views = list(run.ledger.snapshot(as_of)) if number % _SNAPSHOT_EVERY == 0 else []
            day: Day = run.step()
            write_day_truth(run.model, day, truth)
            if pending is not None:
                pending.result()
            recorder.snapshot(views, as_of)
            pending = pool.submit(recorder.day, day)
            if progress is not None:
                progress(number + 1, settings.days)
        if pending is not None:
            pending.result()


def _name_by_content(data: Path) -> None:
    """Rename the log's files after their contents, so that the same world is the same bytes, names included."""
    root, snapshot = log_folder(data), load_snapshot(data)
    renamed = []
    for one in snapshot.files:
        path = root / one.path
        name = path.with_name(f"part-{xxhash.xxh3_128_hexdigest(path.read_bytes())}.parquet")
        path.rename(name)
        renamed.append(LogFile(one.table, name.relative_to(root).as_posix(), one.day, one.low, one.high, one.rows))
    snapshot.files = sorted(renamed, key=lambda one: one.path)
    commit(data, snapshot)
