"""A run that starts from a trained network, with other settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from test_resume import assert_same, config

import binep as binep_package
from binep.cli import main as cli
from binep.experiment.config import Config, ConfigError, Learning
from binep.experiment.experiment import Experiment
from binep.export import packed
from binep.runs import folder as runs
from binep.runs.checkpoints import CHECKPOINT
from binep.runs.tensors import load_tensors


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    runs.train(Experiment(config()), folder)
    return folder


@pytest.fixture
def trained(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return made


def binep(line: str) -> int:
    return cli.main(line.split())


def begun(flags: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The state that a run starts with: its first checkpoint."""
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            runs_main(flags)
    return load_tensors(Path("new") / CHECKPOINT)[0]


def stop(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def runs_main(flags: str) -> None:
    from binep.cli import train

    train.main([*flags.split(), "--run-dir", "new"])


@pytest.mark.parametrize("keep", [False, True])
def test_it_starts_where_the_other_ended(
    trained: Path, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = f"--from {trained} --seed 5 --beta 0.7" + " --keep-momentum" * keep
    state = begun(flags, monkeypatch)
    ended, _ = load_tensors(trained / CHECKPOINT)
    fresh = Experiment(config(seed=5)).state()
    for name, tensor in state.items():
        kept = name.startswith(("network.", *(("momentum.", "decays") if keep else ())))
        assert torch.equal(tensor, (ended if kept else fresh)[name]), name
    assert any(not torch.equal(state[n], ended[n]) for n in state if "momentum" in n) != keep


@pytest.mark.parametrize("keep", [False, True])
def test_its_folder_runs_it_again_and_goes_on_with_it(trained: Path, keep: bool) -> None:
    flags = f"--from {trained} --beta 0.7 --epochs 2" + " --keep-momentum" * keep
    assert binep(f"train {flags} --run-dir new") == 0
    held = Config.load(Path("new/config.toml"))
    assert held.learning.beta == 0.7
    assert held.start is not None
    assert binep("train --config new --run-dir again") == 0
    assert_same(Path("again"), Path("new"))
    for name in ("config.toml", "start.safetensors"):  # as if killed before the first checkpoint
        Path("killed").mkdir(exist_ok=True)
        shutil.copy(f"new/{name}", "killed")
    assert binep("train --resume killed") == 0
    assert_same(Path("killed"), Path("new"))
    assert binep("evaluate new") == binep("inspect new") == 0
    assert runs.load(Path("new")).train_epoch().epoch == 1


def test_an_exported_file_is_as_good_as_its_run(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert binep(f"export {trained} --output end.safetensors") == 0
    states = []
    for source in (trained, "end.safetensors"):
        states.append(begun(f"--from {source} --seed 5 --beta 0.7", monkeypatch))
        shutil.move("new", f"new-{len(states)}")
    texts = [Path(f"new-{n}/config.toml").read_text() for n in (1, 2)]
    assert texts[0] == texts[1]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_a_network_that_comes_with_binep_is_trained_further(trained: Path) -> None:
    del trained  # a folder to work in
    flags = "--dataset mnist5k --epochs 1 --max-batches 1 --test-batch-size 8"
    assert binep(f"train --from mnist-fc1 {flags}") == 0
    (folder,) = Path("runs/mnist-fc1").iterdir()
    assert Config.load(folder / "config.toml").layers == read("mnist-fc1").layers


def test_a_run_does_not_land_in_another(trained: Path) -> None:
    flags = "--epochs 1 --max-batches 1"
    assert binep(f"export {trained} --output first.safetensors") == 0
    assert binep(f"train --from {trained} {flags} --run-dir runs/first") == 0
    for source in ("first.safetensors", "runs/first"):
        assert binep(f"train --from {source} {flags}") == 0
    assert binep("export runs/first") == 0
    assert binep(f"train --from runs/first/network.safetensors {flags}") == 0
    assert {path.name for path in Path("runs").iterdir()} == {"first", "first-again"}
    assert len(list(Path("runs/first-again").glob("*/metrics.csv"))) == 3
    assert not list(Path("runs/first").glob("*/"))


def test_a_folder_whose_run_was_killed_before_it_had_settings_is_new(trained: Path) -> None:
    flags = "--epochs 1 --max-batches 1"
    assert binep(f"train --from {trained} {flags} --run-dir whole") == 0
    Path("new").mkdir()
    shutil.copy("whole/start.safetensors", "new")
    assert binep(f"train --from {trained} {flags} --run-dir new") == 0
    assert_same(Path("new"), Path("whole"))


def test_a_lone_network_is_trained_by_the_settings_of_a_file(trained: Path) -> None:
    (wide := Path("wide.toml")).write_text(config(seed=8, epochs=1).to_toml())
    packed.read(trained).network.save("lone.safetensors")
    assert binep(f"train --from lone.safetensors --config {wide} --run-dir new") == 0
    assert binep(f"train --from {trained} --config {wide} --run-dir same") == 0
    assert_same(Path("new"), Path("same"))


def test_a_start_that_cannot_be_read_is_not_inspected(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--epochs 1 --max-batches 1 --run-dir new"
    assert binep(f"train --from {trained} {flags}") == 0
    start = Path("new/start.safetensors")
    start.write_bytes(start.read_bytes()[:-1])
    assert binep("inspect new") == 2
    assert "new/start.safetensors: damaged" in capsys.readouterr().err
    start.unlink()
    assert binep("inspect new") == 0
    assert "no flips.pdf: the network that it started from (start.safetensors) is not at hand" in (
        capsys.readouterr().out
    )


def read(name: str) -> Config:
    """The settings of a network that comes with binep."""
    return packed.read(Path(name)).config(Path(name))


def test_other_settings_are_a_presets_or_a_files(trained: Path) -> None:
    Path("wide.toml").write_text(config(seed=8, epochs=1).to_toml())
    assert binep(f"train --from {trained} --config wide.toml --run-dir new") == 0
    assert Config.load(Path("new/config.toml")).seed == 8
    assert binep(f"train --from {trained} --epochs 1") == 0
    (folder,) = Path("runs").glob("*/*")
    assert folder.parent.name == trained.name


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--from runs/nowhere", "runs/nowhere: not a run folder"),
        (
            "--from TRAINED --layers.1.size 9",
            "TRAINED: its network does not fit these settings: layer 1 has weights (",
        ),
        ("quickstart --from TRAINED", "does not fit these settings: layer 1 has weights ("),
        ("quickstart --keep-momentum", "--keep-momentum: goes with --from RUN alone"),
        ("--resume TRAINED --keep-momentum", "--keep-momentum: goes with --from RUN alone"),
        ("--from TRAINED --resume TRAINED", "--from TRAINED: is for a new run"),
        ("--from mnist-fc", "mnist-fc: no run folder, no file, and none of the networks"),
        ("--from mnist-fc1 --keep-momentum", "--keep-momentum with mnist-fc1: it holds no"),
        (
            "--from mnist-conv --dataset mnist5k --layers.1.size 9",
            "mnist-conv: its network does not fit",
        ),
        ("--from lone.safetensors", "does not say how it was trained: name a preset or --config"),
        ("--from gone.safetensors", "gone.safetensors: cannot be read: No such file"),
        ("--from begunn", "binep (did you mean begun?): "),
        ("--from begun", "begun: cannot be started from: it holds no model.safetensors"),
        ("--from begun --keep-momentum", "it holds no checkpoint.safetensors"),
        ("--from real --keep-momentum", "real: has no momenta to keep: its weights are real"),
        ("--config orphan.toml", "holds no start.safetensors"),
        ("--config wrong", "is not what the configuration starts from"),
    ],
)
def test_bad_starts_are_refused_in_a_line(
    trained: Path, flags: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("begun", "real", "wrong"):
        Path(name).mkdir()
    binep_package.load("mnist-conv").save("lone.safetensors")
    Path("begun/config.toml").write_text(config().to_toml())
    real = config(learning=Learning(synapses="real"), epochs=1).effective()
    if "real --keep" in flags:
        runs.train(Experiment(real), Path("real"))
    started = config(start="0" * 64).to_toml()
    Path("orphan.toml").write_text(started)
    Path("wrong/config.toml").write_text(started)
    shutil.copy(trained / "model.safetensors", "wrong/start.safetensors")
    flags, error = (text.replace("TRAINED", str(trained)) for text in (flags, error))
    assert binep(f"train {flags} --run-dir new") == 2
    said = capsys.readouterr().err
    assert error in said
    assert said.count("\n") == 1
    assert not Path("new").exists()


def test_in_python_it_does_not_train_without_its_start() -> None:
    with pytest.raises(ConfigError, match="must have been started from that network"):
        Experiment(config(start="0" * 64)).train_epoch()
