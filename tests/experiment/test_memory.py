"""Memory: a network that cannot be held is refused before anything of it is made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from binep.experiment import memory
from binep.experiment.build import initial_network
from binep.experiment.config import Config, ConvLayer, Dynamics, Layer, Learning
from binep.experiment.experiment import Experiment

CONFIG = Config(layers={"1": Layer(30), "2": Layer(10)}, threads=1)


def leaves(patch: pytest.MonkeyPatch, *sizes: int) -> None:
    def available(device: str = "cpu") -> Iterator[tuple[int, str]]:
        yield from ((size, f"limit {number}") for number, size in enumerate(sizes))

    patch.setattr(memory, "available", available)


def test_what_is_needed_and_what_there_is_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves(monkeypatch, 10**9, 10**5, 10**6)
    for made in (lambda: Experiment(CONFIG), lambda: memory.check(CONFIG, 1)):
        with pytest.raises(MemoryError, match=r"30-10 need at least .* MB, and limit 1 leaves 0.1"):
            made()


def test_nothing_is_made_of_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.replace(layers={"1": Layer(2**40), "2": Layer(10)})
    with pytest.raises(MemoryError, match=r"^layers of sizes 1099511627776-10 need at least"):
        initial_network(config)
    leaves(monkeypatch)  # a system that does not say
    memory.check(config)


def test_a_network_needs_what_its_tensors_take() -> None:
    for layers in (CONFIG.layers, {"1": ConvLayer(4), "2": Layer(7), "3": Layer(10)}):
        config = CONFIG.replace(layers=layers)
        network = initial_network(config)
        weights = sum(s.values.numel() for s in network.learning_synapses())
        assert memory.needed(config) == 4 * weights
        one, two = (memory.needed(config, n) - 14 * weights for n in (1, 2))
        assert two == 2 * one > 0
        real = config.replace(learning=Learning(synapses="real"))
        assert memory.needed(config, 1) - memory.needed(real, 1) == 6 * weights
        assert memory.needed(config, 1, 512) > memory.needed(config, 1)
    bptt = CONFIG.replace(
        learning=Learning(estimator="bptt"), dynamics=Dynamics(free_steps=90, nudged_steps=90)
    )
    assert memory.needed(bptt, 64) > memory.needed(CONFIG, 64) + 80 * 64 * 40 * 4


def test_a_gpu_is_asked_before_anything_comes_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"mem_get_info": (4 * 10**6, 10**9), "memory_reserved": 300, "memory_allocated": 100}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert list(memory.available("cuda")) == []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for name, value in free.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda device, value=value: value)
    monkeypatch.setattr("binep.data.batches.Dataset.to", None)
    assert list(memory.available("cuda")) == [(4 * 10**6 + 200, "device cuda")]
    with pytest.raises(MemoryError, match=r"30-10 need at least 4\.46 MB, and device cuda leaves"):
        Experiment(CONFIG.replace(device="cuda"))  # 3.96 of images and labels
    memory.check(CONFIG.replace(device="cuda"), 64, 1000)  # without the images


def test_a_network_begins_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves(monkeypatch, 1)
    with pytest.raises(MemoryError, match="limit 0 leaves"):
        initial_network(CONFIG.replace(device="cuda"))


def test_limits_are_read_where_the_system_has_them() -> None:
    found = list(memory.available())
    assert all(size >= 0 and what for size, what in found)
    if sys.platform == "linux":
        assert "this machine" in {what for _, what in found}


def test_a_control_group_leaves_its_limit_less_what_is_taken(tmp_path: Path) -> None:
    names = "memory.max", "memory.current", "inactive_file"
    assert list(memory._group_limit(tmp_path, *names)) == []
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert list(memory._group_limit(tmp_path, *names)) == []
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 50\n")
    assert [size for size, _ in memory._group_limit(tmp_path, *names)] == [350]


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v")
def test_a_limit_of_the_process_is_one_line(tmp_path: Path) -> None:
    code = (
        "import resource, sys, binep.cli.main\n"
        "resource.setrlimit(resource.RLIMIT_AS, (6 * 10**9, 6 * 10**9))\n"
        "sys.exit(binep.cli.main.main(sys.argv[1:]))"
    )
    line = "train quickstart --threads 1 --layers.1.size 600000"
    command = [sys.executable, "-c", code, *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("binep: not enough memory: layers of sizes 600000-10 need at")
    assert "ulimit" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
