"""What `serve deploy` builds, with our settings tree as `args`: `serve_app.served:application`, and beside it the owner of
the state, `serve_app.served:state`, which stays as it is while the other is updated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ray.serve import Application

from serve_app.errors import InvalidInput
from serve_app.settings import Settings, load_settings

__all__ = [
    "NODE_SETTINGS", "application", "check_code", "cluster_settings", "holds_password", "state", "state_settings",
]  # fmt: skip

NODE_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "http": (
        "haproxy", "haproxy_threads", "max_connections", "client_timeout_s", "header_timeout_s", "under_way_per_ingress",
        "queue_ms",
    ),
    "tracing": ("to", "share"),
}  # fmt: skip
"""What `hindcast node-env` makes of a node's environment before Ray starts: `args` come too late for it. Replicas that need
such a number too (`under_way_per_ingress`, `to`) read the same environment."""

_STATE_ARGUMENTS = frozenset({"data", "ledger", "deployments", "logs", "tracing"})


def application(arguments: dict[str, Any]) -> Application:
    """The graph of a cluster. InvalidInput names the wrong setting; Serve shows it as the reason of a failed deploy."""
    import ray
    from ray import serve

    from serve_app.application import STATE_APPLICATION, build_application

    check_code(ray.get_runtime_context().runtime_env)
    settings = cluster_settings(arguments)
    # The two are built side by side; a handle waits for replicas that are not there yet.
    state = serve.get_deployment_handle("Ledger", STATE_APPLICATION, _check_exists=False)
    return build_application(settings, state=state)


def state(arguments: dict[str, Any]) -> Application:
    """The owner of the state: `data`, `ledger` and `deployments.ledger` of the settings. It takes no HTTP."""
    import ray

    from serve_app.application import build_state

    check_code(ray.get_runtime_context().runtime_env)
    return build_state(state_settings(arguments))


def check_code(runtime_env: Mapping[str, Any]) -> None:
    """InvalidInput where the config file names a folder with a version of this code, and another one runs: Ray puts the
    folder that it was started in before all others."""
    here = Path(__file__).resolve().parents[1]
    for uri in runtime_env.get("py_modules", ()):
        named = Path(str(uri).removeprefix("local://"))
        if (named / "serve_app").is_dir() and named.resolve() != here:
            raise InvalidInput(
                f"{named} is passed over for {here}", field="runtime_env.py_modules", hint="start Ray in another folder"
            )


def state_settings(arguments: Mapping[str, Any]) -> Settings:
    """Settings of the owner of the state."""
    if other := sorted(arguments.keys() - _STATE_ARGUMENTS):
        raise InvalidInput("is not the state owner's", field=other[0], hint="give it to the application hindcast")
    return cluster_settings({**arguments, "http": {"host": "127.0.0.1"}})


def cluster_settings(arguments: Mapping[str, Any]) -> Settings:
    """Settings of a server on a cluster: open to the network unless they say otherwise, so keys are needed.

    Serve writes `args` into its logs and shows them on its dashboard, so secrets are refused in them.
    """
    _no_secrets(arguments)
    _nothing_of_nodes(arguments)
    http = arguments.get("http", {})
    open_to_all = {"host": "0.0.0.0", **http} if isinstance(http, Mapping) else http
    settings = load_settings(**{**arguments, "http": open_to_all})
    for field, path in (("data", settings.data), ("security.keys_file", settings.security.keys_file)):
        if path is not None and not path.is_absolute():
            raise InvalidInput(
                f"{path} means another folder in every process", field=field, hint="give a path from the root, on every node"
            )
    return settings


def _group(arguments: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A group as far as it is one: `load_settings` refuses what is none."""
    given = arguments.get(name)
    return given if isinstance(given, Mapping) else {}


def _nothing_of_nodes(arguments: Mapping[str, Any]) -> None:
    for group, names in NODE_SETTINGS.items():
        for name in names:
            if name in _group(arguments, group):
                raise InvalidInput(
                    "is read when a node starts: it comes too late here",
                    field=f"{group}.{name}",
                    hint=f"set {_variable(group, name)} in every node's environment before Ray starts (see cluster.yaml)",
                )


def _variable(group: str, name: str) -> str:
    return f"HINDCAST_{group}__{name}".upper()


def holds_password(address: str) -> bool:
    """As `user:password@host`, or as a parameter, which Redis takes too. Any @ counts: rather one address too many."""
    return "@" in address or "password" in unquote(address.partition("?")[2]).lower()


def _no_secrets(arguments: Mapping[str, Any]) -> None:
    for group, name in (("ledger", "redis_url"), ("outbox", "webhook_url")):
        if holds_password(str(_group(arguments, group).get(name) or "")):
            raise InvalidInput(
                "Serve shows its arguments in logs and on the dashboard, and this address seems to hold a password",
                field=f"{group}.{name}",
                hint=f"set {_variable(group, name)} on every node instead",
            )
    if _group(arguments, "outbox").get("secret") is not None:
        raise InvalidInput(
            "Serve shows its arguments in logs and on the dashboard", field="outbox.secret", hint="use outbox.secret_file"
        )
