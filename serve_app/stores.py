"""Files in any store that pyarrow (`s3://`, `gs://`, `file:///`) or else fsspec knows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol
from urllib.parse import urlsplit, urlunsplit

from serve_app.errors import InvalidInput, NotReady

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["AT_ONCE", "Content", "Progress", "Store", "content_of", "copied"]

AT_ONCE = 8  # files on their way
_PIECE = 1 << 22
Progress = Callable[[int, int], None]
"""progress(done, total) in bytes."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds: its length, and its SHA-256 as hexadecimal text."""

    bytes: int
    sha256: str


def content_of(path: Path) -> Content:
    """Of a file here. FileNotFoundError where it is gone."""
    with path.open("rb") as file:
        return _copied(file, None)


def copied(copy: Callable[[str], Content], names: Mapping[str, int], progress: Progress) -> dict[str, Content]:
    """What `copy` gives of each name, several at once. names: with their lengths, as far as is known. What one of them
    raises ends the others."""
    done, total = 0, sum(names.values())
    out: dict[str, Content] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for name, content in zip(names, pool.map(copy, names), strict=True):
                out[name] = content
                done += content.bytes
                progress(done, total)
        finally:
            pool.shutdown(cancel_futures=True)
    return out


class Store:
    """Files by name under `url`. Threads may share it.

    InvalidInput: nothing here opens such a URL. NotReady, of any operation: the store does not answer, or refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = _shown(url)
        self._system, self._root = _opened(url)
        self._folders = set[str]()

    def bytes_of(self, name: str) -> int | None:
        """Length of a file there; None: there is none."""
        from pyarrow.fs import FileType

        with self._answering():
            found = self._system.get_file_info(f"{self._root}/{name}")
        return int(found.size) if found.type == FileType.File else None

    def listed(self, folder: str) -> dict[str, int]:
        """Length of each file under `folder`, by name."""
        from pyarrow.fs import FileSelector, FileType

        with self._answering():
            selector = FileSelector(f"{self._root}/{folder}", allow_not_found=True, recursive=True)
            found = self._system.get_file_info(selector)
        start = len(self._root) + 1
        return {one.path[start:]: int(one.size) for one in found if one.type == FileType.File}

    def read(self, name: str) -> bytes | None:
        """A whole small file; None: there is none."""
        with self._answering():
            try:
                with self._system.open_input_stream(f"{self._root}/{name}") as file:
                    return bytes(file.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """A small file in place of the one that may be there: whoever reads sees one or the other."""
        from pyarrow.fs import LocalFileSystem

        renames = isinstance(self._system, LocalFileSystem)  # other stores show a file when it is whole
        path = f"{self._root}/{name}"
        with self._answering():
            self._make_folder(path)
            with self._system.open_output_stream(f"{path}.tmp" if renames else path) as file:
                file.write(content)
            if renames:
                self._system.move(f"{path}.tmp", path)

    def send(self, source: Path, name: str) -> Content:
        """Copy a file there; what was sent. FileNotFoundError where `source` is gone."""
        path = f"{self._root}/{name}"
        with source.open("rb") as own, self._answering():
            self._make_folder(path)
            with self._system.open_output_stream(path) as other:
                return _copied(own, other)

    def fetch(self, name: str, target: Path) -> Content:
        """Copy a file from there; what came. FileNotFoundError where there is none."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._answering(), self._system.open_input_stream(f"{self._root}/{name}") as other, target.open("wb") as own:
            return _copied(other, own)

    def remove(self, name: str) -> None:
        """Delete a file there, where it is."""
        with self._answering():
            try:
                self._system.delete_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return

    def _make_folder(self, path: str) -> None:
        folder = path.rsplit("/", 1)[0]
        if folder not in self._folders:  # to look takes some stores as long as to send a small file
            self._system.create_dir(folder, recursive=True)
            self._folders.add(folder)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _failed(self.url, error) from error


def _shown(url: str) -> str:
    """As it may be printed and kept: without keys (`s3://key:secret@bucket`) and options."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _failed(url: str, error: OSError) -> NotReady:
    said = " ".join(str(error).split())[:300]
    return NotReady(f"the store cannot be used: {said}", field=url, hint="address, credentials and space right?")


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Writer(Protocol):
    def write(self, content: bytes, /) -> object: ...


def _copied(source: _Reader | BinaryIO, target: _Writer | BinaryIO | None) -> Content:
    digest, size = hashlib.sha256(), 0
    while piece := source.read(_PIECE):
        digest.update(piece)
        size += len(piece)
        if target is not None:
            target.write(piece)
    return Content(size, digest.hexdigest())


def _opened(url: str) -> tuple[FileSystem, str]:
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    if len(urlsplit(url).scheme) < 2:
        raise InvalidInput(f"{url!r} is no URL", field="url", hint="s3://bucket/folder, or file:///a/folder")
    try:
        system, root = FileSystem.from_uri(url)
    except OSError as error:
        raise _failed(_shown(url), error) from error
    except (ArrowException, ValueError):  # one that it does not know
        import fsspec  # type: ignore[import-untyped]

        try:
            own, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InvalidInput(f"nothing here opens {_shown(url)}: {error}", field="url") from error
        system = PyFileSystem(FSSpecHandler(own))
    return system, str(root).rstrip("/")
