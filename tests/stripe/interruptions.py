"""What can come between a usage sync and its end: kills, timeouts, refusals, lost answers.

Belongs here: making one happen. Does not belong here: what must hold afterwards.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

from tests.stripe.sync_process import start_sync
from tests.stripe.usage_world import UsageWorld

_EVENTS = "/v1/billing/meter_events$"
_ANY = "/v1/billing/meter"
# Longer than the client of these tests waits.
_TOO_LONG = 0.8
_HELD = 0.5
_END = 60.0


@dataclass
class Interruptions:
    """Interrupts one sync after another; `happened` counts what came about, by kind."""

    world: UsageWorld
    chance: random.Random
    happened: Counter[str] = field(default_factory=Counter)

    def interrupt_a_sync(self) -> None:
        """Let a sync run into something, and leave nothing of it running."""
        kind = self.chance.choice(
            [
                self._kill_in_a_call,
                self._kill_in_a_call,
                self._kill_anywhere,
                self._wrong_answers,
                self._wrong_answers,
            ]
        )
        kind()
        for plan in self.world.sandbox.faults():
            self.happened[_name(plan)] += plan["happened"]
        self.world.sandbox.no_faults()

    def _kill_in_a_call(self) -> None:
        """While Stripe has not begun, or has done it, or will do it although nobody waits any more."""
        done, status = self.chance.choice([("before", 500), ("before", 0), ("after", 0)])
        self.world.sandbox.fault(
            _EVENTS, when=done, status=status, seconds=_HELD, times=1, skip=self.chance.randrange(25)
        )
        process = start_sync(self.world.settings, self.world.clock.now())
        deadline = time.monotonic() + _END
        while process.is_alive() and not self.world.sandbox.faults()[0]["happened"]:
            assert time.monotonic() < deadline, "the sync never ended"
            time.sleep(0.01)
        self._kill(process, f"killed {done} a call was done")
        time.sleep(_HELD)

    def _kill_anywhere(self) -> None:
        process = start_sync(self.world.settings, self.world.clock.now())
        process.join(self.chance.random() * 0.6)
        self._kill(process, "killed anywhere")

    def _wrong_answers(self) -> None:
        """Timeouts, refusals, failures and cut connections, before or after the event was taken."""
        for _ in range(self.chance.randrange(1, 3)):
            status, seconds = self.chance.choice(
                [(0, _TOO_LONG), (429, 0.0), (500, 0.0), (503, 0.0), (0, 0.0)]
            )
            self.world.sandbox.fault(
                self.chance.choice([_EVENTS, _ANY]), when=self.chance.choice(["before", "after"]),
                status=status, seconds=seconds, share=self.chance.choice([0.1, 0.5, 1.0]),
                times=5 if seconds else 40, seed=self.chance.randrange(1_000),
            )  # fmt: skip
        process = start_sync(self.world.settings, self.world.clock.now())
        if self.chance.random() < 0.3:
            process.join(self.chance.random())
            self._kill(process, "killed among wrong answers")
        process.join(_END)
        assert process.exitcode is not None, "the sync never ended"
        # What Stripe still holds is done before hours go by: nothing is on its way for a day.
        time.sleep(_TOO_LONG)

    def _kill(self, process: BaseProcess, how: str) -> None:
        if process.is_alive():
            process.kill()
            self.happened[how] += 1
        process.join(_END)


def _name(plan: dict[str, object]) -> str:
    what = plan["status"] or ("slow" if plan["seconds"] else "cut")
    return f"{what} {plan['when']} it was done"
