"""Signals that ask work to end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def handled(names: Sequence[str], answer: Callable[[int, Any], None]) -> Iterator[None]:
    """A context in which signals are answered; one that is ignored, as under nohup, is left so.

    Args:
        names: of the signals; those that the system lacks are left out.
        answer: called with a signal's number and the handler that it had before.
    """
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {n: by for n, by in before.items() if by not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, lambda number, frame: answer(number, before[number]))
    try:
        yield
    finally:
        for number, by in before.items():
            signal.signal(number, by)
