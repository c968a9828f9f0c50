"""How many cases a fuzz test tries: `make fuzz` multiplies them."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

FACTOR = int(os.environ.get("BINEP_FUZZ", "1"))


def cases(number: int) -> settings:
    """Settings of a fuzz test that tries so many cases in `make test`."""
    return settings(max_examples=number * FACTOR, suppress_health_check=list(HealthCheck))
