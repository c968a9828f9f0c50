"""How many cases a fuzz test tries (`make fuzz`: more of them), and how long each may take."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from hypothesis import HealthCheck, settings

FACTOR = int(os.environ.get("BINEP_FUZZ", "1"))
SECONDS = 60
"""Each case takes far less, also beside other work: what takes more waits for something."""


def cases(number: int) -> settings:
    """Settings of a fuzz test that tries so many cases in `make test`."""
    return settings(max_examples=number * FACTOR, suppress_health_check=list(HealthCheck))


@contextlib.contextmanager
def time_limit(seconds: int = SECONDS) -> Iterator[None]:
    """A context that fails where it is not left in time."""

    def late(*_: object) -> None:
        raise AssertionError(f"hangs for {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
