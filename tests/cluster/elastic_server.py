"""A cluster of one node that takes Serve configs: `python -m tests.cluster.elastic_server PORT`.

Each line on standard input is a file's name; its config is deployed as `serve deploy` does, and a line of JSON answers when
it has been accepted. `status` answers each deployment's replicas and application's status. The end of input ends it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml


def main() -> None:
    from serve_app.running.instance import end_leftovers, private_ray, start_serve
    from serve_app.running.switches import free_port, set_switches
    from serve_app.settings import load_settings

    settings = load_settings(http={"port": int(sys.argv[1])})
    folder = Path(tempfile.mkdtemp(prefix="hindcast-"))
    set_switches(settings, folder)
    try:
        with private_ray(folder, free_port()):
            start_serve(settings)
            _tell({"started": True})
            for line in sys.stdin:
                _tell(_status() if line.strip() == "status" else _deploy(Path(line.strip())))
    finally:
        end_leftovers(folder)


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
