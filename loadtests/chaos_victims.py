"""The processes of a server on this machine by kind, and how to kill one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["KINDS", "NOTHING", "REPLICAS", "Victims", "kinds_of"]

NOTHING = "nothing"
"""Not a kind: what is measured where nothing dies is what the machine itself does to calls."""

REPLICAS = {
    "retrieval": "Retrieval",
    "features": "Features",
    "ranking": "Ranking",
    "decision": "Decision",
    "worker": "Worker",
    "state owner": "Ledger",
    "ingress": "Ingress",
}
"""Kind -> deployment."""

KINDS = {
    **{kind: f"ServeReplica:hindcast(-state)?:{name}\\b" for kind, name in REPLICAS.items()},
    "HAProxy": r"/haproxy\b.* -f ",
    "HAProxy's manager": r"ray::HAProxyManager",
    "fallback proxy": r"ray::ProxyActor",
    "controller": r"ray::ServeController",
}
"""Kind -> what its command line contains."""

_FUSED = ("worker", "state owner", "ingress")


def kinds_of(topology: str) -> tuple[str, ...]:
    """The kinds a server of this topology has, after nothing. A replica dies again after the controller: its successor must
    see it."""
    stages = [kind for kind in REPLICAS if topology == "chain" or kind in _FUSED]
    return (NOTHING, *stages, "HAProxy", "HAProxy's manager", "fallback proxy", "controller", stages[-1])


@dataclass(frozen=True)
class Victims:
    """The processes of one server. root: its first process, `hindcast up`. folder: its private one, which HAProxy names: a
    HAProxy whose manager has died is nobody's child."""

    root: psutil.Process
    folder: Path

    @classmethod
    def of(cls, root: psutil.Process) -> Victims:
        """Those below `root`."""
        for process in root.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if found := re.search(r"(/\S*/hindcast-[\w-]+)/\S*haproxy\.cfg", " ".join(process.cmdline())):
                    return cls(root, Path(found[1]))
        raise RuntimeError("no HAProxy runs below this process")

    def find(self, kind: str) -> list[int]:
        """Process ids of a kind, oldest first."""
        pattern, out = re.compile(KINDS[kind]), []
        own = psutil.process_iter() if kind == "HAProxy" else self.root.children(recursive=True)
        for process in own:
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if not pattern.search(line) or (kind == "HAProxy" and str(self.folder) not in line):
                    continue
                if process.status() != psutil.STATUS_ZOMBIE:
                    out.append((process.create_time(), process.pid))
        return [pid for _, pid in sorted(out)]

    def kill(self, kind: str) -> tuple[list[int], float]:
        """kill -9 the newest process of a kind: an older HAProxy only ends what it had begun. What was there before, and the
        time."""
        before = self.find(kind)
        if not before:
            raise RuntimeError(f"there is no {kind} to kill")
        os.kill(before[-1], signal.SIGKILL)
        return before, time.monotonic()
