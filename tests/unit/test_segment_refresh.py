"""Refresh over a real log: incremental equals full, to the byte; late and repeated events; what is published and refused."""

from __future__ import annotations

import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.catalogue import Catalogue, table_of, write_catalogue
from serve_app.errors import DamagedArtifact, InvalidInput, NotReady
from serve_app.ids import hash_id
from serve_app.ledger.opening import open_ledger
from serve_app.ledger.protocol import Consent, UserChanges
from serve_app.log.compaction import compact
from serve_app.log.journal import Journal
from serve_app.log.rows import fill
from serve_app.policies import promote_policy, store_policy
from serve_app.policy.document import PolicyDocument, parse_policy
from serve_app.policy.segment_tree import segment_digests
from serve_app.segments.days import refresh_days
from serve_app.segments.events import DAY_US, EventHistory
from serve_app.segments.refresh import policies_in_force, prepare_policy, refresh_lock, refresh_segments
from serve_app.segments.shelf import member_bits
from serve_app.segments.store import load_current, read_pointer, segments_folder
from serve_app.vocabulary import EventType

FIRST_DAY = 20_000
NOW = (FIRST_DAY + 3) * DAY_US
NAMES = [f"user-{one}" for one in range(6)]
USERS = [0, *(hash_id(name) for name in NAMES)]
ITEM = hash_id("item-1")
Event = tuple[int, int, int, int]
EVENT = st.tuples(  # user, type, time, ingested later by
    st.sampled_from(USERS), st.sampled_from([0, 3]), st.integers(FIRST_DAY * DAY_US, NOW), st.integers(0, 2 * DAY_US)
)
VIEWED = {"kind": "event_count", "event": "view", "within_days": 30, "op": ">=", "count": 1}


def catalogue(data: Path) -> None:
    write_catalogue(
        Catalogue(
            items=table_of("items", {
                "item_id": ["item-1"], "title": [""], "category": ["tv"], "price": [0.0], "currency": [""],
                "created_at": [0], "available": [True],
            }),
            users=table_of("users", {
                "user_id": NAMES[:4], "zone": ["Asia/Seoul", "", "Asia/Seoul", ""], "region": ["KR", "", "kr", "US"],
                "created_at": [0, 5, 0, 0],
            }),
        ),
        data / "catalogue",
    )  # fmt: skip


def log(data: Path, rows: list[tuple[int, Event]], writer: str = "w") -> None:
    """Journal events: (event id, event)."""
    user, kind, at, late = (np.array([event[k] for _, event in rows], dtype) for k, dtype in
                            enumerate((np.uint64, np.int8, np.int64, np.int64)))  # fmt: skip
    columns = {
        "user": user, "type": kind, "ts": at, "ingested_at": at + late,
        "event_id": np.array([one for one, _ in rows], np.uint64), "item": np.full(len(rows), ITEM, np.uint64),
    }  # fmt: skip
    with Journal(data, writer) as journal:
        journal.append({"events": fill("events", len(rows), columns)})


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@settings(max_examples=25, deadline=None)
@given(
    events=st.lists(EVENT, min_size=1, max_size=40), cuts=st.lists(st.integers(0, 40), max_size=4),
    repeats=st.lists(st.integers(0, 39), max_size=6), compacted=st.lists(st.booleans(), min_size=6, max_size=6),
)  # fmt: skip
def test_an_incremental_refresh_leaves_the_bytes_of_a_full_one(
    events: list[Event], cuts: list[int], repeats: list[int], compacted: list[bool]
) -> None:
    rows = list(enumerate(events, 1)) + [(at + 1, events[at]) for at in repeats if at < len(events)]
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        for part, (low, high) in enumerate(pairwise(edges)):
            log(data, rows[low:high])
            if compacted[part]:
                compact(data, now_us=NOW)
            refresh_days(data)
        kept = bytes_of(segments_folder(data))
        days = refresh_days(data, full=True)
        assert bytes_of(segments_folder(data)) == kept
        expected = Counter(user for user, kind, _, _ in events if user and kind == 0)
        users = np.array(sorted({one for one in USERS if one}), np.uint64)
        counts = EventHistory(users, days, np.empty(0, np.uint64), np.empty(0, np.int32), []).count(EventType.view, -1, NOW)
        assert dict(zip(users.tolist(), counts.tolist(), strict=True)) == {one: expected[one] for one in users.tolist()}


def test_only_days_that_changed_are_made_anew_and_damage_heals(tmp_path: Path) -> None:
    made: list[int] = []

    def refreshed() -> int:
        made.clear()
        refresh_days(tmp_path, progress=lambda done, total: made.append(total))
        return made[0]

    log(tmp_path, [(1, (USERS[1], 0, FIRST_DAY * DAY_US, 0)), (2, (USERS[1], 0, (FIRST_DAY + 1) * DAY_US, 0))])
    assert refreshed() == 2
    assert refreshed() == 0
    log(tmp_path, [(3, (USERS[2], 0, FIRST_DAY * DAY_US + 5, 9 * DAY_US))], "late")
    assert refreshed() == 1
    path = next((segments_folder(tmp_path) / "events").glob("*.arrow"))
    path.write_bytes(path.read_bytes()[:-1])
    assert refreshed() == 1
    assert refreshed() == 0


def document(**changes: Any) -> PolicyDocument:
    segments = [
        {"id": "viewers", "where": VIEWED},
        {"id": "korea", "where": {"kind": "attribute", "name": "region", "op": "==", "value": "KR"}},
    ]
    return parse_policy({"name": "a", "segments": segments} | changes)


def promote(data: Path, policy: PolicyDocument, now: int = 1) -> None:
    promote_policy(data, store_policy(data, policy), now=now)


