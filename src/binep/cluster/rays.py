"""Ray: whether it is there, a cluster of it, and what is asked of a machine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from binep.experiment.config import ConfigError
from binep.runs.files import RunError
from binep.runs.signals import handled

WAIT = 30
"""Seconds that an address has to answer."""
STORE = 80 * 2**20
"""Bytes of shared memory that Ray takes on this machine: runs exchange hardly anything."""
ENDS = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""What machines, terminals and batch systems send before they kill."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # reports nothing to anybody
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def require() -> None:
    """Refuse to go on without Ray and Optuna; silence what they would tell others.

    Raises:
        RunError: they are not installed.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import optuna  # noqa: F401
        import ray.tune  # noqa: F401
    except ImportError:
        raise RunError("Ray is not installed: pip install 'binep[sweep]'") from None


@contextlib.contextmanager
def connected(address: str | None, cpus: float, gpus: float) -> Iterator[None]:
    """A context with a Ray cluster, or one of this machine alone, which ends with it.

    Args:
        address: "auto" or HOST:PORT; None for this machine alone.
        cpus: that a run takes.
        gpus: that a run takes.

    Raises:
        ConfigError: the address does not answer, or no machine has as many.
    """
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        quiet |= {"include_dashboard": False, "object_store_memory": STORE}
        address = "local"
    else:
        _check_answers(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--address {address}: no cluster can be joined: {reason}") from None
    try:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        _check_fits(nodes, cpus, gpus)
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ask for an answer, by Ray's own command, since its library waits for minutes.

    Raises:
        ConfigError: there is none.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdecimal():
            raise ConfigError(f"--address {address}: must be auto, or HOST:PORT of a Ray cluster")
        command += ["--address", address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=WAIT, check=False)
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        raise ConfigError(
            f"--address {address}: no Ray cluster answers there (waited up to {WAIT} s): "
            "ray start --head begins one"
        )


def _check_fits(nodes: list[dict[str, Any]], cpus: float, gpus: float) -> None:
    """Refuse what would wait forever.

    Raises:
        ConfigError: no machine has so many CPUs and GPUs.
    """
    has = [node["Resources"] for node in nodes if node["Alive"]]
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in has):
        return
    most = ", ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in has)
    raise ConfigError(
        f"--cpus {cpus:g} --gpus {gpus:g}: no machine has as many: the cluster's have {most}"
    )


@contextlib.contextmanager
def as_interrupts() -> Iterator[list[int]]:
    """A context in which `ENDS` end work as Ctrl-C does; those that came."""
    came: list[int] = []

    def ask(number: int, before: Any) -> None:
        came.append(number)
        signal.raise_signal(signal.SIGINT)

    with handled(ENDS, ask):
        yield came
