"""The API's documentation as a page without scripts. FastAPI's own page loads them from another server."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code,pre{font-family:ui-monospace,monospace}pre{overflow:auto;padding:.5rem;border:1px solid #8886}"
    "td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0}"
)


def page(schema: Mapping[str, Any]) -> str:
    """The OpenAPI description of the routes as HTML."""
    parts = schema.get("components", {}).get("schemas", {})
    routes = [
        _route(method, path, operation, parts)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    info = schema["info"]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}</title><style>{STYLE}</style>"
        f"<h1>{escape(info['title'])}</h1><p>{escape(info['description'])} "
        f"Machine-readable: <a href=openapi.json>openapi.json</a>.</p>{''.join(routes)}</html>"
    )


def _route(method: str, path: str, operation: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    answers = "".join(
        f"<tr><td><code>{escape(status)}</code><td>{escape(answer['description'])}"
        for status, answer in operation["responses"].items()
    )
    bodies = "".join(
        f"<p>Body: <code>{escape(kind)}</code></p>{_fields(_found(body['schema'], parts), parts)}"
        for kind, body in operation.get("requestBody", {}).get("content", {}).items()
    )
    title = f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
    return f"{title}{bodies}<table>{answers}</table>"


def _fields(schema: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in required else ''}"
        f"<td><code>{escape(_kind(field))}</code><td>{escape(field.get('description', ''))}"
        + "".join(_fields(parts[inner], parts) for inner in _inner(field))
        for name, field in schema.get("properties", {}).items()
    )
    examples = "".join(f"<pre>{escape(json.dumps(one, indent=2))}</pre>" for one in schema.get("examples", []))
    return f"<table>{rows}</table>{examples}"


def _inner(field: Mapping[str, Any]) -> list[str]:
    """Names of the schemas that a field refers to, itself or in its items."""
    found = [one.get("items", one) for one in field.get("anyOf", [field])]
    return [one["$ref"].rpartition("/")[2] for one in found if "$ref" in one]


def _found(schema: Mapping[str, Any], parts: Mapping[str, Any]) -> Mapping[str, Any]:
    return parts[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _kind(field: Mapping[str, Any]) -> str:
    """Type, range and default of a field."""
    choices = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
    words = [
        " | ".join(map(json.dumps, one["enum"])) if "enum" in one else one.get("type", "object") for one in choices
    ]
    ranges = [
        f"{sign} {one[name]}"
        for one in choices
        for name, sign in (("minimum", "≥"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if name in one
    ]
    default = [f"= {json.dumps(field['default'])}"] if field.get("default") is not None else []
    return " ".join([*filter(None, words), *ranges, *default])