def members(data: Path, policy: PolicyDocument, name: str) -> set[int]:
    digests = tuple(segment_digests(policy.segments).values())
    place = [one.id for one in policy.segments].index(name)
    users = np.array(USERS, np.uint64)
    bits, at = member_bits(load_current(data), digests, users)
    assert at.tolist() == [NOW] * len(users)
    return {int(user) for user, own in zip(users, bits, strict=True) if int(own) >> place & 1}


def test_a_refresh_publishes_the_members_of_both_policies_in_force(tmp_path: Path) -> None:
    catalogue(tmp_path)
    older = document(segments=[{"id": "all-viewers", "where": VIEWED}])
    promote(tmp_path, older)
    promote(tmp_path, document(), 2)
    assert [one.revision for one in policies_in_force(tmp_path)] == [document().revision, older.revision]
    log(tmp_path, [(1, (USERS[1], 0, NOW, 0)), (2, (USERS[6], 0, NOW - 1, 0)), (3, (USERS[2], 3, NOW - 1, 0))])
    manifest = refresh_segments(tmp_path, now=NOW)
    assert manifest is not None
    assert manifest.population == 5  # four of the catalogue, one of the events
    assert [one.ids for one in manifest.segments if len(one.ids) == 2] == [("viewers", "all-viewers")]
    assert members(tmp_path, document(), "viewers") == {USERS[1], USERS[6]}
    assert members(tmp_path, document(), "korea") == {USERS[1], USERS[3]}
    assert members(tmp_path, older, "all-viewers") == {USERS[1], USERS[6]}


def test_the_ledgers_word_replaces_the_catalogues_and_makes_users_known(tmp_path: Path) -> None:
    catalogue(tmp_path)
    ledger = open_ledger(tmp_path, durability="process")
    ledger.put_user(USERS[1], UserChanges(region="US", consent_ad=Consent(5, 5, "form")))
    ledger.put_user(USERS[5], UserChanges(region="KR", reachable=1))
    ledger.put_user(USERS[2], UserChanges(zone="Asia/Seoul"))
    ledger.delete_user(USERS[2])
    # The owner still holds the file: a refresh only reads it.
    where = {"kind": "or", "of": [
        {"kind": "attribute", "name": "consent_ad", "op": "==", "value": True},
        {"kind": "attribute", "name": "reachable_push", "op": "==", "value": True}]}  # fmt: skip
    policy = document(segments=[*document().model_dump(mode="json")["segments"], {"id": "open", "where": where}])
    promote(tmp_path, policy)
    refresh_segments(tmp_path, now=NOW)
    ledger.close()
    assert members(tmp_path, policy, "korea") == {USERS[3], USERS[5]}
    assert members(tmp_path, policy, "open") == {USERS[1], USERS[5]}


def test_nothing_is_published_where_no_policy_has_a_segment(tmp_path: Path) -> None:
    promote(tmp_path, parse_policy({"name": "a"}))
    assert refresh_segments(tmp_path, now=NOW) is None
    assert read_pointer(tmp_path) is None


def test_what_the_current_policy_asks_in_vain_is_an_error_and_the_old_set_stays(tmp_path: Path) -> None:
    catalogue(tmp_path)
    promote(tmp_path, document())
    refresh_segments(tmp_path, now=NOW)
    before = read_pointer(tmp_path)
    boats = document(segments=[{"id": "boats", "where": VIEWED | {"category": "boats"}}])
    with pytest.raises(InvalidInput, match=r"segments.0.where.category: no item has category 'boats'"):
        prepare_policy(tmp_path, boats, now=NOW + 1)
    promote(tmp_path, boats, 2)
    with pytest.raises(InvalidInput, match="boats"):
        refresh_segments(tmp_path, now=NOW + 1)
    assert read_pointer(tmp_path) == before
    promote(tmp_path, document(threshold=0.5), 3)  # the one before cannot be evaluated: it is left out, and that is said
    manifest = refresh_segments(tmp_path, now=NOW + 1)
    assert manifest is not None
    assert "boats" in manifest.left_out[boats.revision]


def test_a_policy_is_prepared_only_where_its_segments_are_unknown(tmp_path: Path) -> None:
    catalogue(tmp_path)
    promote(tmp_path, document())
    refresh_segments(tmp_path, now=NOW)
    renamed = document(segments=[{"id": "other-name", "where": VIEWED}])
    assert prepare_policy(tmp_path, renamed, now=NOW) is None
    changed = document(segments=[{"id": "viewers", "where": VIEWED | {"count": 2}}])
    assert prepare_policy(tmp_path, changed, now=NOW) is not None
    assert members(tmp_path, document(), "korea") == {USERS[1], USERS[3]}  # still there for requests pinned before


def test_two_refreshes_do_not_meet(tmp_path: Path) -> None:
    catalogue(tmp_path)
    promote(tmp_path, document())
    with refresh_lock(tmp_path, wait=False), pytest.raises(NotReady, match="another refresh"):
        refresh_segments(tmp_path, now=NOW, wait=False)


@pytest.mark.parametrize("damaged", ["users.npy", "manifest.json", "*.roaring"])
def test_a_damaged_set_is_refused_by_name(tmp_path: Path, damaged: str) -> None:
    catalogue(tmp_path)
    promote(tmp_path, document())
    refresh_segments(tmp_path, now=NOW)
    path = next((segments_folder(tmp_path) / "sets").glob(f"*/{damaged}"))
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DamagedArtifact, match=rf"{path.name}: .* \(run `hindcast segment refresh`\)"):
        load_current(tmp_path)
    refresh_segments(tmp_path, now=NOW)
    assert load_current(tmp_path) is not None
