"""A log pushed to a store and pulled from it: the same log, whatever happened to it between, and never half of one."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from serve_app import stores
from serve_app.errors import DamagedArtifact, InvalidInput, NotReady, UnknownIdentifier
from serve_app.ids import hash_id
from serve_app.log.check import check_log
from serve_app.log.compaction import compact
from serve_app.log.erasure import erase_user, erased_users
from serve_app.log.journal import Journal
from serve_app.log.pulling import pull_log
from serve_app.log.pushing import push_log
from serve_app.log.reader import read_log
from serve_app.log.schema import TABLES
from serve_app.log.snapshot import load_snapshot
from serve_app.log.upkeep import upkeep
from serve_app.log.writer import LogWriter
from serve_app.stores import Store
from tests.unit.test_log_erasure import ANN, BOB, T, catalogue, facts, in_parquet, on_disk, people

DAY = 86_400_000_000


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder as pyarrow opens it, and a store that only fsspec knows."""
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://log-{tmp_path.name}"


def logged(data: Path, names: list[str], at: int) -> None:
    """A commit of what these users did."""
    with Journal(data, "w") as journal:
        journal.append(facts(names, [at + n for n in range(len(names))]))
    compact(data, now_us=at)


def everything(data: Path) -> dict[str, pa.Table]:
    return {table: read_log(data, table, journal=False) for table in TABLES}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    data = tmp_path / "source"
    data.mkdir()
    catalogue(data)
    logged(data, ["ann", "bob"], T)
    logged(data, ["ann", "eve"], T + DAY)
    return data


def test_a_copy_is_the_log(source: Path, tmp_path: Path, url: str) -> None:
    copy, told = tmp_path / "copy", list[tuple[int, int]]()
    policy = source / "policies" / f"{'0a' * 10}.json"
    policy.parent.mkdir()
    policy.write_text("{}")
    (source / "policies" / "current").write_text("of the server, not of a copy")
    pushed = push_log(source, url, lambda done, total: told.append((done, total)))
    assert pushed.sent == pushed.known + pushed.sent > 3
    assert told[-1][0] == told[-1][1] == pushed.bytes > 0
    pulled = pull_log(copy, url)
    assert (pulled.fetched, pulled.bytes, pulled.rows) == (pushed.sent, pushed.bytes, pushed.rows)
    assert everything(copy) == everything(source)
    assert load_snapshot(copy).files == load_snapshot(source).files
    assert check_log(copy).problems == []
    for name in ("catalogue/users.parquet", "catalogue/reviews.parquet", f"policies/{policy.name}"):
        assert (copy / name).read_bytes() == (source / name).read_bytes()
    assert not (copy / "policies" / "current").exists()
    assert push_log(source, url).sent == pull_log(copy, url).fetched == 0


def test_the_journal_stays_and_is_named(source: Path, url: str, tmp_path: Path) -> None:
    assert push_log(source, url).lag.waiting == 0
    with Journal(source, "w") as journal:
        journal.append(facts(["zoe"], [T + 5]))
        assert push_log(source, url).lag.waiting > 0
    pull_log(tmp_path / "copy", url)
    assert hash_id("zoe") not in people(tmp_path / "copy")


def test_what_was_erased_leaves_the_store_and_the_copy(source: Path, tmp_path: Path) -> None:
    store, copy = tmp_path / "store", tmp_path / "copy"
    push_log(source, f"file://{store}")
    pull_log(copy, f"file://{store}")
    pack = copy / "replay-packs" / "one"
    pack.mkdir(parents=True)
    (pack / "pack.json").write_text(json.dumps({"erasures": 0, "source": "the log", "low": 0, "high": 4095}))
    erase_user(source, ANN, T + 3 * DAY)
    push_log(source, f"file://{store}")
    pull_log(copy, f"file://{store}")
    assert ANN not in people(copy)  # hidden from the moment the erasure comes
    assert not pack.exists()
    for _ in range(2):
        upkeep(source, None, now_us=T + 4 * DAY)
    push_log(source, f"file://{store}")
    pull_log(copy, f"file://{store}")
    for folder in (store, copy):
        assert in_parquet(folder, ANN) == []
        assert on_disk(folder, b"name-of-ann") == []
    assert people(copy) == sorted([BOB, hash_id("eve")])
    assert pq.read_table(copy / "catalogue/users.parquet")["user_id"].to_pylist() == ["bob"]


