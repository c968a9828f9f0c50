"""What a run ran on: machine, versions and command."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binep.runs.files import RunError, read

if TYPE_CHECKING:
    from binep.experiment.experiment import Experiment

VERSIONS = ("binep", "torch", "numpy", "numba")
"""Packages that bits depend on."""


def environment(experiment: Experiment) -> dict[str, Any]:
    """What a run runs on: versions, machine, device and command, as JSON can hold it."""
    import torch

    device, name = experiment.device, Path(sys.argv[0]).name
    return {
        "command": ["binep" if name == "__main__.py" else name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {name: _version(name) for name in VERSIONS},
        "python": platform.python_version(),
        "git_revision": _git_revision(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": experiment.config.threads or torch.get_num_threads(),
        "workers": experiment.workers.count,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def revision() -> str:
    """The version of binep, and of a checkout its revision: "0.2.0, revision v0.1-40-gc0ffee"."""
    checked_out = _git_revision()
    return _version("binep") + (f", revision {checked_out}" if checked_out else "")


def described(about: Mapping[str, Any]) -> str:
    """What `environment` returned, in a line: versions, revision, processor or GPU, threads."""
    versions, threads = about["versions"], about["threads"]
    revision = f" (revision {about['git_revision']})" if about["git_revision"] else ""
    words = [
        f"binep {versions['binep']}{revision}",
        f"PyTorch {versions['torch']}",
        f"numba {versions['numba']}",
        *([about["device_name"]] if about["device_name"] else []),
        about["processor"],
        f"{threads} thread{'s' * (threads != 1)}",
    ]
    return ", ".join(words)


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What bits depend on and is not as it was, such as "threads 2, before 1"; or ""."""
    pairs = zip(_facts(before).items(), _facts(now).values(), strict=True)
    return "; ".join(
        f"{name} {new}, before {old}" for (name, old), new in pairs if old not in (None, new)
    )


def _facts(about: Mapping[str, Any]) -> dict[str, Any]:
    versions = about.get("versions", {})
    return {
        "threads": about.get("threads"),
        "workers": about.get("workers"),
        "device": about.get("device_name") or about.get("device"),
        "processor": about.get("processor"),
        "revision": about.get("git_revision"),
        **{name: versions.get(name) for name in VERSIONS},
    }


def _version(package: str) -> str:
    """Its version; "unknown" where it runs from its sources, or that cannot be read."""
    try:
        return version(package)
    except (PackageNotFoundError, OSError):
        return "unknown"


def _git_revision() -> str | None:
    """Revision of the checkout that the package runs from; None if it is installed elsewhere."""
    root = Path(__file__).parents[3]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        if not (root / ".git").exists():  # else git would answer for a project around the package
            return None
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    """The CPU's name, cores and vector instructions."""
    import torch

    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    name = found.group(1) if found else platform.processor()
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def read_environment(folder: Path) -> dict[str, Any]:
    """What environment.json holds of a run; empty if it was not kept.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / "environment.json"
    if not path.exists():
        return {}
    try:
        about = _whole_letters(json.loads(read(path)))
    except RunError:
        raise
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not JSON: {error}") from error
    if not isinstance(about, dict):
        raise RunError(f"{path}: does not say what a run ran on")
    for name, value in about.items():
        if right := _wrong(name, value):
            raise RunError(f"{path}: does not say what a run ran on: {name!a} must be {right}")
    return about


def _whole_letters(value: Any) -> Any:
    """Text in which halves of letters, as of file names that are not UTF-8, are spelt out."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_whole_letters(inner) for inner in value]
    if isinstance(value, dict):
        return {_whole_letters(name): _whole_letters(inner) for name, inner in value.items()}
    return value


def _wrong(name: str, value: Any) -> str:
    """What a known fact must be, if it is something else; otherwise ""."""
    if name == "command":
        fits = isinstance(value, list) and all(isinstance(word, str) for word in value)
        return "" if fits else "a list of words"
    if name == "versions":
        fits = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        return "" if fits else "names with versions"
    if name == "resumed":
        fits = isinstance(value, list) and all(
            isinstance(about, dict) and not any(_wrong(*fact) for fact in about.items())
            for about in value
        )
        return "" if fits else "a list of what it went on with"
    if name == "threads":
        return "" if type(value) is int and 0 < value < 2**31 else "a whole number from 1"
    texts = ("started", "python", "platform", "processor", "device")
    if name in texts or (name in ("git_revision", "device_name") and value is not None):
        return "" if isinstance(value, str) else "text"
    return ""
