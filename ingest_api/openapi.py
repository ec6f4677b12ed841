"""The OpenAPI 3.1 document, made from the endpoints and the structs that their handlers decode and encode.

Belongs here: the form of the document. Does not belong here: any fact about an endpoint (`endpoints`), HTML
(`docs_page`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from inspect import cleandoc
from string import Template
from typing import Any

import msgspec

from ingest_api.endpoints import JSON, Answer, BodyForm, Endpoint, Problems, Security
from ingest_api.responses import ErrorBody

_REF = "#/components/schemas/{name}"
_INTRODUCTION = """\
Everything is JSON, times are UTC (ISO 8601). A request's id comes back in the header `X-Request-Id`: yours,
when you send one of at most 128 letters, digits and `._:=+/@-`, else one of ours.

Every error has the same envelope: `{"success": false, "error": {"code", "message", "request_id"}}`; codes
never change their meaning. 429 and 503 come with
`Retry-After` (seconds): send the same again, same `event_id`.

Besides the answers listed with each endpoint there are 404 (`not_found`) for other paths and 405
(`method_not_allowed`, with `Allow`) for other methods. What is no request in HTTP/1.1 gets 400
(`bad_request`), more headers than the server takes 431 (`head_too_large`). HEAD works wherever GET does."""
_SCHEMES = {
    Security.CUSTOMER_KEY: "API key of a customer (`apex keys issue CUSTOMER_ID`), as a bearer token. "
    "Usage events may carry it as `api_key` in the body instead; the header wins.",
    Security.OPERATOR_KEY: "API key of the operator (`apex keys issue --operator`), as a bearer token.",
    Security.CUSTOMER_TOKEN: "JSON Web Token (HS256) that names a customer (`apex customer token "
    "CUSTOMER_ID`), for reading that customer's own figures.",
}
_STATUS_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    429: {
        "Retry-After": {"description": "Seconds.", "schema": {"type": "string"}},
        "RateLimit-Limit": {"description": "How much fits at once.", "schema": {"type": "string"}},
        "RateLimit-Remaining": {"description": "How much fits now.", "schema": {"type": "string"}},
        "RateLimit-Reset": {"description": "Seconds.", "schema": {"type": "string"}},
        "RateLimit-Policy": {"description": "The key's limits.", "schema": {"type": "string"}},
    },
    503: {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}},
}
_INTERNAL = Problems(500, ("internal_error",), "The request failed on our side; the log knows its id.")
_ATTRIBUTES = re.compile(r"\n+Attributes\n-+\n")


def document(
    endpoints: Sequence[Endpoint], version: str, server_url: str, limits: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The document as plain data; `limits` says what each ``$name`` in its texts stands for."""
    schemas = _Schemas(endpoints)
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        for path in endpoint.paths:
            operation = _operation(endpoint, path, schemas, server_url)
            paths.setdefault(path, {})[endpoint.method.lower()] = _with_limits(operation, limits or {})
    return {
        "openapi": "3.1.0",
        "info": {"title": "ApexMediation API", "version": version, "description": _INTRODUCTION},
        "servers": [{"url": server_url}],
        "tags": [{"name": name} for name in dict.fromkeys(endpoint.group for endpoint in endpoints)],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "headers": {
                "X-Request-Id": {
                    "description": "The request's id.", "required": True, "schema": {"type": "string"},
                }
            },
            "securitySchemes": {
                name.value: {
                    "type": "http", "scheme": "bearer", "description": text,
                    **({"bearerFormat": "JWT"} if name is Security.CUSTOMER_TOKEN else {}),
                }
                for name, text in _SCHEMES.items()
            },
        },
    }  # fmt: skip


def curl(endpoint: Endpoint, form: BodyForm | None, server_url: str) -> str:
    """Shell lines that call an endpoint; they expect the key in ``$KEY``, the token in ``$TOKEN``."""
    if endpoint.curl is not None:
        return endpoint.curl.replace("{url}", server_url)
    parts = [f"curl -sS '{server_url}{endpoint.path}'"]
    if endpoint.security is not Security.NONE:
        held = "$TOKEN" if endpoint.security is Security.CUSTOMER_TOKEN else "$KEY"
        parts.append(f'-H "Authorization: Bearer {held}"')
    if form is not None:
        text = form.example if isinstance(form.example, str) else json.dumps(form.example, indent=2)
        quoted = text.rstrip("\n").replace("'", "'\\''").replace("$CUSTOMER", "'\"$CUSTOMER\"'")
        parts.append(f"-H 'Content-Type: {form.content_type}'")
        parts.append(f"--data-binary '{quoted}'")
    return " \\\n  ".join(parts)


