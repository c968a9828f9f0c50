"""Settings of every test."""

import os
import signal

import pytest
import torch
from hypothesis import Phase, settings

import binep.solvers  # noqa: F401 – as with the public names of `binep`, all solvers are there


def pytest_configure(config: pytest.Config) -> None:
    # Small networks flip much. tests/experiment/test_guards.py expects these warnings.
    config.addinivalue_line("filterwarnings", "ignore::binep.experiment.warnings.TrainingWarning")
    # A shell lets its background jobs ignore some signals, and with them all that they start.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(number, usual)


# Tests run beside each other's threads; one each is faster, and repeats to the bit.
torch.set_num_threads(1)
# CI tries the same cases each time, so that a change is judged by itself; elsewhere new ones.
settings.register_profile(
    "binep", deadline=None, max_examples=50, print_blob=True, derandomize="CI" in os.environ
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
