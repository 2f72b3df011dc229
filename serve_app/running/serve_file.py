"""A Serve config file. `check_serve_file` says what is wrong with one and where; `serve_document` writes one from settings.
The text is read by `serve_reading`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.elasticity import (
    APPLICATION,
    CALLED_NEAR,
    DEPLOYMENTS,
    STATE_APPLICATION,
    deployment_names,
    deployment_options,
)
from serve_app.errors import InvalidInput
from serve_app.running.limits import request_limit_s
from serve_app.running.serve_reading import read_document, scaling_numbers
from serve_app.scaling import POLICY
from serve_app.served import NODE_SETTINGS, cluster_settings, holds_password, state_settings
from serve_app.settings import DeploymentsSettings, Settings

__all__ = ["IMPORT_PATH", "STATE_PATH", "ServeFile", "check_serve_file", "check_serve_text", "serve_document"]

IMPORT_PATH = "serve_app.served:application"
STATE_PATH = "serve_app.served:state"


@dataclass(frozen=True)
class ServeFile:
    """A file that holds. options: what each deployment runs under, the file's own words over our settings."""

    settings: Settings
    options: Mapping[str, Mapping[str, Any]]


def check_serve_file(path: Path) -> ServeFile:
    """Read a file; see `check_serve_text`."""
    try:
        text = path.read_text()
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", field=str(path)) from error
    return check_serve_text(text)


def check_serve_text(text: str) -> ServeFile:
    """Raise InvalidInput for the first key that Serve would pass over, value it would refuse, setting of ours that is wrong,
    or combination that would not work."""
    document = read_document(text)
    number, own = _only(document, IMPORT_PATH, APPLICATION)
    settings = _settings(cluster_settings, own, f"applications.{number}.args")
    _check_address(document, settings, number)
    out = {name: deployment_options(settings, name) for name in deployment_names(settings)}
    _override(out, own, f"applications.{number}", without="Ledger")
    _check_growth(settings, own, f"applications.{number}")
    number, state = _only(document, STATE_PATH, STATE_APPLICATION)
    owner = _settings(state_settings, state, f"applications.{number}.args")
    _check_state(state, own, f"applications.{number}")
    ledger = {"Ledger": deployment_options(owner, "Ledger")}
    _override(ledger, state, f"applications.{number}")
    return ServeFile(settings, {**out, **ledger})


def _only(document: Mapping[str, Any], import_path: str, name: str) -> tuple[int, Mapping[str, Any]]:
    found = [(n, one) for n, one in enumerate(document["applications"]) if one["import_path"] == import_path]
    if len(found) != 1:
        raise InvalidInput(f"one application must be {import_path}", field="applications", hint=f"name: {name}")
    number, own = found[0]
    if own.get("name") != name:
        raise InvalidInput(f"is {own.get('name')}", field=f"applications.{number}.name", hint=f"name it {name}")
    if own.get("logging_config") is not None:
        raise InvalidInput(
            "has no effect: every deployment has its own, without Serve's access log",
            field=f"applications.{number}.logging_config",
            hint="give it to the deployments it is for",
        )
    return number, own


def _check_state(state: Mapping[str, Any], own: Mapping[str, Any], path: str) -> None:
    """The owner of the state must own what the others use, and takes no HTTP."""
    given, served = state.get("args") or {}, own.get("args") or {}
    for name in ("data", "ledger"):
        if given.get(name) != served.get(name):
            raise InvalidInput(
                f"is {given.get(name)}, and the other application's is {served.get(name)}",
                field=f"{path}.args.{name}",
                hint="say the same in both, with a YAML anchor",
            )
    if state.get("route_prefix", "/") is not None:
        raise InvalidInput("the owner of the state takes no HTTP", field=f"{path}.route_prefix", hint="route_prefix: null")


def _settings(read: Callable[[Mapping[str, Any]], Settings], own: Mapping[str, Any], path: str) -> Settings:
    arguments = own.get("args") or {}
    if "data" not in arguments:
        raise InvalidInput("where is the data folder?", field=f"{path}.data", hint="a path that every node can read")
    try:
        return read(arguments)
    except InvalidInput as error:
        raise InvalidInput(error.message, field=f"{path}.{error.field}", hint=error.hint) from error