class _Schemas:
    """JSON schemas of all structs that travel, by name, and references to them."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        taken = [form.shape for endpoint in endpoints for form in endpoint.bodies]
        taken += [endpoint.query for endpoint in endpoints if endpoint.query is not None]
        given = [answer.shape for endpoint in endpoints for answer in endpoint.answers]
        self._taken, taken_components = _generated(taken, {"type": "string", "format": "decimal"})
        self._given, given_components = _generated([*given, ErrorBody], None)
        for name in taken_components.keys() & given_components.keys():
            if taken_components[name] != given_components[name]:
                raise ValueError(f"{name} is taken in and given out in different forms; use two structs")
        self.components = {**taken_components, **given_components}

    def taken(self, shape: Any) -> dict[str, Any]:
        """Schema of what is in a request."""
        return self._taken[repr(shape)]

    def given(self, shape: Any) -> dict[str, Any]:
        """Schema of what is in an answer."""
        return self._given[repr(shape)]

    def parameters(self, query: Any) -> Iterator[dict[str, Any]]:
        """Parameters of a query that is decoded into the struct `query`."""
        schema = self.components[self.taken(query)["$ref"].rpartition("/")[2]]
        for name, described in schema["properties"].items():
            yield {
                "name": name,
                "in": "query",
                "required": name in schema.get("required", ()),
                "description": described.get("description", ""),
                "schema": described,
            }


def _generated(
    shapes: Sequence[Any], text_decimal: dict[str, Any] | None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Schemas of `shapes` by their repr, and the components that these refer to.

    Parameters
    ----------
    text_decimal : dict or None
        The form beside a number in which decimals travel; None: only as numbers.
    """
    schemas, components = msgspec.json.schema_components(shapes, ref_template=_REF)
    number: dict[str, Any] = {"type": "number"}
    decimal = number if text_decimal is None else {"anyOf": [number, text_decimal]}
    components = {name: _documented(_with_decimals(schema, decimal)) for name, schema in components.items()}
    found = {
        repr(shape): _with_decimals(schema, decimal) for shape, schema in zip(shapes, schemas, strict=True)
    }
    return found, components


def _with_decimals(schema: Any, decimal: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_with_decimals(item, decimal) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "decimal":
        return decimal
    return {name: _with_decimals(item, decimal) for name, item in schema.items()}


def _documented(schema: dict[str, Any]) -> dict[str, Any]:
    """Move what a struct's docstring says about its attributes to these."""
    purpose, *attributes = _ATTRIBUTES.split(cleandoc(schema.get("description", "")), maxsplit=1)
    if not purpose:
        return schema
    schema = {**schema, "description": _one_line(purpose)}
    properties = {name: dict(described) for name, described in schema.get("properties", {}).items()}
    for names, text in re.findall(r"(?m)^(\S[^:\n]*?) ?:.*\n((?:    .*\n?)+)", "".join(attributes) + "\n"):
        for name in names.split(", "):
            if name in properties:
                properties[name].setdefault("description", _one_line(text))
    return {**schema, "properties": properties} if properties else schema


def _with_limits(described: Any, limits: Mapping[str, str]) -> Any:
    if isinstance(described, list):
        return [_with_limits(item, limits) for item in described]
    if not isinstance(described, dict):
        return described
    return {
        name: Template(item).substitute(limits)
        if name in ("summary", "description") and isinstance(item, str)
        else _with_limits(item, limits)
        for name, item in described.items()
    }


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _operation(endpoint: Endpoint, path: str, schemas: _Schemas, server_url: str) -> dict[str, Any]:
    # Operation ids are unique in a document, so an alias needs its own.
    number = endpoint.paths.index(path)
    operation: dict[str, Any] = {
        "operationId": endpoint.name + (f"_alias{number}" if number else ""),
        "tags": [endpoint.group],
        "summary": endpoint.summary,
        "description": endpoint.description,
        "security": [] if endpoint.security is Security.NONE else [{endpoint.security.value: []}],
        "parameters": [
            *({"name": header.name, "in": "header", "required": True, "description": header.description,
               "schema": {"type": "string"}} for header in endpoint.headers),
            *(schemas.parameters(endpoint.query) if endpoint.query is not None else ()),
        ],
    }  # fmt: skip
    if endpoint.bodies:
        operation["requestBody"] = {
            "required": True,
            "content": {
                form.content_type: {"schema": schemas.taken(form.shape), "example": form.example}
                for form in endpoint.bodies
            },
        }
    operation["responses"] = dict(_responses(endpoint, schemas))
    operation["x-codeSamples"] = [
        {
            "lang": "Shell",
            "label": form.content_type if form is not None else "curl",
            "source": curl(endpoint, form, server_url),
        }
        for form in (endpoint.bodies or (None,))
    ]
    return operation


def _responses(endpoint: Endpoint, schemas: _Schemas) -> Iterator[tuple[str, dict[str, Any]]]:
    for answer in endpoint.answers:
        yield str(answer.status), _response(answer.meaning, answer.status, _content(answer, schemas))
    statuses: dict[int, list[Problems]] = {}
    for problems in (*endpoint.problems, _INTERNAL):
        statuses.setdefault(problems.status, []).append(problems)
    for status, group in sorted(statuses.items()):
        codes = list(dict.fromkeys(str(code) for problems in group for code in problems.codes))
        envelope = {
            "allOf": [
                schemas.given(ErrorBody),
                {"properties": {"error": {"properties": {"code": {"enum": codes}}}}},
            ]
        }
        meaning = " ".join(dict.fromkeys(problems.meaning for problems in group))
        yield str(status), _response(meaning, status, {JSON: {"schema": envelope}})


def _content(answer: Answer, schemas: _Schemas) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": schemas.given(answer.shape)}
    if answer.example is not None:
        media["example"] = answer.example
    return {answer.content_type: media}


def _response(meaning: str, status: int, content: dict[str, Any]) -> dict[str, Any]:
    headers = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
    return {
        "description": meaning,
        "headers": {**headers, **_STATUS_HEADERS.get(status, {})},
        "content": content,
    }
