"""Memory: what a network will need at least, and what there is; of a GPU, PyTorch is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from binep.data.sources import Source
from binep.experiment.config import Config
from binep.experiment.kinds import ESTIMATORS

_FLOAT = 4  # bytes


def check(
    config: Config,
    samples: int = 0,
    tested: int = 0,
    source: Source | None = None,
    data: int = 0,
) -> None:
    """Refuse a network that cannot be held, before anything of it is made.

    Args:
        config: checked.
        samples: of a training batch; 0 for the network alone.
        tested: samples of a test batch.
        source: its data set; if None, the configuration is asked.
        data: bytes of the samples that are still to come to its device.

    Raises:
        MemoryError: it names what the network needs at least, and what there is.
    """
    sizes = "-".join(str(layer.size) for layer in config.layers.values())
    needs = needed(config, samples, tested, source) + data
    require(needs, f"layers of sizes {sizes}", config.device)


def require(size: int, what: str, device: str = "cpu") -> None:
    """Refuse what takes more bytes than there are.

    Args:
        size: in bytes, at least.
        what: needs them; the subject of the error.
        device: where.

    Raises:
        MemoryError: it names both.
    """
    left, which = min(available(device), default=(size, ""))
    if size > left:
        raise MemoryError(
            f"{what} need at least {_shown(size)}, and {which} leaves {_shown(left)}: choose "
            "smaller ones"
        )


def needed(config: Config, samples: int = 0, tested: int = 0, source: Source | None = None) -> int:
    """Bytes that a network takes at least on its device while it trains.

    A weight has its value and, where samples come, its gradient; a binary one also a momentum and a
    count of its flips. A sample has in each layer its drive and its states, while it trains those
    of both phases, and with backpropagation through time those of each step.
    """
    current = (config.source() if source is None else source).shape
    weights = states = 0
    for layer in config.layers.values():
        weights, states = weights + layer.weights(current), states + layer.states(current)
        current = layer.output_shape(current)
    if not samples:
        return _FLOAT * weights
    real, count = config.learning.synapses == "real", 2
    per_weight = 2 * _FLOAT if real else 3 * _FLOAT + count
    kept = 3
    if ESTIMATORS[config.learning.estimator].fact("differentiates"):
        kept += config.dynamics.nudged_steps
    return per_weight * weights + _FLOAT * max(kept * samples, 2 * tested) * states


def available(device: str = "cpu") -> Iterator[tuple[int, str]]:
    """Bytes that can still be had, and what leaves no more; none where the system does not say."""
    if device != "cpu":
        yield from _on_device(device)
        return
    found = _numbers(Path("/proc/meminfo"), ":")
    if "MemAvailable" in found:
        yield 1024 * (found["MemAvailable"] + found.get("SwapFree", 0)), "this machine"
    elif "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ()):
        yield os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine"
    yield from _group_limits()
    yield from _process_limit()


def _on_device(name: str) -> Iterator[tuple[int, str]]:
    """What is free on a GPU, with what PyTorch keeps of it for its next tensors."""
    import torch

    if torch.cuda.is_available():
        kept = torch.cuda.memory_reserved(name) - torch.cuda.memory_allocated(name)
        yield torch.cuda.mem_get_info(name)[0] + kept, f"device {name}"


def _process_limit() -> Iterator[tuple[int, str]]:
    """What ``ulimit -v`` leaves."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        taken = 0
    yield max(0, limit - taken * os.sysconf("SC_PAGE_SIZE")), "the limit of this process (ulimit)"


def _group_limits() -> Iterator[tuple[int, str]]:
    """What the control groups of this process leave: containers and batch systems set them."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        root = Path("/sys/fs/cgroup")
        if controllers == "":
            files = "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root = root / "memory"
            files = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        folder = root / name.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(root):
                yield from _group_limit(group, *files)


def _group_limit(group: Path, limit: str, usage: str, cached: str) -> Iterator[tuple[int, str]]:
    try:
        most, taken = int((group / limit).read_text()), int((group / usage).read_text())
    except (OSError, ValueError):  # none here, or "max"
        return
    dropped = _numbers(group / "memory.stat", " ").get(cached, 0)  # files that can be read again
    yield max(0, most - taken + dropped), "the limit of its control group"


def _numbers(path: Path, between: str) -> dict[str, int]:
    """Names and the numbers behind them, a line each; empty if there is no such file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(between) for line in lines)
    found = ((name, value.split()) for name, _, value in pairs)
    return {name: int(value[0]) for name, value in found if value and value[0].isdigit()}


def _shown(size: int) -> str:
    """Bytes in the unit that people buy memory in."""
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
