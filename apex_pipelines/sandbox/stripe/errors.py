"""What Stripe answers when it refuses.

Belongs here: the envelope of an error, and those that many objects share. Does not belong here: refusals
of one kind of object.
"""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """A request that is not done; becomes Stripe's error envelope.

    Parameters
    ----------
    status : int
        HTTP status.
    kind : str
        `type` of the envelope, such as `invalid_request_error`.
    changes_kept : bool
        Whether what the request had changed before stays, as after a declined card.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        changes_kept: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.changes_kept = changes_kept
        known = {"code": code, "message": message, "param": param, "type": kind, **more}
        self.body = {"error": {key: value for key, value in known.items() if value is not None}}

    @property
    def code(self) -> str | None:
        code: str | None = self.body["error"].get("code")
        return code


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """A request that can't be done as it is."""
    return Refusal(400, "invalid_request_error", message, code=code, param=param)


def missing(object_type: str, object_id: str, param: str = "id") -> Refusal:
    """No such object: 404 when the address names it, 400 when a parameter does."""
    return Refusal(
        404 if param == "id" else 400,
        "invalid_request_error",
        f"No such {object_type.rsplit('.', 1)[-1].replace('_', ' ')}: '{object_id}'",
        code="resource_missing",
        param=param,
    )
