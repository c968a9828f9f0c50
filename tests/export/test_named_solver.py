"""A network that names its solver: trained from a file, resumed, exported, and refused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

import binep
from binep.cli.main import main
from binep.core.network import Network
from binep.core.neurons import Binary
from binep.core.solvers import Plain
from binep.core.synapses import Dense
from binep.experiment.config import Config, Dynamics, Layer, Learning
from binep.export import c_source, onnx_graph, packed, reference
from binep.ising import AnnealingSolver
from binep.runs import folder as runs
from binep.runs.files import RunError

dimod = pytest.importorskip("dimod", reason="pip install 'binep[ising]'")
pytest.importorskip("dwave.samplers", reason="pip install 'binep[ising]'")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("annealing")
    config = Config(
        layers={"1": Layer(20, gamma=0.1, threshold=1e-4), "2": Layer(30), "3": Layer(10)},
        dynamics=Dynamics("heaviside", free_steps=2, nudged_steps=2, firing_threshold=0.1),
        learning=Learning(beta=2.0),
        max_batches=2,
        batch_size=8,
        test_batch_size=4,
        threads=1,
    )
    (folder / "bits.toml").write_text(config.to_toml())
    words = ["train", "--config", str(folder / "bits.toml"), "--solver", "annealing"]
    assert main([*words, "--epochs", "2", "--run-dir", str(folder / "run")]) == 0
    return folder / "run"


def test_a_run_is_resumed_to_the_same_bits(run: Path, tmp_path: Path) -> None:
    config = Config.load(run / "config.toml")
    assert config.dynamics.solver == "annealing"
    once = tmp_path / "run"
    file = tmp_path / "config.toml"
    file.write_text(config.replace(epochs=1).to_toml())
    assert main(["train", "--config", str(file), "--run-dir", str(once)]) == 0
    assert main(["train", "--resume", str(once), "--epochs", "2"]) == 0
    whole, resumed = (runs.load_checkpoint(folder).state() for folder in (run, once))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any("momentum" in name and whole[name].any() for name in whole)


def test_it_is_exported_with_its_name(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "network.safetensors"
    assert main(["export", str(run)]) == 0
    loaded, own = binep.load(file), binep.load(run)
    assert loaded.solver is own.solver is AnnealingSolver
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded(x), own(x))
    said = []
    for path in (run, file):
        capsys.readouterr()
        assert main(["evaluate", str(path)]) == 0
        said.append(capsys.readouterr().out.splitlines()[0].split("%")[0])
    assert said[0] == said[1]
    assert main(["report", str(file), "--output", str(run / "report.html")]) == 0
    assert "annealing" in (run / "report.html").read_text()


def test_what_takes_steps_refuses_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed.save(packed.read(run), file := run / "steps.safetensors")
    for words, what in (
        (["export", str(run), "--format", "c"], "C"),
        (["export", str(file), "--format", "onnx"], "ONNX"),
        (["page", str(run), "--output", str(run / "digit.html")], "a page"),
    ):
        capsys.readouterr()
        assert main(words) == 2
        line = f"{words[1]}: solver = annealing: must be steps, as {what} computes them"
        assert capsys.readouterr().err == f"binep: {line}\n"
    assert main(["inspect", str(run)]) == 2
    assert "solver = annealing: must be steps, as inspect" in capsys.readouterr().err
    with pytest.raises(ValueError, match="solver = annealing: must be steps"):
        reference.read(file)


def test_a_solver_without_a_name_is_not_saved(tmp_path: Path) -> None:
    network = Network([Dense(4, 3)], Binary())
    for solver in (AnnealingSolver.using(dimod.ExactSolver()), Plain):
        network.solver = solver
        for save in (packed.save, c_source.save, onnx_graph.save):
            with pytest.raises(ValueError, match="no configuration can name it as it is"):
                save(network, tmp_path / "network.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_file_needs_its_solver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network([Dense(4, 3)], Binary(), solver=AnnealingSolver)
    packed.save(network, file := tmp_path / "network.safetensors")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "dimod", None)
        with pytest.raises(RunError, match=r"pip install 'binep\[ising\]'"):
            packed.load(file)
    with monkeypatch.context() as without:
        without.delitem(packed.description.SOLVERS._kinds, "annealing")
        with pytest.raises(RunError, match="solver = 'annealing': there is none of that name"):
            packed.load(file)


def test_what_cannot_be_annealed_is_refused_before_any_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--config", str(run), "--run-dir", str(tmp_path / "new")]

    def refusal(*flags: str) -> str:
        assert main([*words, *flags]) == 2
        return capsys.readouterr().err

    assert "solver = annealing: layer 1 has Real neurons" in refusal("--activation", "hard-sigmoid")
    assert "CrossEntropy is not linear" in refusal("--cost", "cross-entropy")
    assert "estimator = bptt: must be ep" in refusal("--estimator", "bptt")
    assert "neuron_filter = 0.9: must be left out" in refusal("--neuron-filter", "0.9")
    for module in ("dwave.samplers", "dimod"):
        monkeypatch.setitem(sys.modules, module, None)
        said = refusal()
        assert "pip install 'binep[ising]'" in said
        assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_files_without_a_solver_are_read_as_before() -> None:
    config = Config(dynamics=Dynamics("heaviside"), layers={"1": Layer(10)})
    text = config.to_toml().replace('solver = "steps"\n', "")
    assert "solver" not in text
    assert Config.from_toml(text, "old.toml") == config
    named = dataclasses.replace(config.dynamics, solver="annealing")
    assert config.replace(dynamics=named).to_toml() != config.to_toml()
