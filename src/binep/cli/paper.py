"""The command line of the paper's own program, word for word: `python main.py --archi fc ...`.

Its lists run from the output to the input, except `--layersList`; here they become each layer's
own settings. docs/from-the-paper.md maps every flag.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from binep.cli.errors import reporting_errors
from binep.data.sources import input_shape_of
from binep.experiment.config import Config, ConfigError, ConvLayer, Dynamics, Layer, Learning

ACTIVATIONS = {"bin_W": "hardsigm", "bin_W_N": "heaviside"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py",
        description="The paper's command line. Lists run from the output to the input, except "
        "--layersList. For more settings see binep train --help.",
        allow_abbrev=False,
    )
    hardware = parser.add_argument_group("hardware")
    hardware.add_argument("--device", type=int, default=-1, help="GPU number, -1 for the CPU")
    _add_architecture(parser.add_argument_group("architecture"))
    _add_dynamics(parser.add_argument_group("equilibrium propagation"))
    _add_flips(parser.add_argument_group("binary weights"))
    _add_training(parser.add_argument_group("training"))
    ours = parser.add_argument_group("added by binep")
    ours.add_argument("--data-dir", type=Path)
    ours.add_argument("--run-dir", type=Path)
    ours.add_argument("--max-batches", type=int)
    ours.add_argument("--seed", type=int, default=0)
    ours.add_argument("--threads", type=int)
    return parser


def _add_architecture(shape: argparse._ArgumentGroup) -> None:
    shape.add_argument("--archi", choices=("fc", "conv"), required=True)
    shape.add_argument("--binary_settings", choices=tuple(ACTIVATIONS), required=True)
    shape.add_argument("--activationFun", choices=tuple(ACTIVATIONS.values()))
    shape.add_argument("--layersList", "--layerList", nargs="+", type=int, required=True,
                       help="sizes from input to output; of a conv network the classifier's "
                       "only, without its input")  # fmt: skip
    shape.add_argument("--convList", "-convList", nargs="+", type=int,
                       help="channels, output to input, the image's included")  # fmt: skip
    shape.add_argument("--expand_output", type=int, default=1, help="output neurons per class")
    shape.add_argument("--padding", type=int, default=0)
    shape.add_argument("--kernelSize", type=int, default=5)
    shape.add_argument("--Fpool", type=int, default=2)


def _add_dynamics(dynamics: argparse._ArgumentGroup) -> None:
    dynamics.add_argument("--optim", choices=("ep", "bptt"), default="ep")
    dynamics.add_argument("--T", type=int, required=True, help="steps of the free phase")
    dynamics.add_argument("--Kmax", type=int, required=True, help="steps of the nudged phase")
    dynamics.add_argument("--beta", type=float, required=True)
    dynamics.add_argument("--random_beta", type=int, choices=(0, 1), default=0)
    dynamics.add_argument("--gamma_neur", type=float, default=0.5)
    dynamics.add_argument("--rho_threshold", type=float, default=0.5)


def _add_flips(flips: argparse._ArgumentGroup) -> None:
    for flag in ("--gamma", "--gradThreshold"):
        flips.add_argument(flag, nargs="+", type=float, help="fc: one value per layer")
    for new, old in (("--classi_gamma", "--gamma_classi"), ("--classi_threshold", None)):
        flips.add_argument(*filter(None, (new, old)), nargs="+", type=float,
                           help="conv: one value per layer of the classifier")  # fmt: skip
    for new, old in (("--conv_gamma", "--gamma_conv"), ("--conv_threshold", None)):
        flips.add_argument(*filter(None, (new, old)), nargs="+", type=float,
                           help="conv: one value per convolution")  # fmt: skip


def _add_training(training: argparse._ArgumentGroup) -> None:
    training.add_argument("--dataset", choices=("mnist", "cifar10"), default="mnist")
    training.add_argument("--lrBias", nargs="+", type=float, required=True)
    training.add_argument("--batchSize", type=int, default=64)
    training.add_argument("--test_batchSize", type=int, default=512)
    training.add_argument("--epochs", type=int, required=True)
    training.add_argument("--learnAlpha", type=int, choices=(0, 1), default=0)
    training.add_argument("--lrAlpha", nargs="+", type=float)
    training.add_argument("--decayLrAlpha", type=float, default=1.0)
    training.add_argument("--epochDecayLrAlpha", type=int, default=1)


def _words(arguments: Sequence[str]) -> list[str]:
    """Part a flag from a number it is stuck to, as in `8e-8--conv_threshold`."""
    parted = (re.match(r"^([\d.eE+-]*\d)(--\w+)$", word) for word in arguments)
    return [
        part
        for word, match in zip(arguments, parted, strict=True)
        for part in (match.groups() if match else (word,))
    ]


def parse(arguments: Sequence[str]) -> tuple[Config, Path | None]:
    """Turn the paper's flags into a configuration and the run folder, if one is named.

    Raises:
        ConfigError: an unknown flag, or a list that does not fit: flag, length and length needed.
    """
    flags = _parser().parse_args(_words(arguments))
    wanted = ACTIVATIONS[flags.binary_settings]
    if flags.activationFun not in (None, wanted):
        raise ConfigError(
            f"--activationFun {flags.activationFun}: must be {wanted} with "
            f"--binary_settings {flags.binary_settings}"
        )
    bits, conv = flags.binary_settings == "bin_W_N", flags.archi == "conv"
    config = Config(
        title="Paper, by its own command line",
        dataset=flags.dataset,
        data_dir=flags.data_dir,
        epochs=flags.epochs,
        batch_size=flags.batchSize,
        test_batch_size=flags.test_batchSize,
        max_batches=flags.max_batches,
        seed=flags.seed,
        threads=flags.threads,
        device=_device(flags.device),
        dynamics=Dynamics(
            activation="heaviside" if bits else "hard-sigmoid",
            initial_state=1.0 if bits else 0.5 if conv else 0.0,
            free_steps=flags.T,
            nudged_steps=flags.Kmax,
            firing_threshold=flags.rho_threshold,
            neuron_filter=flags.gamma_neur,
        ),
        learning=Learning(
            estimator=flags.optim,
            output_copies=flags.expand_output,
            beta=flags.beta,
            nudging="random-sign" if flags.random_beta else "one-sided",
            clip_nudged=bits or not conv or flags.optim == "bptt",
            hold_nudge=bits and conv,
            momentum_noise=bits and conv,
            zero_bias=bits and conv,
            scale_lr_decay=flags.decayLrAlpha,
            scale_lr_decay_epochs=flags.epochDecayLrAlpha,
        ),
        layers=_layers(flags),
    )
    return config, flags.run_dir


def _layers(flags: argparse.Namespace) -> dict[str, Layer]:
    """The layers from the input to the output, each with its values of the flags' lists."""
    shape, _ = input_shape_of(flags.dataset)
    if flags.archi == "conv":
        if flags.convList is None or len(flags.convList) < 2:
            raise ConfigError("--convList: must name a convolution and the image's channels")
        if flags.convList[-1] != shape[0]:
            raise ConfigError(
                f"--convList {_join(flags.convList)}: must end in {shape[0]}, the channels of "
                f"{flags.dataset}"
            )
        convolutions, classifier = flags.convList[-2::-1], flags.layersList
        gammas = _reversed(flags, "classi_gamma", len(classifier), "conv_gamma", len(convolutions))
        thresholds = _reversed(
            flags, "classi_threshold", len(classifier), "conv_threshold", len(convolutions)
        )
    else:
        inputs = math.prod(shape)
        if flags.layersList[0] != inputs or len(flags.layersList) < 2:
            raise ConfigError(
                f"--layersList {_join(flags.layersList)}: must run from {inputs}, the pixels of "
                f"{flags.dataset}, to the output"
            )
        convolutions, classifier = [], flags.layersList[1:]
        gammas = _reversed(flags, "gamma", len(classifier))
        thresholds = _reversed(flags, "gradThreshold", len(classifier))
    sizes = [*convolutions, *classifier]
    bias_lrs = _reversed(flags, "lrBias", len(sizes))
    scale_lrs = _reversed(flags, "lrAlpha", len(sizes)) if flags.learnAlpha else [0.0] * len(sizes)
    if flags.archi == "fc" and flags.optim == "ep":
        # The original halves the gradient of α in dense networks; its rates were tuned with that.
        scale_lrs = [rate / 2 for rate in scale_lrs]
    geometry: dict[str, Any] = {
        "kernel": flags.kernelSize,
        "padding": flags.padding,
        "pool": flags.Fpool,
    }
    rows = zip(sizes, gammas, thresholds, bias_lrs, scale_lrs, strict=True)
    layers: list[Layer] = []
    for size, gamma, tau, bias_lr, scale_lr in rows:
        rates: dict[str, Any] = {
            "gamma": gamma,
            "threshold": tau,
            "bias_lr": bias_lr,
            "scale_lr": scale_lr,
        }
        conv = len(layers) < len(convolutions)
        layers.append(ConvLayer(size, **geometry, **rates) if conv else Layer(size, **rates))
    return {str(number): layer for number, layer in enumerate(layers, start=1)}


