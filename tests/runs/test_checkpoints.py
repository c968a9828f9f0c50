"""Networks in files: read back to the bit, or refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from torch import Tensor

from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.synapses import Conv, Dense
from binep.experiment.experiment import stored
from binep.runs import checkpoints
from binep.runs.files import RunError
from binep.runs.tensors import _panics_are_errors, save_tensors


def network() -> Network:
    generator = torch.Generator().manual_seed(0)
    conv = Conv((1, 4, 4), 2, kernel=3, padding=1, generator=generator)
    return Network(
        [
            conv,
            Dense(conv.output_shape, 3, weights="real", generator=generator),
            Dense(3, 2, generator=generator),
        ],
        Real(0.0, "outside", True),
    )


def states(module: Network) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    checkpoints.save_network(stored(network()), path)
    return path


def test_a_network_is_read_back_to_the_bit(model: Path) -> None:
    other = network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-2)
    checkpoints.load_network(other, model)
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in states(network()).items())


Change = Callable[[dict[str, Tensor]], object]
CHANGES: list[tuple[Change, tuple[str, ...]]] = [
    (lambda s: s.pop("synapses.1.bias"), ("synapses.1.bias missing",)),
    (lambda s: s.update(extra=torch.zeros(1)), ("extra missing or unknown",)),
    (lambda s: s.update({"synapses.2.values": s["synapses.2.values"].T}), ("(3, 2)", "(2, 3)")),
    (lambda s: s["synapses.2.values"].view(-1)[1:2].fill_(0), ("synapses.2.values", "signs")),
    (lambda s: s["synapses.0.values"].view(-1)[1:2].fill_(-128), ("synapses.0.values", "signs")),
    (lambda s: s.update({"synapses.2.values": torch.full((2, 3), 0.5)}), ("float32", "int8")),
    (
        lambda s: s.update({"synapses.1.bias": torch.ones(3, dtype=torch.complex64)}),
        ("complex64", "float32"),
    ),
    (lambda s: s["synapses.0.scale"].fill_(torch.nan), ("synapses.0.scale", "finite")),
    (lambda s: s["synapses.1.values"][:1].fill_(torch.inf), ("synapses.1.values", "finite")),
]


@pytest.mark.parametrize(("change", "reasons"), CHANGES)
def test_a_file_of_another_network_is_refused(
    model: Path, tmp_path: Path, change: Change, reasons: tuple[str, ...]
) -> None:
    state = {n: t.clone() for n, t in safetensors.torch.load(model.read_bytes()).items()}
    change(state)
    path = tmp_path / "model.safetensors"
    save_tensors(path, state, {"kind": "network"})
    target = network()
    with refused(path, *reasons):
        checkpoints.load_network(target, path)
    assert all(torch.equal(t, target.state_dict()[n]) for n, t in states(network()).items())


@given(st.data())
def test_a_damaged_file_is_refused_or_holds_a_network(
    tmp_path_factory: pytest.TempPathFactory, model: Path, data: st.DataObject
) -> None:
    content = bytearray(model.read_bytes())
    kind = data.draw(st.sampled_from(("cut", "random", "changed")))
    if kind == "changed":
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    elif kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content = bytearray(data.draw(st.binary()))
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content)
    target = network()
    if kind != "changed":
        with refused(path, "damaged"):
            checkpoints.load_network(target, path)
        return
    with contextlib.suppress(RunError):  # a change of the header's blanks changes nothing
        checkpoints.load_network(target, path)
    for name, tensor in states(network()).items():
        assert torch.equal(tensor, target.state_dict()[name])


def test_a_type_that_torch_lacks_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = b'{"x":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with refused(path, "no safetensors file"):
        checkpoints.load_network(network(), path)


def test_what_does_not_fit_is_a_memory_error(tmp_path: Path) -> None:
    """Not a panic of the library, which prints lines of its own."""

    class PanicException(BaseException):
        pass

    for error in (MemoryError(), PanicException("null")):
        with pytest.raises(MemoryError, match="does not fit"), _panics_are_errors(tmp_path, 1):
            raise error
    with pytest.raises(MemoryError, match="does not fit"), _panics_are_errors(tmp_path, 2**60):
        pass
