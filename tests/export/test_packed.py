"""Networks in one file: what is read is what was written, a bit per weight, or it is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from networks import Twins, twins
from safetensors import safe_open

import binep
from binep.core.costs import CrossEntropy, SquaredError
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.synapses import Conv, Dense
from binep.experiment.build import initial_network
from binep.experiment.config import preset, preset_names
from binep.experiment.experiment import Experiment
from binep.export import packed
from binep.runs.files import RunError
from binep.runs.tensors import load_tensors, save_tensors


@given(twins())
def test_a_network_comes_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, t: Twins
) -> None:
    path = tmp_path_factory.mktemp("saved") / "network.safetensors"
    t.network.free_steps = 7
    t.network.synapses[0].bias.requires_grad_(False)
    before = torch.get_rng_state()
    t.network.save(path)
    found = binep.load(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.state_dict().keys() == t.network.state_dict().keys()
    for name, tensor in t.network.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    flags = [[p.requires_grad for p in network.parameters()] for network in (t.network, found)]
    assert flags[0] == flags[1]
    assert found.neurons == t.network.neurons
    assert torch.equal(found(t.x), t.network(t.x))
    assert torch.equal(found.predict(t.x), t.network(t.x).argmax(dim=1))


def test_a_binary_weight_takes_a_bit(tmp_path: Path) -> None:
    network = Network([Dense((1, 28, 28), 1000), Dense(1000, 10)], Real())
    network.save(tmp_path / "network.safetensors")
    signs = sum(synapse.values.numel() for synapse in network.synapses)
    floats = 4 * (1000 + 10 + 2)
    assert (tmp_path / "network.safetensors").stat().st_size <= 1.05 * signs / 8 + floats
    with safe_open(tmp_path / "network.safetensors", "np") as file:
        bits = file.get_tensor("synapses.0.values")
        about = json.loads(file.metadata()["binep"][64:])
    assert about["network"]["synapses"][0]["outputs"] == 1000
    first = [int(v) for v in f"{bits[0]:08b}"]  # the first weight is the highest bit
    assert first == [int(v > 0) for v in network.synapses[0].values[0, :8]]


def test_class_names_and_normalisation_are_kept(tmp_path: Path) -> None:
    network = Network([Conv((3, 6, 6), 2), Dense((2, 3, 3), 4)], Binary())
    network.cost = SquaredError(2, 2)
    trained = packed.Trained(network, ("cat", "dog"), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), power=0.35)
    packed.save(trained, tmp_path / "network.safetensors")
    found = packed.read(tmp_path / "network.safetensors")
    for name in ("classes", "mean", "std", "power"):
        assert getattr(found, name) == getattr(trained, name)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    from binep.cli.main import main

    folder = tmp_path / "run"
    flags = "--layers.1.size 16 --epochs 1 --max-batches 3 --threads 1 --warn-flip-rate 1"
    assert main(["train", "quickstart", *flags.split(), "--run-dir", str(folder)]) == 0
    return folder


def test_a_run_folder_answers_without_its_data_set(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from binep.runs import folder

    experiment = folder.load(run)
    images = experiment.data.prepare(experiment.data.test.images[:50])
    monkeypatch.setattr("binep.data.readers.read_mnist5k", None)
    network = binep.load(str(run))
    with experiment.working():
        assert torch.equal(network(images), experiment.network(images))
    assert network.free_steps == experiment.config.dynamics.free_steps


@pytest.mark.parametrize("name", ["config.toml", "model.safetensors", "best.safetensors"])
def test_of_a_run_the_folder_is_asked_for(run: Path, name: str) -> None:
    assert (run / name).exists()
    with pytest.raises(RunError, match=f"{name}: holds no network .* give its run folder"):
        binep.load(run / name)


class Mine(Dense):
    pass


@dataclasses.dataclass(frozen=True)
class Leaky(Real):
    pass


def test_parts_that_no_description_rebuilds_are_refused(tmp_path: Path) -> None:
    def refused(network: Network, name: str) -> None:
        with pytest.raises(ValueError, match=name):
            network.save(tmp_path / "network")
        assert not (tmp_path / "network").exists()

    refused(Network([Mine(4, 3)], Real()), "Mine")
    refused(Network([Dense(4, 3)], Leaky()), "Leaky")
    refused(Network([Dense(4, 3)], Real(), CrossEntropy(Mine(3, 2))), "Mine")
    tied = Dense(4, 4)
    refused(Network([tied, tied], Real()), "two places")
    shared = Network([Dense(4, 4), Dense(4, 4)], Real())
    shared.synapses[1].values = shared.synapses[0].values
    refused(shared, "two places")


@pytest.mark.parametrize(
    "damage", ["kind", "network", "layer", "number", "missing", "extra", "shape", "nan", "floats"]
)
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, damage: str) -> None:
    """Also one whose digest fits: by name, in one line."""
    path = tmp_path / "network.safetensors"
    Network([Dense(20, 6), Dense(6, 3)], Real()).save(path)
    tensors, about = load_tensors(path)
    if damage == "kind":
        about["kind"] = "network"
    elif damage == "network":
        about["network"] = []
    elif damage == "layer":
        about["network"]["synapses"][0]["kind"] = "attention"
    elif damage == "number":
        about["network"]["synapses"][0]["outputs"] = "six"
    elif damage == "missing":
        del tensors["synapses.0.bias"]
    elif damage == "extra":
        tensors["synapses.2.bias"] = torch.zeros(1)
    elif damage == "shape":
        tensors["synapses.0.values"] = tensors["synapses.0.values"][:-1]
    elif damage == "nan":
        tensors["synapses.0.bias"][0] = torch.nan
    else:
        tensors["synapses.0.values"] = tensors["synapses.0.values"].float()
    save_tensors(path, tensors, about)
    with pytest.raises(RunError, match=r"network\.safetensors: ") as error:
        binep.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["network", "synapses", "neurons", "cost"])
def test_a_newer_file_is_refused_and_not_read_as_another_network(
    tmp_path: Path, place: str
) -> None:
    path = tmp_path / "network.safetensors"
    Network([Dense(20, 6), Dense(6, 3)], Real()).save(path)
    tensors, about = load_tensors(path)
    part = about["network"] if place == "network" else about["network"][place]
    (part[0] if isinstance(part, list) else part)["leak"] = 0.5
    save_tensors(path, tensors, about)
    with pytest.raises(RunError, match=r"that this version of binep knows: .*leak"):
        binep.load(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"power": 0}, r"power = 0\.0: must be a finite number above 0"),
        ({"power": 10**400}, "int too large"),
        ({"classes": ["one"]}, "1 names of classes: must be 3"),
        ({"mean": [0.5, 0.5], "std": [1.0, 1.0]}, r"mean = \(0.5, 0.5\): must be 20 finite"),
        ({"mean": [0.5] * 20, "std": None}, r"std = \(\): must be 20 finite"),
        ({"mean": None, "std": [0.5]}, r"mean = \(\): must be 20 finite"),
        ({"mean": [0.5] * 20, "std": [0.0] * 20}, "std = .*: must be positive"),
        ({"mean": [math.nan] * 20, "std": [1.0] * 20}, "mean = .*: must be 20 finite"),
    ],
)
def test_what_is_said_of_inputs_and_outputs_fits_the_network(
    tmp_path: Path, wrong: dict[str, list[float] | None], message: str
) -> None:
    path = tmp_path / "network.safetensors"
    Network([Dense(20, 6), Dense(6, 3)], Real()).save(path)
    tensors, about = load_tensors(path)
    save_tensors(path, tensors, {**about, **wrong})
    with pytest.raises(RunError, match=message):
        binep.load(path)


def test_what_is_missing_or_changed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is none of this name"):
        binep.load(tmp_path / "network")
    path = tmp_path / "network.safetensors"
    with pytest.raises(RunError, match="cannot be read"):
        binep.load(path)
    Network([Dense(20, 6)], Real()).save(path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RunError, match="damaged"):
        binep.load(path)
    with pytest.raises(RunError, match="not a run folder"):
        binep.load(tmp_path)


def test_settings_of_a_call_are_checked() -> None:
    with pytest.raises(ValueError, match="free_steps = 0"):
        Network([Dense(4, 3)], Real(), free_steps=0)
    with pytest.raises(ValueError, match="tolerance"):
        Network([Dense(4, 3)], Real(), tolerance=-1)


def test_a_call_gives_the_scores_of_the_free_phase() -> None:
    experiment = Experiment(preset("quickstart").replace(max_batches=1, test_batch_size=32))
    scores, _ = experiment.class_scores()
    images = experiment.data.prepare(experiment.data.test.images[:32])
    with experiment.working():
        assert torch.equal(experiment.network(images), scores)


def test_the_command_writes_what_numpy_alone_can_read(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from binep.cli.main import main

    assert main(["export", str(run)]) == 0
    path = run / "network.safetensors"
    assert f"{path}  {path.stat().st_size:,} bytes" in capsys.readouterr().out
    assert main(["export", str(path), "--format", "npz"]) == 0
    network = binep.load(run)
    assert torch.equal(binep.load(path).synapses[0].values, network.synapses[0].values)
    with np.load(run / "network.npz", allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        layer = about["network"]["synapses"][0]
        shape = (layer["outputs"], math.prod(layer["input_shape"]))
        signs = np.unpackbits(arrays["synapses.0.values"], count=math.prod(shape)).reshape(shape)
        weights = (2.0 * signs - 1) * arrays["synapses.0.scale"]
    np.testing.assert_array_equal(weights, network.synapses[0].weight.detach().numpy())
    assert about["classes"] == list("0123456789")


def test_a_folder_without_a_trained_network_cannot_be_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from binep.cli.main import main

    assert main(["export", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_what_comes_with_binep_is_found_by_its_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from binep.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert "mnist-fc1" in packed.shipped()
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    for name in packed.shipped():
        about = packed.card(name)
        assert name in said
        assert {"network", "data", "command", "seed", "test_error"} <= about.keys()
        trained = packed.read(Path(name))
        assert trained.run is not None
        assert trained.run["data"]["sha256"] == about["data_sha256"]
        config = trained.config(Path(name))
        assert config.seed == about["seed"]
        assert f"{about['test_error']:.2f}" in said
    digits = Experiment(preset("quickstart")).data
    images, labels = digits.prepare(digits.test.images), digits.test.labels
    wrong = binep.load("mnist-fc1").predict(images) != labels
    assert wrong.double().mean() < 0.02
    assert main(["export", "mnist-fc1"]) == 0  # not among the package's files
    assert (tmp_path / "network.safetensors").exists()


def test_a_name_that_is_none_is_refused_with_those_that_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from binep.cli.main import main

    for command in ("export", "evaluate", "page"):
        assert main([command, "mnist-fc"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "did you mean mnist-fc1" in said
        for name in packed.shipped():
            assert name in said
    with pytest.raises(RunError, match="other: no run folder, no file, and none of the networks"):
        binep.load("other")


def test_a_file_is_evaluated_like_its_run(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from binep.cli.main import main

    file = tmp_path / "network.safetensors"
    assert main(["export", str(run), "--output", str(file)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    expected = capsys.readouterr().out
    assert main(["evaluate", str(file)]) == 0
    assert capsys.readouterr().out == expected
    alone = tmp_path / "alone.safetensors"
    binep.load(file).save(alone)
    assert main(["evaluate", str(alone)]) == 2
    assert "does not say how it was trained" in capsys.readouterr().err
    tensors, about = load_tensors(file)
    about["run"]["config"] = 3
    save_tensors(file, tensors, about)
    with pytest.raises(RunError, match="run holds no text of a configuration"):
        binep.load(file)


@pytest.mark.parametrize("name", preset_names())
def test_presets_come_back_in_a_bit_per_weight(tmp_path: Path, name: str) -> None:
    """Narrowed: all that the format has to hold, in no more than it may take."""
    config = preset(name)
    last = max(config.layers)
    narrow = {k: layer for k, layer in config.layers.items() if k != last}
    narrow = {
        k: dataclasses.replace(layer, size=-(-layer.size // 8)) for k, layer in narrow.items()
    }
    layers = {**config.layers, **narrow}
    network = initial_network(config.replace(layers=layers))
    trained = packed.Trained(network, run={"config": config.to_toml(), "data": None})
    packed.save(trained, tmp_path / "network")
    found = packed.read(tmp_path / "network")
    assert found.run == trained.run
    expected = network.state_dict()
    for key, tensor in found.network.state_dict().items():
        assert torch.equal(tensor, expected[key])
    signs = sum(s.values.numel() for s in network.learning_synapses() if s.scale is not None)
    floats = sum(p.numel() for p in network.parameters()) - signs
    described = (tmp_path / "network").stat().st_size - signs / 8 - 4 * floats
    assert described < 5000
