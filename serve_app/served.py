"""What `serve deploy` builds: `import_path: serve_app.served:application`, with our settings tree as its `args`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve import Application

from serve_app.errors import InvalidInput
from serve_app.settings import Settings, load_settings

__all__ = ["application", "cluster_settings"]


def application(arguments: dict[str, Any]) -> Application:
    """The graph of a cluster. InvalidInput names the wrong setting; Serve shows it as the reason of a failed deploy."""
    from serve_app.application import build_application

    return build_application(cluster_settings(arguments))


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
