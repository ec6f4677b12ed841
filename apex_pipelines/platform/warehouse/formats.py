"""Content types of ClickHouse's output formats."""

from __future__ import annotations

_TEXT = "text/plain; charset=UTF-8"
_BINARY = frozenset(
    {"native", "parquet", "arrow", "arrowstream", "avro", "orc", "msgpack", "npy", "bsonaeachrow"}
)


def content_type(format_name: str) -> str:
    """Content type that a ClickHouse server sends with a result in this format."""
    name = format_name.lower()
    if name.startswith(("tabseparated", "tsv")):
        return "text/tab-separated-values; charset=UTF-8"
    if name.startswith("csv"):
        return f"text/csv; charset=UTF-8; header={'present' if 'withnames' in name else 'absent'}"
    if name == "jsoneachrowwithprogress" or (name.startswith("json") and name.endswith("eachrow")):
        return "application/x-ndjson; charset=UTF-8"
    if name.startswith("json"):
        return "application/json; charset=UTF-8"
    if name == "xml":
        return "application/xml; charset=UTF-8"
    if name in _BINARY or name.startswith(("rowbinary", "protobuf")):
        return "application/octet-stream"
    return _TEXT
