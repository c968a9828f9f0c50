"""Trainings that workers share: run by torchrun, or imported to train alone.

torchrun --nproc-per-node N together.py FILE writes what worker 0 found.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from binep.experiment.config import Config, preset
from binep.experiment.experiment import Experiment
from binep.experiment.workers import ALONE, Alone, Workers, joined


def narrowed(name: str, *sizes: int, **learning: Any) -> Config:
    """A preset with smaller layers, on digits, some batches long."""
    config = preset(name)
    layers = {
        number: replace(layer, size=size)
        for (number, layer), size in zip(config.layers.items(), sizes, strict=True)
    }
    return config.replace(
        dataset="mnist5k",
        max_batches=8,
        threads=1,
        layers=layers,
        learning=replace(config.learning, **learning),
    )


SETTINGS = {
    "bits": narrowed("mnist-bits-fc1-ep-alpha-final", 256, 100, beta=1.7),
    "bits, centred, held": narrowed(
        "mnist-bits-fc1-ep-alpha-final", 256, 100, nudging="centred", hold_nudge=True
    ),
    "bits, convolutions": narrowed(
        "mnist-bits-conv-ep-alpha", 8, 12, 100, output_copies=10, beta=0.7
    ),
    # of which the last batch has fewer samples than there are workers
    "bits, odd batches": narrowed("mnist-bits-fc1-ep-alpha-final", 64, 100).replace(
        batch_size=1333, max_batches=None
    ),
    "real": narrowed("mnist-fc1-ep-alpha-final", 64, 10),
    "real, by BPTT": narrowed("mnist-fc1-bptt", 64, 10),
}


def results(config: Config, workers: Alone = ALONE) -> dict[str, Any]:
    """Metrics of three epochs, and the parameters and all else that is kept after them."""
    experiment = Experiment(config, workers=workers)
    epochs = [experiment.train_epoch(warn=lambda text: None) for _ in range(3)]
    state = experiment.state()
    kept = {k: v for k, v in state.items() if k.startswith(("momentum.", "writes.", "decays"))}
    parameters = {**dict(experiment.network.named_parameters()), **kept}
    return {
        "scores": [
            [*scores.errors.values(), scores.loss, *scores.settle_steps]
            for epoch in epochs
            for scores in (epoch.train, epoch.test)
        ],
        "flips": [[layer.flips for layer in epoch.layers if layer] for epoch in epochs],
        "parameters": {name: p.detach().flatten().tolist() for name, p in parameters.items()},
    }


if __name__ == "__main__":
    with joined("cpu") as together:
        found = {name: results(config, together) for name, config in SETTINGS.items()}
        split = Workers(splits_momenta=True)
        found["bits, momenta split"] = results(SETTINGS["bits, centred, held"], split)
        found["real, momenta split"] = results(SETTINGS["real"], split)
        if together.rank == 0:
            Path(sys.argv[1]).write_text(json.dumps(found))
