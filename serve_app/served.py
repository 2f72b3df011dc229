"""What `serve deploy` builds, with our settings tree as `args`: `serve_app.served:application`, and beside it the owner of
the state, `serve_app.served:state`, which stays as it is while the other is updated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve import Application

from serve_app.errors import InvalidInput
from serve_app.settings import Settings, load_settings

__all__ = ["STATE_ARGUMENTS", "application", "cluster_settings", "state"]

STATE_ARGUMENTS = frozenset({"data", "ledger", "deployments", "logs", "tracing"})


def application(arguments: dict[str, Any]) -> Application:
    """The graph of a cluster. InvalidInput names the wrong setting; Serve shows it as the reason of a failed deploy."""
    from ray import serve

    from serve_app.application import STATE_APPLICATION, build_application

    settings = cluster_settings(arguments)
    # The two are built side by side; a handle waits for replicas that are not there yet.
    state = serve.get_deployment_handle("Ledger", STATE_APPLICATION, _check_exists=False)
    return build_application(settings, state=state)


def state(arguments: dict[str, Any]) -> Application:
    """The owner of the state: `data`, `ledger` and `deployments.ledger` of the settings. It takes no HTTP."""
    from serve_app.application import build_state

    if other := sorted(arguments.keys() - STATE_ARGUMENTS):
        raise InvalidInput("is not the state owner's", field=other[0], hint="give it to the application hindcast")
    return build_state(cluster_settings({**arguments, "http": {"host": "127.0.0.1"}}))


def cluster_settings(arguments: Mapping[str, Any]) -> Settings:
    """Settings of a server on a cluster: open to the network unless they say otherwise, so keys are needed.

    Serve writes `args` into its logs and shows them on its dashboard, so secrets are refused in them.
    """
    _no_secrets(arguments)
    settings = load_settings(**{**arguments, "http": {"host": "0.0.0.0", **arguments.get("http", {})}})
    for field, path in (("data", settings.data), ("security.keys_file", settings.security.keys_file)):
        if path is not None and not path.is_absolute():
            raise InvalidInput(
                f"{path} means another folder in every process", field=field, hint="give a path from the root, on every node"
            )
    return settings


def _no_secrets(arguments: Mapping[str, Any]) -> None:
    redis_url = str((arguments.get("ledger") or {}).get("redis_url") or "")
    if "@" in redis_url:
        raise InvalidInput(
            "Serve shows its arguments in logs and on the dashboard, and this address holds a password",
            field="ledger.redis_url",
            hint="set HINDCAST_LEDGER__REDIS_URL on every node instead",
        )
    if (arguments.get("outbox") or {}).get("secret") is not None:
        raise InvalidInput(
            "Serve shows its arguments in logs and on the dashboard", field="outbox.secret", hint="use outbox.secret_file"
        )
