"""Ray: whether it is there, a cluster of it, and what is asked of a machine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from binep.experiment.config import ConfigError
from binep.runs.environment import revision
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
        ConfigError: the address does not answer, no machine has as many, or one has another binep.
    """
    import ray

    # Its errors are tracebacks of trials, of which a line is printed elsewhere.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
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
        if address != "local":
            _check_revisions(address, nodes)
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
    if done is not None and b"InvalidAuthToken" in done.stderr:
        raise ConfigError(
            f"--address {address}: the Ray cluster there asks for a token: set "
            "RAY_AUTH_MODE=token, and have its ~/.ray/auth_token"
        )
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


def revision_check() -> Callable[[], str]:
    """A function that says how a machine's binep is another one than this machine's, or "".

    Ray sends it by value, so that it can be called where there is no binep, or an older one.
    """
    own = revision()

    def other() -> str:
        import socket

        try:
            from binep.runs.environment import revision

            found = f"binep {revision()}"
        except ImportError:
            found = "no binep, or one without sweeps"
        if found == f"binep {own}":
            return ""
        return (
            f"{socket.gethostname()} has {found}, where this was begun is binep {own}: "
            "install the same on all machines"
        )

    return other


def _check_revisions(address: str, nodes: list[dict[str, Any]]) -> None:
    """Ask each machine for its binep; of one that is lost meanwhile, its trials ask again.

    Raises:
        ConfigError: one has another than this machine.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(revision_check())
    places = [node["NodeID"] for node in nodes if node["Alive"]]
    strategies = [NodeAffinitySchedulingStrategy(place, soft=False) for place in places]
    for answer in [task.options(scheduling_strategy=on).remote() for on in strategies]:
        with contextlib.suppress(RayError):
            if other := ray.get(answer, timeout=WAIT):
                raise ConfigError(f"--address {address}: {other}")


@contextlib.contextmanager
def as_interrupts() -> Iterator[list[int]]:
    """A context in which `ENDS` end work as Ctrl-C does; those that came."""
    came: list[int] = []

    def ask(number: int, before: Any) -> None:
        came.append(number)
        signal.raise_signal(signal.SIGINT)

    with handled(ENDS, ask):
        yield came
