"""The paper's eighteen command lines: parsed as printed, equal to their presets, and running."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import samples
import torch

from binep.analysis import claims
from binep.cli import paper as seed_cli
from binep.experiment.config import Config, ConfigError, preset, preset_names
from binep.experiment.experiment import Experiment

LINES = (Path(__file__).parent.parent / "seed_commands.txt").read_text().splitlines()
COMMANDS = {name: line.split()[2:] for name, line in (line.split(": ") for line in LINES)}
FIRST = COMMANDS["mnist-fc1-ep"]
BITS = COMMANDS["mnist-bits-conv-ep"]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.write_cifar10(samples.write_mnist(tmp_path_factory.mktemp("data")))


def replaced(words: list[str], flag: str, *values: str) -> list[str]:
    """A command line with other values for a flag."""
    start = words.index(flag)
    end = next((i for i in range(start + 1, len(words)) if words[i][:1] == "-"), len(words))
    return [*words[: start + 1], *values, *words[end:]]


def test_there_are_eighteen_and_each_is_a_preset() -> None:
    assert len(COMMANDS) == 18
    others = {name for name in preset_names() if name.endswith(("-reference", "-final", "-best"))}
    assert set(preset_names()) - others == {*COMMANDS, "quickstart"}


def test_what_the_authors_corrected_is_a_preset_beside_the_printed_one() -> None:
    """By hand, from their corrected commands: hidden sizes, outputs and steps, nothing else."""
    sizes = {
        "mnist-fc1-ep-alpha": ([4096, 10], 1, 10),
        "mnist-bits-fc1-ep-alpha": ([8192, 100], 10, 10),
        "mnist-bits-fc2-ep": ([8192, 8192, 6000], 600, 10),
        "mnist-bits-fc2-ep-alpha": ([8192, 8192, 6000], 600, 10),
    }
    assert {row.corrects for row in claims.rows().values()} - {None} == set(sizes)
    for name, (wanted, copies, nudged_steps) in sizes.items():
        printed, final = preset(name), preset(f"{name}-final")
        assert [layer.size for layer in final.layers.values()] == wanted
        assert final.learning.output_copies == copies
        assert final.dynamics.nudged_steps == nudged_steps
        same = {n: dataclasses.replace(layer, size=1) for n, layer in printed.layers.items()}
        layers = {n: dataclasses.replace(layer, size=1) for n, layer in final.layers.items()}
        assert layers == same
        assert dataclasses.replace(final.learning, output_copies=1) == dataclasses.replace(
            printed.learning, output_copies=1
        )


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_as_printed_is_its_preset(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run_dir = seed_cli.parse(COMMANDS[name])
    assert dataclasses.replace(config, title="") == dataclasses.replace(preset(name), title="")
    assert run_dir is None
    if not torch.cuda.is_available():
        assert capsys.readouterr().err.count("\n") == 1  # --device 0: warned once


def test_lists_run_from_the_output_to_the_input() -> None:
    """Hand-read from the printed commands, independently of the presets."""
    layers = seed_cli.parse(BITS)[0].layers
    assert [layer.size for layer in layers.values()] == [256, 512, 700]
    assert [layer.kind for layer in layers.values()] == ["conv", "conv", "dense"]
    assert [layer.threshold for layer in layers.values()] == [2e-7, 8e-8, 8e-8]
    assert [layer.bias_lr for layer in layers.values()] == [1e-5, 5e-6, 2e-6]
    learnt = seed_cli.parse(COMMANDS["mnist-bits-conv-ep-alpha"])[0].layers
    assert [layer.scale_lr for layer in learnt.values()] == [1e-3, 1e-3, 1e-5]
    dense = seed_cli.parse(COMMANDS["mnist-bits-fc2-ep"])[0].layers
    assert [layer.threshold for layer in dense.values()] == [5e-8, 1e-8, 2e-8]
    cifar = seed_cli.parse(COMMANDS["cifar10-conv-ep-alpha"])[0]
    assert [layer.size for layer in cifar.layers.values()] == [64, 128, 256, 256, 10]
    assert [layer.scale_lr for layer in cifar.layers.values()] == [1e-2] * 4 + [1e-4]
    assert (cifar.learning.scale_lr_decay, cifar.learning.scale_lr_decay_epochs) == (10, 10)


def test_alpha_is_halved_in_dense_networks_with_ep_only() -> None:
    words = [*COMMANDS["mnist-fc1-bptt"], "--learnAlpha", "1", "--lrAlpha", "1e-4", "2e-4"]
    assert [layer.scale_lr for layer in seed_cli.parse(words)[0].layers.values()] == [2e-4, 1e-4]
    words = replaced(words, "--optim", "ep")
    assert [layer.scale_lr for layer in seed_cli.parse(words)[0].layers.values()] == [1e-4, 5e-5]


def shrunk(config: Config, data_dir: Path) -> Config:
    """The same setting, a few neurons wide, for two batches."""
    *hidden, (last, output) = config.layers.items()
    layers = {n: dataclasses.replace(layer, size=min(layer.size, 6)) for n, layer in hidden}
    dynamics = dataclasses.replace(config.dynamics, free_steps=12, nudged_steps=4)
    return config.replace(
        data_dir=data_dir,
        batch_size=4,
        max_batches=2,
        epochs=1,
        threads=1,
        dynamics=dynamics,
        layers={**layers, last: output},
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_trains(name: str, data_dir: Path) -> None:
    experiment = Experiment(shrunk(seed_cli.parse(COMMANDS[name])[0], data_dir))
    before = [s.bias.detach().clone() for s in experiment.network.synapses]
    alphas = [s.scale.detach().clone() for s in experiment.network.synapses if s.scale is not None]
    result = experiment.train_epoch()
    assert result.train.samples == 8
    assert 0 <= result.test.error <= 100
    assert not torch.equal(before[-1], experiment.network.synapses[-1].bias)
    for synapse, alpha in zip(experiment.network.synapses, alphas, strict=True):
        assert synapse.scale is not None
        assert torch.equal(synapse.values.abs(), torch.ones_like(synapse.values))
        assert torch.equal(synapse.scale, alpha) or "alpha" in name
    if "alpha" in name:
        last = experiment.network.synapses[-1].scale
        assert last is not None
        assert not torch.equal(last, alphas[-1])


def test_the_first_command_runs_word_for_word(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = f"--data-dir {data_dir} --run-dir {tmp_path / 'run'} --max-batches 2 --seed 3"
    words = [*replaced(FIRST, "--epochs", "1"), *ours.split(), "--threads", "1"]
    assert seed_cli.main(words) == 0
    said = capsys.readouterr()
    assert "\n  1/1 " in said.out
    assert torch.cuda.is_available() or "training on the CPU" in said.err
    config = Config.load(tmp_path / "run" / "config.toml")
    assert (config.seed, config.max_batches, config.layers["1"].size) == (3, 2, 4096)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (replaced(FIRST, "--gamma", "1e-5"), "--gamma has 1 values: must have 2"),
        (replaced(FIRST, "--lrBias", "1", "2", "3"), "--lrBias has 3 values: must have 2"),
        (replaced(FIRST, "--gradThreshold"), "expected at least one argument"),
        (replaced(BITS, "--conv_threshold", "1"), "--conv_threshold has 1 values: must have 2"),
        (replaced(BITS, "--classi_gamma", "1", "2"), "--classi_gamma has 2 values: must have 1"),
        (replaced(FIRST, "--learnAlpha", "1"), "--lrAlpha has 0 values: must have 2"),
        (replaced(FIRST, "--layersList", "783", "10"), "--layersList 783 10: must run from 784"),
        (replaced(FIRST, "--dataset", "cifar10"), "must run from 3072, the pixels of cifar10"),
        (replaced(BITS, "-convList", "5", "3"), "--convList 5 3: must end in 1, the channels of"),
        (replaced(FIRST, "--activationFun", "heaviside"), "must be hardsigm with --binary"),
        ([*FIRST, "--gama", "1"], "unrecognized arguments: --gama"),
        (replaced(FIRST, "--T", "many"), "--T: invalid int value"),
    ],
)
def test_flags_that_do_not_fit_are_refused_by_name(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        seed_cli.parse(words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--T", "0", "--T = 0: must be"),
        ("--beta", "0", "beta = 0.0: must be"),
        ("--batchSize", "0", "--batchSize = 0: must be"),
    ],
)
def test_values_out_of_range_end_with_one_line(
    flag: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = replaced(replaced(FIRST, flag, value), "--device", "-1")
    assert seed_cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"binep: {message}")
    assert said.count("\n") == 1


def test_a_single_convolution_another_pool_and_a_deep_classifier(data_dir: Path) -> None:
    words = replaced(BITS, "-convList", "4", "1")
    for flag, values in {
        "--layersList": ("5", "20"),
        "--expand_output": ("2",),
        "--Fpool": ("4",),
        "--classi_gamma": ("1e-3", "1e-3"),
        "--classi_threshold": ("1e-3", "2e-3"),
        "--conv_gamma": ("1e-3",),
        "--conv_threshold": ("3e-3",),
    }.items():
        words = replaced(words, flag, *values)
    config = shrunk(seed_cli.parse(words)[0], data_dir)
    assert [layer.threshold for layer in config.layers.values()] == [3e-3, 2e-3, 1e-3]
    assert Experiment(config).train_epoch().train.samples == 8
