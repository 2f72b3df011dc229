"""Start the naive Ray Serve application: ``python -m loadtests.peers.naive_serve RELEASE PORT``. Ends with its input."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import ray
from ray import serve

from loadtests.peers.naive_app import Features, Ingress, Ranking, Retrieval

__all__ = ["main"]


def main(release: str, port: int) -> None:
    """Serve until standard input ends."""
    with tempfile.TemporaryDirectory(prefix="hc-naive-") as folder:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=16, _temp_dir=folder)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            stages: list[Any] = [Retrieval, Features, Ranking]
            front: Any = Ingress
            serve.run(front.bind(*(one.bind(release) for one in stages)), route_prefix="/")
            sys.stdin.read()
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
