"""Settings of every test."""

import os

import pytest
import torch
from hypothesis import Phase, settings

import binep.solvers  # noqa: F401 – as with the public names of `binep`, all solvers are there


def pytest_configure(config: pytest.Config) -> None:
    # Small networks flip much. tests/experiment/test_guards.py expects these warnings.
    config.addinivalue_line("filterwarnings", "ignore::binep.experiment.warnings.TrainingWarning")


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
