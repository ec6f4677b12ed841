"""A handler that reads a batch, answers that all was accepted, and keeps nothing: the ceiling."""

from __future__ import annotations

import gzip
from typing import Any

import msgspec


async def app(scope: Any, protocol: Any) -> None:
    """An RSGI application with the answers of the batch endpoint."""
    if scope.method == "GET":
        protocol.response_str(200, [("content-type", "application/json")], "{}")
        return
    body = await protocol()
    if scope.headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    content = msgspec.json.decode(body)
    events = content["events"] if isinstance(content, dict) else content
    answer = {
        "success": True,
        "accepted": len(events),
        "duplicates": 0,
        "rejected": 0,
        "results": [{"event_id": event["event_id"], "status": "accepted"} for event in events],
    }
    protocol.response_bytes(200, [("content-type", "application/json")], msgspec.json.encode(answer))