def _check_address(document: Mapping[str, Any], settings: Settings, number: int) -> None:
    """Serve binds `http_options`; ours decide whether keys are needed. They must say the same."""
    http = document.get("http_options") or {}
    for name, own in (("host", settings.http.host), ("port", settings.http.port)):
        if http.get(name) != own:
            raise InvalidInput(
                f"says {http.get(name)}, and applications.{number}.args.http.{name} is {own}",
                field=f"http_options.{name}",
                hint="say the same in both places",
            )
    limit = http.get("request_timeout_s")
    if limit is None or limit < request_limit_s(settings):
        raise InvalidInput(
            f"is {limit}; Serve must wait longer than our own budgets",
            field="http_options.request_timeout_s",
            hint=f"{request_limit_s(settings):g} or more",
        )
    if settings.ledger.backend == "sqlite" and document.get("proxy_location", "EveryNode") == "EveryNode":
        raise InvalidInput(
            "a SQLite file belongs to one host, and proxies on every node mean several",
            field=f"applications.{number}.args.ledger.backend",
            hint="backend: redis; or proxy_location: HeadOnly on a cluster of one node",
        )


# A key of `deployments`, and our word for it.
_SAME_AS = (
    ("max_ongoing_requests", "max_ongoing"),
    ("max_queued_requests", "max_queued"),
    ("graceful_shutdown_timeout_s", "drain_s"),
    ("ray_actor_options.num_cpus", "cpus"),
    ("num_replicas", "min_replicas"),
    ("num_replicas", "max_replicas"),
    ("autoscaling_config.min_replicas", "min_replicas"),
    ("autoscaling_config.max_replicas", "max_replicas"),
    ("autoscaling_config.target_ongoing_requests", "target_ongoing"),
    ("autoscaling_config.upscale_delay_s", "upscale_delay_s"),
    ("autoscaling_config.downscale_delay_s", "downscale_delay_s"),
    ("autoscaling_config.look_back_period_s", "look_back_s"),
)


def _override(out: dict[str, dict[str, Any]], own: Mapping[str, Any], path: str, without: str = "") -> None:
    """Put the file's own words over our settings. without: a deployment that another application has."""
    names = [name for name in out if name != without]
    for number, override in enumerate(own.get("deployments", [])):
        name, where = override["name"], f"{path}.deployments.{number}"
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise InvalidInput(
                f"this application has no deployment {name}",
                field=f"{where}.name",
                hint=f"did you mean {near[0]}?" if near else ", ".join(names),
            )
        _check_once(override, own.get("args") or {}, where)
        if name in CALLED_NEAR:
            _check_policy(override, where)
        scaled = {"num_replicas", "autoscaling_config"}
        kept = {key: value for key, value in out[name].items() if key not in scaled or not scaled & override.keys()}
        out[name] = {**kept, **{key: value for key, value in override.items() if key != "name"}}
        if name == "Ledger" and (out[name].get("num_replicas") != 1 or out[name].get("max_surge_percent")):
            raise InvalidInput(
                "one process owns the state: one replica, and its successor starts when it has gone",
                field=where,
                hint="num_replicas: 1 and max_surge_percent: 0, or leave both out",
            )


def _check_once(override: Mapping[str, Any], given: Mapping[str, Any], path: str) -> None:
    """A number may stand in `args.deployments` (given) or in `deployments`; in both places it must be the same."""
    group = DEPLOYMENTS[override["name"]]
    own = (given.get("deployments") or {}).get(group) or {}
    here = {key: value for key, value in override.items() if value is not None}
    if "autoscaling_config" in override and "num_replicas" not in here:
        here.setdefault("autoscaling_config", {})  # null: no scaling, whatever our settings say
    for key, field in _SAME_AS:
        whole, _, part = key.rpartition(".")
        if field not in own or (whole or part) not in here:
            continue
        # A dictionary replaces the one made of our settings: what it leaves out is not taken from them.
        said = here[whole].get(part) if whole else here[part]
        if said != own[field]:
            raise InvalidInput(
                f"is {'left out' if said is None else said}, and args.deployments.{group}.{field} says {own[field]}",
                field=f"{path}.{key}",
                hint="say it in one place, or the same in both",
            )


