"""The reference in NumPy computes what binep computes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Twins, twins
from torch import Tensor

from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense
from binep.data.batches import prepared
from binep.export import packed, reference


def written(
    folders: pytest.TempPathFactory, trained: packed.Trained | Network
) -> reference.Network:
    path = folders.mktemp("packed") / "network.safetensors"
    packed.save(trained, path)
    return reference.read(path)


def images_for(network: Network, seed: int) -> Tensor:
    """Grey levels for dense layers of more than one input; otherwise numbers of exact sums."""
    shape = network.synapses[0].input_shape
    x = torch.randint(256, (3, *shape), generator=torch.Generator().manual_seed(seed))
    x.view(-1)[0] = 255
    return x.to(torch.uint8) if len(shape) == 1 < shape[0] else x / 256


@given(
    t=twins(activation="binary", weights="binary", cost="squared-error"),
    steps=st.integers(1, 40),
    tolerance=st.sampled_from((0.0, 1e-6)),
    thresholds=st.lists(st.sampled_from((0.2, 0.5, 1.0)), min_size=9, max_size=9),
    seed=st.integers(0, 2**32),
)
def test_bits_are_those_of_binep(
    tmp_path_factory: pytest.TempPathFactory,
    t: Twins,
    steps: int,
    tolerance: float,
    thresholds: list[float],
    seed: int,
) -> None:
    network = t.network.float()
    network.free_steps, network.tolerance = steps, tolerance
    kinds = zip(network.neurons, thresholds, strict=False)
    network.neurons = [replace(n, threshold=threshold) for n, threshold in kinds]  # type: ignore[type-var]
    images = images_for(network, seed)
    end = network.relax(prepared(images), steps, tolerance=tolerance)
    averages = any(isinstance(s, Conv) and s.averages for s in network.synapses)
    assert end.by is not None
    assert end.by.name == ("plain" if averages else "events")
    found = reference.states(written(tmp_path_factory, network), images.numpy())
    # A convolution sends down sums of its channels' α, which are rounded.
    rounding = 1e-6 if any(isinstance(s, Conv) for s in network.synapses[1:]) else 0
    for state, expected in zip(found, end.states, strict=True):
        np.testing.assert_allclose(state, expected.numpy(), rtol=0, atol=rounding, strict=True)


@given(
    t=twins(),
    steps=st.integers(1, 20),
    tolerance=st.sampled_from((0.0, 1e-6)),
    seed=st.integers(0, 2**32),
)
def test_states_and_scores_are_those_of_binep(
    tmp_path_factory: pytest.TempPathFactory, t: Twins, steps: int, tolerance: float, seed: int
) -> None:
    """Any neurons, weights, pooling and cost, step by step, in double precision."""
    network = t.network
    network.speed = Speed(off=SHORTCUTS, precision="exact")
    network.free_steps, network.tolerance = steps, tolerance
    images = images_for(network, seed)
    read = written(tmp_path_factory, network)
    x = prepared(images).double()
    if images.dtype == torch.uint8:
        x = images.double() / 255
    end = network.relax(x, steps, tolerance=tolerance)
    for state, expected in zip(reference.states(read, images.numpy()), end.states, strict=True):
        np.testing.assert_allclose(state, expected.numpy(), atol=1e-9)
    scores = reference.class_scores(read, images.numpy())
    np.testing.assert_allclose(scores, network(x).numpy(), atol=1e-9)


def test_normalised_colours(tmp_path_factory: pytest.TempPathFactory) -> None:
    generator = torch.Generator().manual_seed(1)
    synapses = [Conv((3, 6, 5), 4, generator=generator), Dense((4, 3, 2), 3, generator=generator)]
    network = Network(synapses, Real(), free_steps=30)
    trained = packed.Trained(network, (), (0.1, 0.4, 0.5), (0.3, 0.6, 0.2), power=1.7)
    images = torch.randint(256, (4, 3, 6, 5), generator=generator).to(torch.uint8)
    read = written(tmp_path_factory, trained)
    before = images.clone()
    scores = reference.class_scores(read, images.numpy())
    assert torch.equal(images, before)
    expected = network(trained.prepare(images))
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)


def test_settling_looks_at_bits_and_states_by_themselves(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A tolerance is for real states alone: binary neurons stop when nothing moves."""
    generator = torch.Generator().manual_seed(3)
    synapses = [Dense(5, 6, generator=generator), Dense(6, 3, generator=generator)]
    network = Network(synapses, [Real(), Binary()], free_steps=40, tolerance=0.2)
    x = torch.rand(4, 5, generator=generator)
    end = network.relax(x, 40, tolerance=0.2)
    found = reference.states(written(tmp_path_factory, network), x.numpy())
    np.testing.assert_allclose(found[1], end.output.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["real", "bits", "convolutional_bits", "brightened"])
def test_digits_get_the_same_classes(
    kind: str,
    digits: Tensor,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> None:
    trained = request.getfixturevalue(kind)
    read = written(tmp_path_factory, trained)
    scores = reference.class_scores(read, digits.numpy())
    expected = trained.network(trained.prepare(digits))
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4)
    np.testing.assert_array_equal(scores.argmax(axis=1), expected.argmax(dim=1).numpy())
    assert len(set(scores.argmax(axis=1))) > 4


def test_it_needs_nothing_but_numpy() -> None:
    """Also copied out of the package."""
    source = Path(reference.__file__)
    code = "import sys, reference; print('torch' in sys.modules, 'binep' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
