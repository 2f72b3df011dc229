"""The text of a Serve config file, read strictly: YAML keeps the last of two equal keys, and Serve passes over keys it does
not know, at every level."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from serve_app.errors import InvalidInput, plain_words

__all__ = ["read_document", "scaling_numbers"]


def read_document(text: str) -> Mapping[str, Any]:
    """Raise InvalidInput for the first key that is said twice or that Serve would pass over, or value it would refuse."""
    from ray.serve.schema import ServeDeploySchema

    try:
        document = yaml.load(text, _NoKeyTwice)
    except yaml.YAMLError as error:
        raise InvalidInput(f"is not YAML: {str(error).splitlines()[0]}", field="file") from error
    _check_keys(document, ServeDeploySchema, "")
    with _refusing(ServeDeploySchema):
        ServeDeploySchema.model_validate(document)
    # These it takes as they come, and reads them when it deploys.
    for number, application in enumerate(document["applications"]):
        for place, deployment in enumerate(application.get("deployments", [])):
            scaling = deployment.get("autoscaling_config")
            if scaling is not None:
                scaling_numbers(scaling, f"applications.{number}.deployments.{place}.autoscaling_config")
    return dict(document)


def scaling_numbers(given: Mapping[str, Any], path: str = "") -> Any:
    """Serve's AutoscalingConfig of a file's `autoscaling_config`."""
    from ray.serve.config import AutoscalingConfig

    with _refusing(AutoscalingConfig, path):
        return AutoscalingConfig.model_validate(dict(given))


class _NoKeyTwice(yaml.SafeLoader):
    """Looks at a mapping as it is written: what `<<` brings is put into it later."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            said, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if said in lines:
                raise InvalidInput(
                    f"is said in line {lines[said]} and again in line {line}, and only the last would count",
                    field=str(key.value),
                    hint="say it once",
                )
            lines[said] = line
        return node


@contextmanager
def _refusing(kind: type[BaseModel], path: str = "") -> Iterator[None]:
    """Values that a type of Serve's refuses are InvalidInput; so is a policy that it cannot import."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ([path] if path else []) + list(first["loc"])) or "file"
        raise InvalidInput(plain_words(str(first["msg"])), field=where, hint=f"see Ray's {kind.__name__}") from error
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput(
            f"Serve cannot read it: {error}", field=path or "file", hint=f"see Ray's {kind.__name__}"
        ) from error


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