def _reversed(flags: argparse.Namespace, *names_and_lengths: str | int) -> list[float]:
    """Values of one or two flags, each from output to input, turned to run from input to output."""
    values: list[float] = []
    pairs = zip(names_and_lengths[::2], names_and_lengths[1::2], strict=True)
    for name, needed in pairs:
        given = getattr(flags, str(name)) or []
        if len(given) != needed:
            raise ConfigError(f"--{name} has {len(given)} values: must have {needed}, one a layer")
        values = [*values, *given]
    return values[::-1]


def _join(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def _device(number: int) -> str:
    if number < 0:
        return "cpu"
    import torch

    if number < torch.cuda.device_count():
        return f"cuda:{number}"
    print(f"main.py: warning: no CUDA device {number} here: training on the CPU", file=sys.stderr)
    return "cpu"


FLAGS = {
    "free_steps": "--T",
    "nudged_steps": "--Kmax",
    "batch_size": "--batchSize",
    "test_batch_size": "--test_batchSize",
    "firing_threshold": "--rho_threshold",
    "neuron_filter": "--gamma_neur",
    "output_copies": "--expand_output",
}
"""The paper's names of settings that have another here, for errors."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the paper's command line and return the exit code: 0, or 2 for bad input."""
    with reporting_errors() as failed:
        config, run_dir = parse(sys.argv[1:] if arguments is None else arguments)
        try:
            config.check()
        except ConfigError as error:
            names = "|".join(FLAGS)
            text = re.sub(rf"\b({names})\b", lambda m: FLAGS[m[0]], str(error))
            raise ConfigError(text) from None
        from binep.cli.training import run_training

        run_training(config, "main", run_dir)
    return 2 if failed else 0
