"""A cluster on this machine that takes Serve configs: `python -m tests.cluster.elastic_server PORT [WORKERS]`.

Without workers it is the private Ray of `hindcast up`; with them, a head (which alone has the resource `state`) and so many
further nodes. Each line on standard input is a file's name, and its config is deployed as `serve deploy` does; or `status`:
replicas of each deployment, state of each application; `kill`: a worker node dies at once; `grow`: a new one comes. A line
of JSON answers each. The end of input ends it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml


def main() -> None:
    from serve_app.running.instance import end_leftovers, private_ray, start_serve
    from serve_app.running.switches import free_port, set_switches
    from serve_app.settings import load_settings

    settings = load_settings(http={"port": int(sys.argv[1])})
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    folder = Path(tempfile.mkdtemp(prefix="hindcast-"))
    set_switches(settings, folder)
    try:
        with several_nodes(folder, workers) if workers else private_ray(folder, free_port()) as nodes:
            start_serve(settings)
            _tell({"started": True})
            for line in sys.stdin:
                _tell(_obey(line.strip(), nodes))
    finally:
        end_leftovers(folder)


class Nodes:
    """A head and workers of one Ray, all on this host."""

    def __init__(self, folder: Path) -> None:
        from ray._common.utils import get_default_ray_temp_dir
        from ray.cluster_utils import Cluster

        Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)  # Cluster leaves its address there
        head = {"num_cpus": 16, "resources": {"state": 1}, "include_dashboard": False, "temp_dir": str(folder / "ray")}
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, "node_ip_address": "127.0.0.1"})
        self._workers: list[Any] = []
        self.address = self._cluster.address

    def grow(self) -> dict[str, Any]:
        self._workers.append(self._cluster.add_node(num_cpus=16, node_ip_address="127.0.0.1"))
        return {"workers": len(self._workers)}

    def kill(self) -> dict[str, Any]:
        self._cluster.remove_node(self._workers.pop(), allow_graceful=False)
        return {"workers": len(self._workers)}

    def end(self) -> None:
        self._cluster.shutdown()


@contextmanager
def several_nodes(folder: Path, workers: int) -> Iterator[Nodes]:
    """The head and its workers, with this process connected."""
    import ray
    from ray._private import services

    services.resolve_ip_for_localhost = lambda host: host
    nodes = Nodes(folder)
    try:
        for _ in range(workers):
            nodes.grow()
        ray.init(address=nodes.address, log_to_driver=False, _node_ip_address="127.0.0.1")
        yield nodes
    finally:
        ray.shutdown()
        nodes.end()


def _obey(word: str, nodes: Any) -> dict[str, Any]:
    if word in ("kill", "grow"):
        return dict(getattr(nodes, word)())
    return _status() if word == "status" else _deploy(Path(word))


def _deploy(path: Path) -> dict[str, Any]:
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from serve_app.running.serve_file import check_serve_file

    check_serve_file(path)
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(yaml.safe_load(path.read_text())))
    return {"deployed": path.name}


def _status() -> dict[str, Any]:
    from ray import serve

    out: dict[str, Any] = {"applications": {}, "replicas": {}, "messages": {}}
    for name, application in serve.status().applications.items():
        out["applications"][name] = str(application.status.value)
        if application.message:
            out["messages"][name] = application.message[-2000:]
        for deployment, one in application.deployments.items():
            out["replicas"][deployment] = {str(getattr(state, "value", state)): n for state, n in one.replica_states.items()}
    return out


def _tell(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    main()