def test_readers_of_a_copy_may_finish(source: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    push_log(source, url)
    pull_log(copy, url)
    listed = [copy / "log" / one.path for one in load_snapshot(copy).files]
    logged(source, ["bob"], T + 10)  # is joined with what the day has: its file is another one then
    push_log(source, url)
    assert pull_log(copy, url).removed > 0
    assert all(path.exists() for path in listed)
    later = time.time_ns() + 2 * 3600 * 10**9
    monkeypatch.setattr("serve_app.log.pulling.time.time_ns", lambda: later)
    logged(source, ["bob"], T + 20)
    push_log(source, url)
    pull_log(copy, url)
    assert not all(path.exists() for path in listed)
    assert everything(copy) == everything(source)


@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_what_is_damaged_there_changes_nothing_here(source: Path, tmp_path: Path, harm: str) -> None:
    store, copy = tmp_path / "store", tmp_path / "copy"
    push_log(source, f"file://{store}")
    pull_log(copy, f"file://{store}")
    before = everything(copy)
    logged(source, ["bob", "joe"], T + 10)
    old = set(store.rglob("*"))
    push_log(source, f"file://{store}")
    victim = max(set(store.rglob("part-*.parquet")) - old, key=lambda path: path.stat().st_size)
    whole = victim.read_bytes()
    if harm == "gone":
        victim.unlink()
    else:
        victim.write_bytes(whole[:-1] if harm == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedArtifact) as error:
        pull_log(copy, f"file://{store}")
    assert victim.name in str(error.value.field)
    assert everything(copy) == before
    victim.write_bytes(whole)
    pull_log(copy, f"file://{store}")
    assert everything(copy) == everything(source)


def test_a_push_that_is_cut_short_is_gone_on_with(
    source: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_log(source, url)
    before = everything(source)
    logged(source, ["kim", "lou", "max"], T + 2 * DAY)
    send, left = Store.send, [2]

    def fails(self: Store, path: Path, name: str) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise NotReady("the line is cut", field=self.url)
        return send(self, path, name)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "send", fails)
        with pytest.raises(NotReady, match="the line is cut"):
            push_log(source, url)
    pull_log(tmp_path / "copy", url)
    assert everything(tmp_path / "copy") == before
    push_log(source, url)
    pull_log(tmp_path / "copy", url)
    assert everything(tmp_path / "copy") == everything(source)


def before_the_first(monkeypatch: pytest.MonkeyPatch, name: str, what: Callable[[], object]) -> None:
    """Have `what` happen when the first file is about to be sent, or fetched."""
    real, steps = getattr(Store, name), [what]

    def first(self: Store, *arguments: object) -> object:
        if steps:
            steps.pop()()
        return real(self, *arguments)

    monkeypatch.setattr(Store, name, first)


def test_commits_meanwhile_make_it_begin_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, copy = tmp_path / "store", tmp_path / "copy"
    url = f"file://{store}"
    erase_user(source, ANN, T + 3 * DAY)
    monkeypatch.setattr(stores, "AT_ONCE", 1)

    def forget() -> None:
        for _ in range(2):  # files that hold ann go at once
            upkeep(source, None, now_us=T + 4 * DAY)

    before_the_first(monkeypatch, "send", forget)
    push_log(source, url)
    assert in_parquet(store, ANN) == []

    def replace() -> None:
        logged(source, ["bob"], T + 10)
        push_log(source, url)

    before_the_first(monkeypatch, "fetch", replace)
    pull_log(copy, url)
    assert everything(copy) == everything(source)


def test_nothing_of_a_push_that_was_cut_short_stays_in_the_store(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    victim, others = store / "parts" / "mine.txt", store / "notes.txt"
    victim.parent.mkdir(parents=True)
    victim.write_text("not a part of any log")
    others.write_text("neither")
    with monkeypatch.context() as patched:
        patched.setattr(Store, "write", lambda *_: (_ for _ in ()).throw(NotReady("the line is cut")))
        with pytest.raises(NotReady, match="the line is cut"):
            push_log(source, f"file://{store}")
    assert in_parquet(store, ANN)
    erase_user(source, ANN, T + 3 * DAY)
    for _ in range(2):
        upkeep(source, None, now_us=T + 4 * DAY)
    assert push_log(source, f"file://{store}").removed > 0
    assert in_parquet(store, ANN) == []
    assert on_disk(store, b"name-of-ann") == []
    assert victim.exists()
    assert others.exists()


def test_folders_and_stores_are_not_mixed_up(source: Path, tmp_path: Path, url: str) -> None:
    copy, other = tmp_path / "copy", tmp_path / "other"
    with pytest.raises(UnknownIdentifier, match="no log"):
        pull_log(copy, url)
    assert not copy.exists()
    push_log(source, url)
    other.mkdir()
    with pytest.raises(NotReady, match="no file yet"):
        push_log(other, url)
    logged(other, ["bob"], T)
    for attempt in (lambda: pull_log(other, url), lambda: pull_log(source, url)):
        with pytest.raises(InvalidInput, match="a log of its own"):
            attempt()
    for _ in range(3):
        logged(other, ["bob"], T)
    with pytest.raises(InvalidInput, match="another log"):
        push_log(other, url)
    push_log(other, f"file://{tmp_path}/elsewhere")
    pull_log(copy, url)
    with pytest.raises(InvalidInput, match="copy of another log"):
        pull_log(copy, f"file://{tmp_path}/elsewhere")
    shutil.copytree(source, tmp_path / "backup")
    logged(source, ["bob"], T + 10)
    push_log(source, url)
    with pytest.raises(InvalidInput, match="newer state"):
        push_log(tmp_path / "backup", url)


@pytest.mark.parametrize("how", ["a commit", "a journal"])
def test_a_copy_that_was_written_to_is_left_alone(source: Path, tmp_path: Path, url: str, how: str) -> None:
    copy = tmp_path / "copy"
    push_log(source, url)
    pull_log(copy, url)
    if how == "a commit":
        with LogWriter(copy) as writer:
            writer.write("events", facts(["zoe"], [T])["events"])
    else:
        with Journal(copy, "w") as journal:
            journal.append(facts(["zoe"], [T]))
    with pytest.raises(InvalidInput, match="written to"):
        pull_log(copy, url)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (("files", 0, "path"), "../../victim"),
        (("files", 0, "path"), "secrets/day=2026-01-01/buckets=0000-4095/part-" + "0" * 32 + ".parquet"),
        (("beside", 0, "path"), "/etc/passwd"),
        (("beside", 0, "path"), "ledger/ledger.sqlite"),
        (("beside", 0, "sha256"), "../x"),
        (("format",), 2),
        (("schema_version",), 999),
        (("more",), 1),
    ],
)
def test_what_a_store_says_is_not_believed_blindly(
    source: Path, tmp_path: Path, field: tuple[str | int, ...], value: object
) -> None:
    store = tmp_path / "store"
    push_log(source, f"file://{store}")
    said = json.loads((store / "log.json").read_text())
    place = said
    for one in field[:-1]:
        place = place[one]
    place[field[-1]] = value
    (store / "log.json").write_text(json.dumps(said))
    with pytest.raises(DamagedArtifact):
        pull_log(tmp_path / "copy", f"file://{store}")
    assert not (tmp_path / "copy").exists()


