"""A handler on the same server that reads the body and answers a constant: what nothing can surpass."""

from __future__ import annotations

from typing import Any

_ANSWER = b'{"success":true,"rejected":0}'


async def app(scope: Any, protocol: Any) -> None:
    """An RSGI application."""
    if scope.method == "POST":
        await protocol()
    protocol.response_bytes(200, [("content-type", "application/json")], _ANSWER)
