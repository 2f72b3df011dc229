"""Restartable steps: each is a function from inputs to files, done once per digest of its inputs.

A step writes into a folder aside; one rename makes it done. A killed build therefore leaves either nothing or a whole step,
and the next build with the same inputs goes on from there. A step's key covers its name, the code that may run in it, its
settings and the keys of the steps it reads, so a changed input changes every key after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from serve_app.release.manifest import fsync_folder

__all__ = ["Observer", "Workspace", "digest_contents", "digest_json", "source_digest"]

Observer = Callable[[str, str], None]
"""Called with (step name, "running" | "done" | "unchanged")."""


def digest_json(value: Any) -> str:
    """SHA-256 of canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_contents(paths: Iterable[Path]) -> str:
    """SHA-256 over the contents of files, whatever their names and order."""
    contents = []
    for path in paths:
        with path.open("rb") as stream:
            contents.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digest_json(sorted(contents))


_CODE = ("release/build", "stages", "reviews", "log", "policy")


@cache
def source_digest() -> str:
    """Digest of the package's own source: a step done by other code is not the same step."""
    root = Path(__file__).resolve().parents[2]
    return digest_contents(path for part in _CODE for path in sorted((root / part).rglob("*.py")))


class Workspace:
    """Folder of finished steps (``DATA/releases/.build``)."""

    def __init__(self, folder: Path, observer: Observer | None = None) -> None:
        self.folder = folder
        self._observe: Observer = observer or (lambda _name, _state: None)
        self._used: dict[str, str] = {}

    def step(self, name: str, inputs: Mapping[str, Any], after: Iterable[str], run: Callable[[Path], None]) -> Path:
        """The folder of step `name`, made by `run(folder)` unless it is there already.

        inputs: everything but earlier steps the result depends on. after: names of the steps `run` reads.
        """
        key = digest_json(
            {"step": name, "code": source_digest(), "inputs": dict(inputs), "after": {one: self._used[one] for one in after}}
        )
        self._used[name] = key
        target = self.folder / f"{name}-{key[:20]}"
        if target.is_dir():
            self._observe(name, "unchanged")
            return target
        self._observe(name, "running")
        aside = self.folder / f".{name}-{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        run(aside)
        os.rename(aside, target)
        fsync_folder(self.folder)
        self._observe(name, "done")
        return target

    def prune(self) -> None:
        """Remove steps that this build did not use, and what killed builds left aside."""
        kept = {f"{name}-{key[:20]}" for name, key in self._used.items()}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in kept:
                shutil.rmtree(path)
