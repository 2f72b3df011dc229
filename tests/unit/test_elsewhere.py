"""Which server a promotion is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from hindcast.elsewhere import flip_of, read_key
from serve_app.errors import InvalidInput, NotReady
from serve_app.release.flip import HttpFlip


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


@pytest.mark.parametrize("content", [None, b" \n", b"\xff", b"one\ntwo\n", b"A=x y", "schlüssel".encode()])
def test_a_key_file_that_holds_none_is_said(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(InvalidInput, match="key") as error:
        read_key(tmp_path / "key")
    assert "two" not in str(error.value)


@pytest.mark.parametrize("address", ["shop:8000", "http://h:80x", "ftp://h", "http://", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="no address"):
        HttpFlip(address, "t")


@pytest.mark.parametrize(
    ("status", "said"),
    [(301, b""), (200, b"<html>"), (200, b'{"version": "other", "done": "prepare"}'), (200, b'{"ok": true}'), (204, b"")],
)
def test_whoever_else_answers_is_not_taken_for_the_server(status: int, said: bytes) -> None:
    with answering(status, said) as url, pytest.raises(NotReady, match="no server of ours"):
        HttpFlip(url, "t").prepare("r1")


def test_the_server_itself_is() -> None:
    with answering(200, b'{"version": "r1", "done": "prepare"}') as url:
        HttpFlip(url, "t").prepare("r1")


@contextmanager
def answering(status: int, said: bytes) -> Iterator[str]:
    """A server that gives every POST one answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(said)))
            self.send_header("location", "https://elsewhere.invalid/")
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)
