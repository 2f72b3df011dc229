"""The documentation page: the OpenAPI document as one HTML page that needs no network and no script."""

from __future__ import annotations

import html
import json
from typing import Any

__all__ = ["docs_page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }
h1 { margin-bottom: 0 } h2 { margin: 2.2rem 0 .4rem; border-bottom: 1px solid #d5dbe3; padding-bottom: .2rem }
summary { cursor: pointer; padding: .35rem 0 } summary b { display: inline-block; width: 4.2rem; color: #0a6b5d }
code, pre { font: 13px/1.45 ui-monospace, monospace; background: #f3f5f8; border-radius: 4px }
code { padding: .1rem .25rem } pre { padding: .7rem; overflow: auto }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0 }
td:first-child { white-space: nowrap } .dim { color: #66717f }
"""


def docs_page(document: dict[str, Any]) -> str:
    """HTML for an OpenAPI document made by `serve_app.ingress.calls.openapi_of`."""
    schemas = document["components"]["schemas"]
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).append(_operation(method, path, operation, schemas))
    info = document["info"]
    body = "".join(f"<h2>{html.escape(name)}</h2>{''.join(parts)}" for name, parts in groups.items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(info['title'])}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(info['title'])}</h1>"
        f"<p>{html.escape(info['description'])} <a href='/openapi.json'>OpenAPI</a>, version "
        f"<code>{html.escape(info['version'])}</code></p>{body}</html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    parts = [
        f"<p>{html.escape(one['name'])}: {html.escape(one['description'])}</p>" for one in operation.get("parameters", [])
    ]
    if "description" in operation:
        parts.append(f"<p>{html.escape(operation['description'])}</p>")
    asked = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if asked is not None:
        schema = _resolve(asked["schema"], schemas)
        for example in schema.get("examples", [])[:1]:
            text = html.escape(json.dumps(example, ensure_ascii=False))
            parts.append(f"<pre>curl -s -X {method.upper()} -H 'Content-Type: application/json' \\\n  -d '{text}' ")
            parts.append(f"http://HOST:PORT{html.escape(path)}</pre>")
        parts.append(f"<h4>Body</h4>{_fields(schema, schemas)}")
    answer = operation["responses"].get("200", {}).get("content", {}).get("application/json")
    if answer is not None:
        parts.append(f"<h4>Answer</h4>{_fields(_resolve(answer['schema'], schemas), schemas)}")
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{html.escape(path)}</code> "
        f"<span class=dim>{html.escape(operation['summary'])}</span></summary>{''.join(parts)}</details>"
    )


def _resolve(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    found: dict[str, Any] = schemas[reference.rsplit("/", 1)[1]] if reference else schema
    return found


def _fields(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    rows = []
    needed = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        flag = "" if name in needed else " <span class=dim>optional</span>"
        text = html.escape(field.get("description", ""))
        rows.append(f"<tr><td><code>{html.escape(name)}</code>{flag}<td>{_type(field, schemas)}<td>{text}")
    return f"<table>{''.join(rows)}</table>" if rows else f"<p>{html.escape(schema.get('description', ''))}</p>"


def _type(field: dict[str, Any], schemas: dict[str, Any]) -> str:
    if "$ref" in field:
        return html.escape(str(field["$ref"]).rsplit("/", 1)[1])
    if "anyOf" in field:
        return " or ".join(_type(one, schemas) for one in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}), schemas)}"
    if "enum" in field:
        return html.escape(", ".join(map(str, field["enum"])))
    return html.escape(str(field.get("type", "any")))