def _check_policy(override: Mapping[str, Any], path: str) -> None:
    """A file's scaling replaces that of our settings, and the policy with it."""
    scaling = override.get("autoscaling_config")
    if scaling is None and override.get("num_replicas") != "auto":
        return
    policy = {"policy_function": POLICY}
    if (scaling or {}).get("policy") != policy:
        raise InvalidInput(
            "Serve's own policy does not see calls over local sockets: this deployment would never grow",
            field=f"{path}.autoscaling_config.policy",
            hint=f"policy: {{policy_function: {POLICY}}}",
        )


def _check_growth(settings: Settings, own: Mapping[str, Any], path: str) -> None:
    """No policy over those of the deployments; and what our settings refuse of an ingress, the file may not say either."""
    if own.get("autoscaling_policy") is not None:
        raise InvalidInput(
            "would be asked instead of the deployments' own policies", field=f"{path}.autoscaling_policy", hint="remove it"
        )
    for number, override in enumerate(own.get("deployments", [])):
        if override["name"] != "Ingress" or override.get("autoscaling_config") is None:
            continue
        scaling = scaling_numbers(override["autoscaling_config"])
        numbers = {
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing": scaling.target_ongoing_requests or math.inf,  # null: nothing is ever above it
        }
        deployments = settings.deployments
        ingress = deployments.ingress.model_copy(update=numbers)
        changed = settings.model_copy(update={"deployments": deployments.model_copy(update={"ingress": ingress})})
        try:
            changed.checked()
        except InvalidInput as error:
            where = f"{path}.deployments.{number}.autoscaling_config.target_ongoing_requests"
            raise InvalidInput(error.message, field=where, hint=error.hint) from error


def serve_document(settings: Settings) -> dict[str, Any]:
    """The Serve config of a cluster under `settings`, every deployment's numbers spelt out: those may be changed and
    deployed again without a replica being replaced. Secrets and what nodes read when they start stay in the environment."""
    arguments = settings.model_dump(mode="json", exclude_unset=True, exclude={"deployments", "testing", "tracing"})
    http = {name: value for name, value in arguments.get("http", {}).items() if name not in NODE_SETTINGS["http"]}
    arguments["http"] = {**http, "host": settings.http.host, "port": settings.http.port}
    # What Serve has no word for stays with our settings.
    defaults = DeploymentsSettings()
    threads = {
        group: {"threads": getattr(settings.deployments, group).threads}
        for group in DEPLOYMENTS.values()
        if getattr(settings.deployments, group).threads != getattr(defaults, group).threads
    }
    if threads:
        arguments["deployments"] = threads
    for group, name in (("ledger", "redis_url"), ("outbox", "webhook_url")):
        if holds_password(arguments.get(group, {}).get(name) or ""):
            del arguments[group][name]
    arguments.get("outbox", {}).pop("secret", None)
    return {
        "proxy_location": "EveryNode" if settings.ledger.backend == "redis" else "HeadOnly",
        "http_options": {
            "host": settings.http.host,
            "port": settings.http.port,
            "request_timeout_s": request_limit_s(settings),
        },
        "applications": [
            {
                "name": STATE_APPLICATION,
                "route_prefix": None,
                "import_path": STATE_PATH,
                "args": {name: arguments[name] for name in ("data", "ledger") if name in arguments},
                "deployments": [{"name": "Ledger", **deployment_options(settings, "Ledger")}],
            },
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": arguments,
                "deployments": [
                    {"name": name, **deployment_options(settings, name)}
                    for name in deployment_names(settings)
                    if name != "Ledger"
                ],
            },
        ],
    }
