"""The lock that keeps a second process off a data folder.

Belongs here: taking and releasing it. Does not belong here: what the folder holds.

The kernel drops an `flock` when its process dies, however it dies, so there is never a stale lock to remove.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType


class WarehouseLocked(RuntimeError):
    """Another process holds the data folder."""


class FolderLock:
    """Exclusive lock on `folder`, held until `release` or the end of the process.

    Raises
    ------
    WarehouseLocked
        At once, when another process holds it; the message names folder and process.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder.parent / f"{folder.name}.lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise WarehouseLocked(
                f"{folder} is already open in process {holder}: "
                "use that one, stop it, or set APEX_HOME to another folder"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        self._file.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
