"""A process that drains the queue into the outbox folder, for tests that kill it.

Arguments: how many hand-overs to survive before it kills itself between hand-over and commit; -1 for never.
Prints `ready` when it begins.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from apex_pipelines.messaging.providers import Mail, SendResult
from apex_pipelines.messaging.providers.outbox import OutboxProvider
from apex_pipelines.messaging.queue import drain
from apex_pipelines.platform import postgres
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings


class SuicidalProvider(OutboxProvider):
    """Dies when the files are written and the database does not know it yet."""

    survives = -1

    def send(self, mails: Sequence[Mail]) -> list[SendResult]:
        results = super().send(mails)
        if self.survives == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.survives -= 1
        return results


def main() -> None:
    settings = Settings()
    provider = SuicidalProvider(settings.outbox_dir)
    provider.survives = int(sys.argv[1])
    engine = postgres.create_engine(settings)
    engine.connect().close()
    print("ready", flush=True)
    drain(engine, provider, clock_from_setting(settings.clock), settings=settings, batch_size=7)


if __name__ == "__main__":
    main()
