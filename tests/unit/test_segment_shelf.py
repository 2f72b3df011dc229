"""Looking members up: each policy its own bits, another definition's members never, new sets while following."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from serve_app.errors import InvalidInput
from serve_app.policy.document import PolicyDocument, parse_policy
from serve_app.policy.segment_tree import segment_digests
from serve_app.segments.bitmaps import bitmap_of, plane_of
from serve_app.segments.shelf import SegmentShelf, member_bits
from serve_app.segments.store import Membership, load_current, publish_set, read_pointer, read_set_manifest

USERS = np.array([3, 5, 2**63, 2**64 - 1], np.uint64)
KOREA = {"kind": "attribute", "name": "region", "op": "==", "value": "KR"}
HALF = {"kind": "bucket", "salt": "s", "percent": 50}


def policy(**segments: dict[str, Any]) -> PolicyDocument:
    return parse_policy({"name": "a", "segments": [{"id": name, "where": tree} for name, tree in segments.items()]})


def published(data: Path, document: PolicyDocument, members: dict[str, list[int]], at: int = 7) -> None:
    digests = segment_digests(document.segments)
    bitmaps = {digests[name]: BitMap(rows) for name, rows in members.items()}
    publish_set(data, USERS, bitmaps, {digests[name]: [name] for name in members}, computed_at=at)


def looked_up(data: Path, document: PolicyDocument, users: list[int]) -> tuple[list[int], list[int]]:
    digests = SegmentShelf(data).digests(document)
    bits, at = member_bits(load_current(data), digests, np.array(users, np.uint64))
    return bits.tolist(), at.tolist()


def test_each_policy_sees_its_own_bit_order(tmp_path: Path) -> None:
    one, other = policy(korea=KOREA, half=HALF), policy(fifty=HALF, nation=KOREA)
    published(tmp_path, one, {"korea": [0, 2], "half": [2, 3]})
    asked = [5, 3, 2**63, 4, 2**64 - 1, 3]
    assert looked_up(tmp_path, one, asked) == ([0, 1, 3, 0, 2, 1], [7] * 6)
    assert looked_up(tmp_path, other, asked) == ([0, 2, 3, 0, 1, 2], [7] * 6)
    assert looked_up(tmp_path, policy(half=HALF), asked) == ([0, 0, 1, 0, 1, 0], [7] * 6)


def test_members_of_another_definition_are_not_used(tmp_path: Path) -> None:
    published(tmp_path, policy(korea=KOREA, half=HALF), {"korea": [0], "half": [1]})
    same_name = policy(korea={**KOREA, "value": "US"}, half=HALF)
    assert looked_up(tmp_path, same_name, [3, 5]) == ([0, 0], [0, 0])


def test_a_definition_is_what_it_refers_to_and_not_its_name() -> None:
    def digest(document: PolicyDocument, name: str) -> str:
        return segment_digests(document.segments)[name]

    reference = {"kind": "segment", "id": "korea"}
    one = policy(korea=KOREA, same={"kind": "not", "of": reference})
    renamed = policy(same={"kind": "not", "of": {"kind": "segment", "id": "nation"}}, nation=KOREA)
    changed = policy(korea={**KOREA, "value": "US"}, same={"kind": "not", "of": reference})
    assert digest(one, "same") == digest(renamed, "same")
    assert digest(one, "same") != digest(changed, "same")
    assert digest(one, "korea") == digest(renamed, "nation")


def test_without_a_set_nothing_is_known(tmp_path: Path) -> None:
    assert looked_up(tmp_path, policy(korea=KOREA), [3]) == ([0], [0])
    empty = Membership("", read_empty(tmp_path), np.empty(0, np.uint64), np.zeros((0, 1), np.uint64), {"d": 0})
    assert member_bits(empty, ("d",), USERS)[0].tolist() == [0, 0, 0, 0]


def read_empty(data: Path) -> Any:
    manifest = publish_set(data, np.empty(0, np.uint64), {}, {}, computed_at=1)
    assert read_set_manifest(data) == manifest
    return manifest


@settings(max_examples=50, deadline=None)
@given(members=st.lists(st.booleans(), max_size=300))
def test_bitmap_and_plane_hold_the_same_rows(members: list[bool]) -> None:
    bitmap = bitmap_of(np.array(members, np.bool_))
    assert list(bitmap) == [row for row, own in enumerate(members) if own]
    plane = plane_of(bitmap, len(members))
    assert [bool(int(plane[row >> 6]) >> (row & 63) & 1) for row in range(len(members))] == members


def test_a_follower_takes_up_what_is_published_later_and_two_sets_are_kept(tmp_path: Path) -> None:
    document = policy(korea=KOREA)
    shelf = SegmentShelf(tmp_path, every_s=0.01)
    assert shelf.current is None
    for at in (1, 2, 3):
        published(tmp_path, document, {"korea": [at]}, at)
        ends = time.monotonic() + 30
        while shelf.current is None or shelf.current.computed_at != at:
            assert time.monotonic() < ends
            time.sleep(0.01)
    assert len(list((tmp_path / "segments" / "sets").iterdir())) == 2
    assert read_pointer(tmp_path) is not None


def test_users_out_of_order_are_not_published(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="users: must be sorted and distinct"):
        publish_set(tmp_path, USERS[::-1], {}, {}, computed_at=1)
    assert read_pointer(tmp_path) is None
