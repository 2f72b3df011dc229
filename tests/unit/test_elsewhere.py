"""Which server a promotion is told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from hindcast.elsewhere import flip_of, read_key
from serve_app.errors import InvalidInput, NotReady


def test_without_an_address_and_a_server_nobody_is_told(tmp_path: Path) -> None:
    assert flip_of(tmp_path, "releases", None, None) is None


@pytest.mark.parametrize(("server", "key"), [("http://127.0.0.1:1", None), (None, "admin.key")])
def test_address_and_key_go_together(tmp_path: Path, server: str | None, key: str | None) -> None:
    with pytest.raises(InvalidInput, match="go together"):
        flip_of(tmp_path, "policies", server, None if key is None else tmp_path / key)


def test_a_server_that_does_not_answer_is_said(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("secret\n")
    flip = flip_of(tmp_path, "policies", "http://127.0.0.1:1/", tmp_path / "admin.key")
    assert flip is not None
    with pytest.raises(NotReady, match="did not answer prepare"):
        flip.prepare("r1")


@pytest.mark.parametrize("content", [None, b" \n", b"\xff"])
def test_a_key_file_that_holds_none_is_said(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(InvalidInput, match="key"):
        read_key(tmp_path / "key")
