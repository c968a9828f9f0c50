"""A trained network as one HTML file that runs it, shows how it settles, and teaches it.

The file needs no server and fetches nothing. It holds the packed network; templates/dynamics.js
computes what binep computes, in a worker, and templates/page.js draws it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from binep.core.costs import CrossEntropy
from binep.core.network import Network
from binep.core.neurons import Binary
from binep.core.synapses import Conv
from binep.data import sources
from binep.data.batches import Dataset
from binep.data.errors import DataError
from binep.data.source import Facts
from binep.experiment.config import Config, ConfigError
from binep.export import packed
from binep.export.description import require_steps
from binep.export.packed import Trained
from binep.runs.files import RunError

LOOKED_AT = 300
"""Images of the test set from which samples are taken, at most."""

CLASSES = 20
"""Classes of which there is a sample, at most."""

MISREAD = 6
"""Samples that the network misreads, at most."""


def page(path: Path, *, warn: Callable[[str], None], **overrides: Any) -> str:
    """The page about a trained network, as HTML.

    Args:
        path: a run folder, a file that was exported from one, or the name of a network that comes
            with binep.
        warn: called where the data set is not at hand: the page then has no samples, or for MNIST
            those of the digits that come with binep.
        overrides: settings of `Config` to replace, but for device, such as data_dir.

    Raises:
        RunError: the run is missing or damaged, or takes no images.
        ConfigError: it learns by a flip rule of its own; or settings that cannot be.
        ValueError: a part that is no class of binep, or a solver that is named.
    """
    trained = packed.read(path)
    require_steps(trained.network, "a page")
    config = trained.config(path)
    shape = tuple(trained.network.synapses[0].input_shape)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise RunError(
            f"{path}: takes inputs of shape {shape}: a page needs images, grey or in colour"
        )
    rule = config.learning.flip_rule
    if rule != "momentum" and config.learning.synapses == "binary":
        raise ConfigError(f"{path}: learns by flip_rule = {rule}: a page knows momentum alone")
    if trained.learnt_floats:
        warn(f"{path}: was trained on floats; a drawing is bytes, as x/255: right for 0 to 1")
    try:
        data = packed.experiment(path, warn=warn, device="cpu", **overrides).data
        samples, count = _samples(trained, data), len(data.train)
    except DataError as error:
        samples, count = [], 0
        if config.dataset == "mnist":
            samples = _samples(trained, sources.load("mnist5k"))
            warn(f"the samples are digits of mnist5k: {error}")
        else:
            warn(f"the page has no samples: {error}")
    return _rendered(trained, config, samples, count)


def _rendered(
    trained: Trained, config: Config, samples: Sequence[Mapping[str, Any]], count: int
) -> str:
    """The template, filled.

    Args:
        trained: the network.
        config: its settings.
        samples: from `_samples`.
        count: training samples; 0 if that is not known.
    """
    environment = Environment(
        loader=PackageLoader("binep.export"), undefined=StrictUndefined, autoescape=True
    )
    network = trained.network
    first, shape = network.synapses[0], network.synapses[0].input_shape
    return environment.get_template("page.html").render(
        title=config.summary(Facts(shape, trained.classes)),
        lead=_lead(trained),
        drawable=shape[0] == 1,
        bits=isinstance(network.neurons[0], Binary),
        binary=_is_binary(network),
        conv=isinstance(first, Conv),
        first=f"{torch.Size(first.output_shape).numel():,}",
        samples_trained=f"{count:,}" if count else "many",
        batch=config.batch_size,
        facts=_json(_facts(trained, config, samples)),
        network=Markup(base64.b64encode(packed.content(trained)).decode()),
        style=Markup(_template("page.css")),
        dynamics=Markup(_template("dynamics.js")),
        script=Markup(_template("page.js")),
    )


def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _json(value: Any) -> Markup:
    """JSON that can stand in a script: nothing in it ends the element."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))


def _is_binary(network: Network) -> bool:
    """Whether its weights are binary: the setting is one for all layers that have a page."""
    return network.synapses[0].scale is not None


def _lead(trained: Trained) -> str:
    """What the network consists of, in a sentence, and what to do."""
    network = trained.network
    neurons = sum(torch.Size(synapse.output_shape).numel() for synapse in network.synapses)
    weights = sum(synapse.values.numel() for synapse in network.learning_synapses())
    binary = _is_binary(network)
    kind = "weights of one bit each" if binary else "weights"
    digits = network.cost.classes == 10 and trained.classes in ((), tuple("0123456789"))
    image = "a digit" if digits else "an image"
    begin = f"Draw {image}" if network.synapses[0].input_shape[0] == 1 else "Take an image"
    return f"{neurons:,} neurons, {weights:,} {kind}. {begin}, watch it settle, nudge it, teach it."


def _facts(
    trained: Trained, config: Config, samples: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the script needs to know beside the network."""
    network, learning = trained.network, config.learning
    rates = ("gamma", "threshold", "bias_lr", "weight_lr", "scale_lr")
    layers = config.layers.values()
    return {
        "shape": network.synapses[0].input_shape,
        "classes": trained.classes or [str(c) for c in range(network.cost.classes)],
        "tolerance": network.tolerance,
        "readout": isinstance(network.cost, CrossEntropy),
        "binary": _is_binary(network),
        "learning": {
            "beta": learning.beta,
            "nudging": learning.nudging,
            "nudged_steps": config.dynamics.nudged_steps,
            "layers": [{name: getattr(layer, name) for name in rates} for layer in layers],
        },
        "samples": samples,
    }


def _samples(trained: Trained, data: Dataset) -> list[dict[str, Any]]:
    """Images of the test set: of each class the first that is read right, then some misread.

    Args:
        trained: the network that reads them.
        data: its data set.
    """
    spread = slice(None, None, -(-len(data.test) // LOOKED_AT))  # it may be sorted by class
    images, labels = data.test.images[spread], data.test.labels[spread].tolist()
    if images.dtype != torch.uint8:
        raise DataError(f"{data.name} has images of {images.dtype}, not of bytes")
    read = trained.network.predict(trained.prepare(images)).tolist()
    right = {label: i for i, label in reversed(list(enumerate(labels))) if read[i] == label}
    wrong = [i for i, label in enumerate(labels) if read[i] != label]
    return [
        {
            "label": labels[i],
            "read": read[i],
            "image": base64.b64encode(images[i].numpy().tobytes()).decode(),
        }
        for i in [*[right[label] for label in sorted(right)[:CLASSES]], *wrong[:MISREAD]]
    ]
