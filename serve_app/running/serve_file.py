"""A Serve config file, read strictly: Serve itself passes over keys it does not know, at every level.

`check_serve_file` says what is wrong with a file and where; `serve_document` writes one from settings.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from serve_app.elasticity import APPLICATION, DEPLOYMENTS, STATE_APPLICATION, deployment_names, deployment_options
from serve_app.errors import InvalidInput, plain_words
from serve_app.running.limits import request_limit_s
from serve_app.served import STATE_ARGUMENTS, cluster_settings
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
    from ray.serve.schema import ServeDeploySchema

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"is not YAML: {str(error).splitlines()[0]}", field="file") from error
    _check_keys(document, ServeDeploySchema, "")
    try:
        ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise InvalidInput(plain_words(str(first["msg"])), field=where, hint="see Ray's ServeDeploySchema") from error
    number, own = _only(document, IMPORT_PATH, APPLICATION)
    settings = _settings(own, f"applications.{number}.args")
    _check_address(document, settings, number)
    out = {name: deployment_options(settings, name) for name in deployment_names(settings)}
    _override(out, own, f"applications.{number}", without="Ledger")
    number, state = _only(document, STATE_PATH, STATE_APPLICATION)
    _check_state(state, own, f"applications.{number}")
    ledger = {"Ledger": out["Ledger"]}
    _override(ledger, state, f"applications.{number}")
    return ServeFile(settings, {**out, **ledger})


def _only(document: Mapping[str, Any], import_path: str, name: str) -> tuple[int, Mapping[str, Any]]:
    found = [(n, one) for n, one in enumerate(document["applications"]) if one["import_path"] == import_path]
    if len(found) != 1:
        raise InvalidInput(f"one application must be {import_path}", field="applications", hint=f"name: {name}")
    number, own = found[0]
    if own.get("name") != name:
        raise InvalidInput(f"is {own.get('name')}", field=f"applications.{number}.name", hint=f"name it {name}")
    return number, own


def _check_state(state: Mapping[str, Any], own: Mapping[str, Any], path: str) -> None:
    """The owner of the state must own what the others use, and takes no HTTP."""
    given, served = state.get("args") or {}, own.get("args") or {}
    if other := sorted(given.keys() - STATE_ARGUMENTS):
        raise InvalidInput("is not the state owner's", field=f"{path}.args.{other[0]}", hint="remove it")
    for name in ("data", "ledger"):
        if given.get(name) != served.get(name):
            raise InvalidInput(
                f"is {given.get(name)}, and the other application's is {served.get(name)}",
                field=f"{path}.args.{name}",
                hint="say the same in both, with a YAML anchor",
            )
    if state.get("route_prefix", "/") is not None:
        raise InvalidInput("the owner of the state takes no HTTP", field=f"{path}.route_prefix", hint="route_prefix: null")


def _check_keys(value: Any, kind: Any, path: str) -> None:
    """Walk a document beside the type that Serve reads it as."""
    models = [one for one in _members(kind) if isinstance(one, type) and issubclass(one, BaseModel)]
    if models and isinstance(value, dict):
        fields = {name: field for model in models for name, field in model.model_fields.items()}
        for key, inner in value.items():
            if key not in fields:
                near = difflib.get_close_matches(str(key), fields, 1)
                raise InvalidInput(
                    "Ray Serve knows no such key, and would pass over it",
                    field=f"{path}{key}",
                    hint=f"did you mean {near[0]}?" if near else "known here: " + ", ".join(sorted(fields)),
                )
            _check_keys(inner, fields[key].annotation, f"{path}{key}.")
    elif isinstance(value, list):
        for member in _members(kind):
            if get_origin(member) is list:
                for number, inner in enumerate(value):
                    _check_keys(inner, get_args(member)[0], f"{path}{number}.")


def _members(kind: Any) -> Iterator[Any]:
    """The types of a union; the type itself otherwise."""
    if get_origin(kind) in (Union, types.UnionType):
        for one in get_args(kind):
            yield from _members(one)
    else:
        yield kind


def _settings(own: Mapping[str, Any], path: str) -> Settings:
    arguments = own.get("args") or {}
    if "data" not in arguments:
        raise InvalidInput("where is the data folder?", field=f"{path}.data", hint="a path that every node can read")
    try:
        return cluster_settings(arguments)
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


_SAME_AS = {
    "max_ongoing_requests": "max_ongoing",
    "max_queued_requests": "max_queued",
    "graceful_shutdown_timeout_s": "drain_s",
}


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
    for key, field in _SAME_AS.items():
        if key in override and own.get(field, override[key]) != override[key]:
            raise InvalidInput(
                f"is {override[key]}, and args.deployments.{group}.{field} says {own[field]}",
                field=f"{path}.{key}",
                hint="say it in one place",
            )


def serve_document(settings: Settings) -> dict[str, Any]:
    """The Serve config of a cluster under `settings`, every deployment's numbers spelt out: those may be changed and
    deployed again without a replica being replaced. Secrets stay in the environment."""
    arguments = settings.model_dump(mode="json", exclude_unset=True, exclude={"deployments", "testing"})
    # What Serve has no word for stays with our settings.
    defaults = DeploymentsSettings()
    threads = {
        group: {"threads": getattr(settings.deployments, group).threads}
        for group in DEPLOYMENTS.values()
        if getattr(settings.deployments, group).threads != getattr(defaults, group).threads
    }
    if threads:
        arguments["deployments"] = threads
    if "@" in (settings.ledger.redis_url or ""):
        del arguments["ledger"]["redis_url"]
    arguments.get("outbox", {}).pop("secret", None)
    arguments["http"] = {**arguments.get("http", {}), "host": settings.http.host, "port": settings.http.port}
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
