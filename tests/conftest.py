"""Settings of every test, and what all of them do without."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, register_random, settings

import binep.solvers  # noqa: F401 – as with the public names of `binep`, all solvers are there
from binep.runs import folder


def pytest_configure(config: pytest.Config) -> None:
    # Small networks flip much. tests/experiment/test_guards.py expects these warnings.
    config.addinivalue_line("filterwarnings", "ignore::binep.experiment.warnings.TrainingWarning")
    # A shell lets its background jobs ignore some signals, and with them all that they start.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(number, usual)


class TorchRandom:
    """PyTorch's numbers, which hypothesis then seeds for each example as it does `random`'s."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> Any:
        return torch.get_rng_state()

    def setstate(self, state: Any) -> None:
        torch.set_rng_state(state)


torch_random = TorchRandom()  # hypothesis holds no more than a weak reference
register_random(torch_random)


@pytest.fixture(autouse=True)
def _alike() -> Iterator[None]:
    """A test draws the same numbers whatever ran before it, and leaves PyTorch one thread.

    Two, beside the tests of another process, take three times as long.
    """
    torch.manual_seed(0)
    yield
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert threads == 1


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a test draw no curves, which takes a second each, unless it is marked `curves`.

    Runs of a fixture that several tests share come before this, and are drawn.
    """
    if request.node.get_closest_marker("curves") is None:
        monkeypatch.setattr(folder, "_curves", lambda rows: b"")


# Tests run beside each other's threads; one each is faster, and repeats to the bit.
torch.set_num_threads(1)
# CI tries the same cases each time, so that a change is judged by itself; elsewhere new ones.
settings.register_profile(
    "binep", deadline=None, max_examples=25, print_blob=True, derandomize="CI" in os.environ
)
# For whoever runs them many times, as `mutants.py` does.
settings.register_profile(
    "quick",
    deadline=None,
    max_examples=10,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
)
settings.load_profile("binep")
