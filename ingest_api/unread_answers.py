"""Ending connections whose clients take no data, which the HTTP server would keep for ever.

Belongs here: that one option of the kernel's. Does not belong here: slow headers and bodies (`server`,
`request_body`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")


def limit_unread_answers(port: int, seconds: float) -> bool:
    """Have the kernel cut off clients that let data wait for `seconds`, on this process's listener on `port`.

    The server makes its listener itself and hands it to nobody, so it is looked for. Connections inherit the
    option. On systems other than Linux there is nothing to set.

    Returns
    -------
    bool
        False while there is no listener yet.
    """
    if sys.platform != "linux":
        return True
    found = False
    for entry in os.listdir(_DESCRIPTORS):
        with contextlib.suppress(OSError):  # closed since it was listed
            found |= _limit_listener(int(entry), port, seconds)
    return found


def _limit_listener(descriptor: int, port: int, seconds: float) -> bool:
    # Files are not copied: a copy would stay open, and closing one would end our record locks on the file.
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as candidate:
        if not _listens(candidate, port):
            return False
        candidate.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
        return True


def _listens(candidate: socket.socket, port: int) -> bool:
    if candidate.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return bool(candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) and (
        candidate.getsockname()[1] == port
    )
