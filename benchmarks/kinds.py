"""A small network of each kind, on MNIST-5k: what is measured of all kinds of training alike."""

from __future__ import annotations

from typing import Any

from binep.experiment.config import Config, ConvLayer, Dynamics, Layer, Learning

_RATES: dict[str, Any] = {"gamma": 1e-3, "threshold": 1e-5, "bias_lr": 0.05, "scale_lr": 1e-3}
_LAYERS: dict[str, Layer] = {"1": Layer(64, **_RATES), "2": Layer(20, **_RATES)}
_CONV: dict[str, Layer] = {
    "1": ConvLayer(8, kernel=5, padding=1, pool=3, **_RATES),
    "2": Layer(20, **_RATES),
}


def _config(layers: dict[str, Layer], *, bits: bool = False, **learning: Any) -> Config:
    name = "heaviside" if bits else "hard-sigmoid"
    config = Config(
        layers=layers,
        dynamics=Dynamics(name, free_steps=15, nudged_steps=6),
        learning=Learning(output_copies=2, beta=1.0, scale_lr_decay=2, **learning),
        batch_size=32,
        threads=1,
    )
    return config.effective()


KINDS = {
    "real activations": _config(_LAYERS),
    "binary activations": _config(_LAYERS, bits=True),
    "convolution": _config(_CONV),
    "backpropagation through time": _config(_LAYERS, estimator="bptt"),
    "real weights": _config(_LAYERS, synapses="real"),
}
"""Settings by kind; their α are learnt, so that all of a checkpoint changes."""
