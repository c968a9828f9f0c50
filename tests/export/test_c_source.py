"""The C that is written compiles without a warning and computes what binep computes."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Twins, twins
from torch import Tensor

from binep.core.costs import CrossEntropy
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Dense
from binep.export import c_source, packed
from binep.export.packed import Trained

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler, cc")


@functools.cache
def sanitizers() -> list[str]:
    """Flags by which a program ends at once where it reads or does what it may not."""
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    tried = ["cc", *flags, "-x", "c", "-", "-o", os.devnull]
    done = subprocess.run(tried, input=b"int main(void) { return 0; }", capture_output=True)
    return flags if done.returncode == 0 else []


def classified(trained: Trained, images: Tensor, folder: Path, *more: str) -> tuple[Tensor, Tensor]:
    """What the compiled test program prints: classes (batch,) and scores (batch, classes)."""
    header, program = folder / "network.h", folder / "network"
    c_source.save(trained, header)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-ffp-contract=off", *more]
    source = folder / "network_test.c"
    subprocess.run(["cc", *flags, str(source), "-o", str(program)], check=True)
    done = subprocess.run(
        [program], input=images.numpy().tobytes(), capture_output=True, check=True
    )
    rows = [[float(word) for word in line.split()] for line in done.stdout.splitlines()]
    found = torch.tensor(rows)
    return found[:, 0].long(), found[:, 1:]


@needs_cc
@pytest.mark.parametrize(
    "kind", ["real", "bits", "convolutional_real", "convolutional_bits", "brightened"]
)
def test_digits_get_the_same_classes(
    kind: str, digits: Tensor, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trained = request.getfixturevalue(kind)
    classes, scores = classified(trained, digits, tmp_path, "-O2")
    expected = trained.network(trained.prepare(digits))
    assert torch.equal(classes, expected.argmax(dim=1))
    torch.testing.assert_close(scores, expected, atol=1e-6 if "bits" in kind else 1e-4, rtol=0)
    assert len(classes.unique()) > 4


@needs_cc
@settings(max_examples=25)
@given(
    t=twins(),
    steps=st.integers(1, 12),
    normalised=st.booleans(),
    power=st.sampled_from((1.0, 0.35)),
)
def test_any_network_computes_the_same(
    tmp_path_factory: pytest.TempPathFactory, t: Twins, steps: int, normalised: bool, power: float
) -> None:
    network = t.network.float()
    network.speed = Speed(off=SHORTCUTS, precision="exact")
    network.free_steps = steps
    if isinstance(network.neurons[0], Binary):  # no state is within rounding of it
        network.neurons = [Binary(0.4321, 0.7)] * len(network)
    shape = network.synapses[0].input_shape
    each = (0.3,) * shape[0], (0.6,) * shape[0]
    trained = Trained(network, (), *each) if normalised else Trained(network)
    trained = replace(trained, power=power)
    images = torch.randint(256, (3, *shape)).to(torch.uint8)
    expected = network(trained.prepare(images))
    _, scores = classified(trained, images, tmp_path_factory.mktemp("c"), *sanitizers())
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


@needs_cc
@pytest.mark.parametrize("shape", [(3, 4, 5), (3,)], ids=["channels", "features"])
def test_channels_are_normalised_each_by_its_own(shape: tuple[int, ...], tmp_path: Path) -> None:
    network = Network([Dense(shape, 4), Dense(4, 2)], Real(), free_steps=20)
    network.speed = Speed(off=SHORTCUTS, precision="exact")
    trained = Trained(network, (), (0.1, 0.4, 0.5), (0.3, 0.6, 0.2))
    images = torch.randint(256, (5, *shape)).to(torch.uint8)
    _, scores = classified(trained, images, tmp_path, "-O2")
    expected = network(trained.prepare(images))
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


@needs_cc
def test_more_classes_than_output_neurons_are_read_by_softmax(tmp_path: Path) -> None:
    cost = CrossEntropy(Dense(1, 200, weights="real"))
    network = Network([Dense(4, 1)], Real(), cost, free_steps=5)
    images = torch.randint(256, (3, 4)).to(torch.uint8)
    _, scores = classified(Trained(network), images, tmp_path, *sanitizers())
    torch.testing.assert_close(scores, network(images.float() / 255), atol=1e-4, rtol=0)


def test_signs_lie_in_words_of_64_and_floats_come_back() -> None:
    signs = np.where(np.arange(2 * 70).reshape(2, 70) % 3 == 0, 1, -1)
    words = c_source._packed(signs)
    assert len(words) == 4
    for place, sign in np.ndenumerate(signs):
        word = int(words[2 * place[0] + place[1] // 64])
        assert (word >> place[1] % 64) & 1 == (sign > 0)
    for value in np.float32([0.1, 1e-30, 3.4e38, -7, 2**-20 / 3]):
        assert np.float32(c_source._float(value).removesuffix("f")) == value


def test_the_command_names_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from binep.cli.main import main

    packed.save(Network([Dense(4, 3)], Real()), tmp_path / "saved")
    assert main(["export", str(tmp_path / "saved"), "--format", "c"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [Path(line.split("  ")[0]).name for line in said] == ["network.h", "network_test.c"]
    assert '#include "network.h"' in (tmp_path / "network_test.c").read_text()
