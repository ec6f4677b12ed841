"""What a trigger reports about one run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class TriggerReport:
    """Outcome of one trigger run.

    Attributes
    ----------
    queued : Counter
        Mails newly queued, by type.
    recorded : Counter
        Ledger rows newly written (alerts, onboarding steps), by kind.
    skipped : Counter
        What called for a mail and got none, by reason.
    """

    queued: Counter[str] = field(default_factory=Counter)
    recorded: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)

    def as_metadata(self) -> dict[str, Any]:
        """Totals and breakdowns, as plain values."""
        return {
            "mails_queued": self.queued.total(),
            "mails_queued_by_type": dict(self.queued),
            "recorded": dict(self.recorded),
            "skipped_by_reason": dict(self.skipped),
        }
