"""How often each test kills: a few times by `make test`, over three hundred times by `make test-faults`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ingest.kill_at import POINTS

_NAMED = 1, 3
_RANDOM = {
    # test: (short, long)
    "server": (2, 40),
    "workers": (2, 40),
    "loader": (2, 40),
    "warehouse and loader": (2, 40),
    "tiny segments": (2, 40),
    "postgres": (2, 40),
}
LONG_KILLS = _NAMED[1] * len(POINTS) + sum(long for _, long in _RANDOM.values())


def _forms(short: int, long: int) -> list[Any]:
    return [short, pytest.param(long, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])]


NAMED_ROUNDS = _forms(*_NAMED)
RANDOM_KILLS = {name: _forms(*forms) for name, forms in _RANDOM.items()}
