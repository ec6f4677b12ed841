"""What the loader has done, in a small file beside the segments, from which the API's `/metrics` tells it.

Belongs here: the file and its fields. Does not belong here: Prometheus names (`exposition`).

The loader is another process than the API and listens nowhere; both know the spool folder. The file is
replaced in one step and never synced: after a power cut its counters may start over, which Prometheus allows
for. It is written after each landing and each failure, and by an idle loader once a second.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from apex_pipelines.platform.logging import get_logger

log = get_logger(__name__)

_NAME = "loader.json"


class LoaderStatus(msgspec.Struct):
    """Counters over all starts of the loader of one spool, and how it is now.

    Attributes
    ----------
    seconds : float
        Spent on landings that ended well, from decoding segments that were read to removing them.
    failures : int
        Rounds that failed and were repeated: looking into the spool, landing, removing what landed.
    unreadable : int
        Segments that can't be read now, which are left where they are and tried again. No failures.
    last_success_at : float or None
        When a landing ended well or nothing was left to land, in seconds since 1970-01-01 UTC. It stands
        while all that is left can't be read.
    """

    rows: int = 0
    segments: int = 0
    inserts: int = 0
    seconds: float = 0.0
    dead_letters: int = 0
    failures: int = 0
    unreadable: int = 0
    last_success_at: float | None = None


_decode = msgspec.json.Decoder(LoaderStatus).decode


def read_status(folder: Path) -> LoaderStatus | None:
    """The status of the loader of this spool; None when there is none that can be read."""
    try:
        return _decode((folder / _NAME).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("the loader's status can't be read", error=str(error))
        return None


def write_status(folder: Path, status: LoaderStatus) -> None:
    """Replace the status. A disk that takes no more is reported and holds nobody up."""
    temporary = folder / f"{_NAME}.writing"
    try:
        temporary.write_bytes(msgspec.json.encode(status))
        temporary.replace(folder / _NAME)
    except OSError as error:
        log.warning("the loader's status can't be written", error=str(error))
