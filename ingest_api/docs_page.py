"""The documentation as a page: HTML made from the OpenAPI document, without scripts, self-contained.

Belongs here: what the page shows of the document. Does not belong here: what the document says (`openapi`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

_TEMPLATES = Path(__file__).parent / "templates"
_CODE = re.compile(r"`([^`]+)`")


def style() -> str:
    """The page's style sheet, which stands in the page."""
    return (_TEMPLATES / "docs.css").read_text(encoding="utf-8")


def content_security_policy() -> str:
    """The page's policy: its own style sheet, by its hash, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def render(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document of ours."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(prose=_prose, type_name=_type_name, pretty=_pretty)
    schemas = document["components"]["schemas"]
    return environment.get_template("docs.html.j2").render(
        document=document,
        groups=_groups(document),
        style=Markup(style()),  # noqa: S704 - our own file; escaping would change its hash
        fields=lambda schema: _fields(schema, schemas),
        shapes=lambda schema: _shapes(schema, schemas),
        codes=_codes,
    )


def _groups(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Operations by tag; aliases are named with the operation that they repeat."""
    groups: dict[str, list[dict[str, Any]]] = {tag["name"]: [] for tag in document["tags"]}
    by_id: dict[str, dict[str, Any]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            name, is_alias, _ = operation["operationId"].partition("_alias")
            if is_alias:
                by_id[name]["also"].append(path)
                continue
            by_id[name] = {"method": method.upper(), "path": path, "also": [], **operation}
            groups[operation["tags"][0]].append(by_id[name])
    return groups


def _shapes(schema: dict[str, Any], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    """The structs that a schema is, or may be one of."""
    if "$ref" in schema:
        return [schemas[schema["$ref"].rpartition("/")[2]]]
    if schema.get("type") == "array":
        return _shapes(schema["items"], schemas)
    found: list[dict[str, Any]] = []
    for part in schema.get("anyOf", ()):
        found.extend(shape for shape in _shapes(part, schemas) if shape not in found)
    return found


def _fields(shape: dict[str, Any], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a struct's table, those of structs within it after it, by dotted names."""
    rows = []
    for name, schema in shape.get("properties", {}).items():
        row = {"name": name, "schema": schema, "required": name in shape.get("required", ())}
        rows.append(row)
        for inner in _shapes(schema, schemas):
            dot = "[]." if schema.get("type") == "array" else "."
            rows.extend({**field, "name": name + dot + field["name"]} for field in _fields(inner, schemas))
    return rows


def _codes(response: dict[str, Any]) -> list[str]:
    """Error codes that an answer may carry."""
    for media in response["content"].values():
        for part in media["schema"].get("allOf", ()):
            found = part.get("properties", {}).get("error", {}).get("properties", {}).get("code", {})
            if "enum" in found:
                return list(found["enum"])
    return []


def _type_name(schema: dict[str, Any]) -> str:
    """A type in a few words, such as `string, at most 128 characters`."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        names = [_type_name(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(names))
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_type_name(schema['items'])}"
    name = "decimal as string" if schema.get("format") == "decimal" else str(schema.get("type", "any"))
    bounds = [
        words.format(schema[key])
        for key, words in (
            ("minimum", "from {}"), ("maximum", "to {}"), ("maxLength", "at most {} characters"),
            ("maxProperties", "at most {} keys"), ("pattern", "like {}"),
        )
        if key in schema
    ]  # fmt: skip
    return ", ".join([name, *bounds])


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2)


def _prose(text: str) -> Markup:
    """Text with `code` and blank lines between paragraphs."""
    paragraphs = [
        _CODE.sub(r"<code>\1</code>", str(escape(part))) for part in text.split("\n\n") if part.strip()
    ]
    return Markup("").join(Markup("<p>") + Markup(part) + Markup("</p>") for part in paragraphs)  # noqa: S704 - escaped above
