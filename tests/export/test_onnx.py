"""The ONNX graph computes, by onnxruntime, what binep computes."""

from __future__ import annotations

import sys
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
from binep.core.synapses import Conv, Dense
from binep.export import onnx_graph, packed
from binep.export.packed import Trained
from binep.runs.files import RunError

onnx = pytest.importorskip("onnx", reason="pip install 'binep[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'binep[onnx]'")


def scores_of(trained: Trained, images: Tensor, folder: Path) -> Tensor:
    path = folder / "network.onnx"
    onnx_graph.save(trained, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"images": images.numpy()})
    return torch.from_numpy(scores)


@pytest.mark.parametrize("kind", ["real", "bits", "convolutional_bits", "brightened"])
def test_digits_get_the_same_classes(
    kind: str, digits: Tensor, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trained = request.getfixturevalue(kind)
    scores = scores_of(trained, digits / 255, tmp_path)
    expected = trained.network(trained.prepare(digits))
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    assert torch.equal(scores.argmax(dim=1), expected.argmax(dim=1))


@pytest.mark.parametrize("shape", [(3, 4, 5), (3,)], ids=["channels", "features"])
def test_channels_are_normalised_each_by_its_own(shape: tuple[int, ...], tmp_path: Path) -> None:
    network = Network([Dense(shape, 4), Dense(4, 2)], Real(), free_steps=20)
    network.speed = Speed(off=SHORTCUTS, precision="exact")
    trained = Trained(network, (), (0.1, 0.4, 0.5), (0.3, 0.6, 0.2))
    for count in (1, 3, 5):
        images = torch.rand(count, *shape)
        scores = scores_of(trained, images, tmp_path)
        torch.testing.assert_close(scores, network(trained.prepare(images)), atol=1e-4, rtol=0)


@settings(max_examples=40)
@given(t=twins(), steps=st.integers(1, 12), tolerance=st.sampled_from((0.0, 1e-6)))
def test_any_network_computes_the_same(
    tmp_path_factory: pytest.TempPathFactory, t: Twins, steps: int, tolerance: float
) -> None:
    network = t.network.float()
    network.speed = Speed(off=SHORTCUTS, precision="exact")
    network.free_steps, network.tolerance = steps, tolerance
    if isinstance(network.neurons[0], Binary):  # no state is within rounding of it
        network.neurons = [Binary(0.4321, 0.7)] * len(network)
    x = (t.x * 256).round().float() / 256  # sums are exact, so that maxima tie in both
    scores = scores_of(Trained(network), x, tmp_path_factory.mktemp("onnx"))
    torch.testing.assert_close(scores, network(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "neurons", [Real(initial=0), Real(initial=1), Binary(threshold=1, filter=1, initial=1)]
)
def test_settings_may_be_whole_numbers(neurons: Real | Binary, tmp_path: Path) -> None:
    network, x = Network([Dense(6, 4), Dense(4, 2)], neurons, free_steps=5), torch.rand(3, 6)
    network.speed = Speed(off=SHORTCUTS, precision="exact")
    scores = scores_of(Trained(network), x, tmp_path)
    torch.testing.assert_close(scores, network(x), atol=1e-4, rtol=0)


def test_inputs_are_normalised_and_batches_of_any_size(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    readout = CrossEntropy(Dense(6, 3, generator=generator))
    conv = Conv((3, 7, 6), 2, pool=3, pooling="average", generator=generator)
    network = Network([conv, Dense((2, 2, 2), 6, generator=generator)], Real(), readout)
    trained = Trained(network, (), (0.1, 0.4, 0.5), (0.3, 0.6, 0.2), power=0.35)
    for batch in (1, 5):
        images = torch.randint(256, (batch, 3, 7, 6), generator=generator).to(torch.uint8)
        expected = network(trained.prepare(images))
        scores = scores_of(trained, images / 255, tmp_path)
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_it_stops_where_all_has_settled(tmp_path: Path) -> None:
    """A million steps would take long; and the opset is the one that is said."""
    network = Network([Dense(5, 4), Dense(4, 3)], Binary(), free_steps=10**9)
    x = torch.rand(2, 5)
    assert scores_of(Trained(network), x, tmp_path).shape == (2, 3)
    model = onnx.load(tmp_path / "network.onnx")
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert "Loop" in {node.op_type for node in model.graph.node}
    signs = [c for c in model.graph.initializer if c.data_type == onnx.TensorProto.INT8]
    assert sorted(np.prod(c.dims) for c in signs) == [12, 20]


def test_the_command_writes_it_or_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from binep.cli.main import main

    saved = str(tmp_path / "saved")
    packed.save(Network([Dense(4, 3)], Real()), saved)
    assert main(["export", saved, "--format", "onnx"]) == 0
    assert (tmp_path / "network.onnx").exists()
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", saved, "--format", "onnx"]) == 2
    assert "pip install 'binep[onnx]'" in capsys.readouterr().err
    with pytest.raises(RunError, match="not installed"):
        onnx_graph.save(packed.read(Path(saved)), tmp_path / "other.onnx")