class Sharing(RuleBasedStateMachine):
    """Whatever is done to a log between pushes, a pull gives what was pushed last."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="sharing-"))
        self.source, self.copy, self.url = self.root / "source", self.root / "copy", f"file://{self.root}/store"
        self.source.mkdir()
        catalogue(self.source)
        self.at, self.pushed = T, dict[str, pa.Table]()
        self.erased = dict[int, int]()

    @rule(names=st.lists(st.sampled_from(["ann", "bob", "eve"]), min_size=1, max_size=4), days=st.integers(0, 1))
    def write(self, names: list[str], days: int) -> None:
        self.at += 10 + days * DAY
        logged(self.source, names, self.at)

    @rule(name=st.sampled_from(["ann", "bob"]))
    def erase(self, name: str) -> None:
        (self.source / "log").mkdir(exist_ok=True)
        erase_user(self.source, hash_id(name), self.at)

    @rule()
    def keep_up(self) -> None:
        upkeep(self.source, None, now_us=self.at)

    @precondition(lambda self: load_snapshot(self.source).sequence > 0)
    @rule()
    def push(self) -> None:
        push_log(self.source, self.url)
        self.pushed, self.erased = everything(self.source), erased_users(self.source)

    @precondition(lambda self: self.pushed)
    @rule()
    def pull(self) -> None:
        pull_log(self.copy, self.url)
        assert everything(self.copy) == self.pushed
        assert erased_users(self.copy) == self.erased
        assert check_log(self.copy).problems == []

    def teardown(self) -> None:
        shutil.rmtree(getattr(self, "root", Path("no such folder")), ignore_errors=True)


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=12, stateful_step_count=14, deadline=None)
