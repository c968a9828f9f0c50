"""A network as an ONNX graph: from the input to class scores, with the free phase inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from binep.core.costs import Cost, CrossEntropy
from binep.core.network import Network
from binep.core.neurons import Binary, Neurons
from binep.core.synapses import Conv, Synapse
from binep.export import description
from binep.export.packed import Trained
from binep.runs.files import RunError, write

OPSET = 18
"""Of ONNX's standard operators, the only ones that are used."""


def save(trained: Trained | Network, path: Path | str) -> None:
    """Write a model of one input and one output, `images` and `scores`.

    `images` are (batch, *input_shape), float32 from 0 to 1, as grey levels over 255; the graph
    normalises them where the network was trained so. `scores` are (batch, classes). A `Loop` takes
    the steps of the free phase, all layers at once, until all has settled or `free_steps` are used
    up: the whole batch settles together.

    Args:
        trained: a network, with or without what its inputs and outputs mean; the parameters become
            float32.
        path: the file's.

    Raises:
        RunError: ONNX is not installed, or the file cannot be written.
        ValueError: a part that is no class of binep, or a solver that is named.
    """
    try:
        import onnx
    except ImportError:
        raise RunError("--format onnx: ONNX is not installed: pip install 'binep[onnx]'") from None
    trained = Trained(trained) if isinstance(trained, Network) else trained
    description.described(trained.network)
    description.require_steps(trained.network, "ONNX")
    model = _model(trained)
    onnx.checker.check_model(model, full_check=True)
    write(Path(path), model.SerializeToString())


class _Graph:
    """Nodes and constants as they come.

    Args:
        prefix: of the names of its values.
    """

    def __init__(self, prefix: str) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._prefix, self._count = prefix, 0

    def _name(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"

    def constant(self, values: Any, real: Any = np.float32) -> str:
        """The name of a constant: a tensor, ``real`` of a float, int64 of whole numbers."""
        from onnx import numpy_helper

        if isinstance(values, Tensor):
            values = values.detach().numpy()
        array = np.asarray(values)
        if array.dtype == np.float64:
            array = array.astype(real)
        name = self._name()
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, *inputs: Any, **attributes: Any) -> str:
        """The name of an operator's output; inputs are names, or numbers for constants."""
        return self.add_many(operator, 1, *inputs, **attributes)[0]

    def add_many(self, operator: str, count: int, *inputs: Any, **attributes: Any) -> list[str]:
        """The names of an operator's outputs."""
        from onnx import helper

        given = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        outputs = [self._name() for _ in range(count)]
        self.nodes.append(helper.make_node(operator, given, outputs, **attributes))
        return outputs


_Route = tuple[str, ...]
_NOWHERE: _Route = ()


class _Layer:
    """Synapses whose parameters are in a graph, to be multiplied in it or in its loop's body."""

    def __init__(self, graph: _Graph, synapse: Synapse) -> None:
        self.synapse = synapse
        one_each = (-1, 1, 1) if isinstance(synapse, Conv) else (-1,)
        self.bias = graph.constant(synapse.bias.detach().float().view(one_each))
        self.scale = None
        values = synapse.values.detach().float()
        if synapse.scale is None:
            self.weights = graph.constant(values)
            return
        self.weights = graph.add("Cast", values.to(torch.int8), to=1)  # a byte per sign
        scale = synapse.scale.detach().float()
        self.scale = graph.constant(scale.view(one_each) if scale.dim() else scale)

    def _scaled(self, graph: _Graph, value: str) -> str:
        return value if self.scale is None else graph.add("Mul", value, self.scale)

    def up(self, graph: _Graph, below: str) -> tuple[str, _Route]:
        """W ⋆ below + b, and of max-pooling the indices of the maxima and the map's shape."""
        synapse, route = self.synapse, _NOWHERE
        if not isinstance(synapse, Conv):
            drive = graph.add("Gemm", graph.add("Flatten", below), self.weights, transB=1)
        else:
            drive = graph.add("Conv", below, self.weights, pads=[synapse.padding] * 4)
            window = {"kernel_shape": [synapse.pool] * 2, "strides": [synapse.pool] * 2}
            if synapse.has_route:
                shape = graph.add("Shape", drive)
                drive, indices = graph.add_many("MaxPool", 2, drive, **window)
                route = (indices, shape)
            elif synapse.pool > 1:
                drive = graph.add("AveragePool", drive, **window)
        return graph.add("Add", self._scaled(graph, drive), self.bias), route

    def down(self, graph: _Graph, above: str, route: _Route, like: Synapse) -> str:
        """Wᵀ ⋆ above, in the shape of the layer below."""
        synapse = self.synapse
        if not isinstance(synapse, Conv):
            product = self._scaled(graph, graph.add("MatMul", above, self.weights))
            return graph.add("Reshape", product, [-1, *like.output_shape])
        above, window = self._scaled(graph, above), [synapse.pool] * 2
        if synapse.has_route:
            indices, shape = route
            above = graph.add(
                "MaxUnpool", above, indices, shape, kernel_shape=window, strides=window
            )
        elif synapse.pool > 1:
            above = graph.add("Div", above, float(synapse.pool**2))
            ones = torch.ones(len(synapse.values), 1, *window)
            left = [side % synapse.pool for side in synapse.map_shape]  # filled no window
            above = graph.add(
                "ConvTranspose", above, ones,
                group=len(ones), strides=window, output_padding=left,
            )  # fmt: skip
        return graph.add("ConvTranspose", above, self.weights, pads=[synapse.padding] * 4)


def _model(trained: Trained) -> Any:
    from onnx import TensorProto, helper

    network, graph = trained.network, _Graph("v")
    layers = [_Layer(graph, synapse) for synapse in network.synapses]
    x = "images"
    if trained.power != 1:
        exponent = graph.constant(trained.power, np.float64)
        raised = graph.add("Pow", graph.add("Cast", x, to=TensorProto.DOUBLE), exponent)
        x = graph.add("Cast", raised, to=TensorProto.FLOAT)
    for operator, values in (("Sub", trained.mean), ("Div", trained.std)):
        if values is not None:
            sides = len(network.synapses[0].input_shape) - 1  # none of features
            x = graph.add(operator, x, torch.tensor(values).view(-1, *[1] * sides))
    drive, _ = layers[0].up(graph, x)
    batch = graph.add("Shape", "images", start=0, end=1)
    states = []
    for synapse, neurons in zip(network.synapses, network.neurons, strict=True):
        shape = graph.add("Concat", batch, list(synapse.output_shape), axis=0)
        states.append(graph.add("Expand", float(neurons.initial), shape))
    body = _step(network, layers, drive)
    ends = graph.add_many("Loop", len(states), network.free_steps, "", *states, body=body)
    _add_scores(graph, network.cost, ends[-1])
    given: list[str | int | None] = ["batch", *network.synapses[0].input_shape]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, given)
    classes: list[str | int | None] = ["batch", network.cost.classes]
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, classes)
    whole = helper.make_graph(graph.nodes, "network", [images], [scores], graph.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(whole, opset_imports=opsets, producer_name="binep", ir_version=8)


def _step(network: Network, layers: list[_Layer], drive: str) -> Any:
    """The body of the loop: the states after a time step, and whether another is needed."""
    from onnx import TensorProto, helper

    graph, count = _Graph("s"), len(layers)
    states = [f"state{k}" for k in range(count)]
    sent = [_fired(graph, *pair) for pair in zip(network.neurons, states, strict=True)]
    arrived = [(drive, _NOWHERE), *(a.up(graph, r) for a, r in zip(layers[1:], sent, strict=False))]
    new, settled = [], []
    for k, (neurons, state) in enumerate(zip(network.neurons, states, strict=True)):
        p, _ = arrived[k]
        if k + 1 < count:
            route = arrived[k + 1][1]
            p = graph.add(
                "Add", p, layers[k + 1].down(graph, sent[k + 1], route, layers[k].synapse)
            )
        if isinstance(neurons, Binary):
            kept = graph.add("Mul", 1 - float(neurons.filter), state)
            p = graph.add("Add", kept, graph.add("Mul", float(neurons.filter), p))
        new.append(graph.add("Clip", p, 0.0, 1.0))
        change = graph.add("Abs", graph.add("Sub", new[-1], state))
        allowed = 0.0 if neurons.settle_exactly else network.tolerance
        most = graph.add("ReduceMax", change, keepdims=0)
        settled.append(graph.add("LessOrEqual", most, float(allowed)))
    all_have = settled[0]
    for one in settled[1:]:
        all_have = graph.add("And", all_have, one)
    more = graph.add("Not", all_have) if network.tolerance > 0 else graph.add("Identity", "more")
    given = [
        helper.make_tensor_value_info("step", TensorProto.INT64, []),
        helper.make_tensor_value_info("more", TensorProto.BOOL, []),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in states),
    ]
    results = [
        helper.make_tensor_value_info(more, TensorProto.BOOL, []),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in new),
    ]
    return helper.make_graph(graph.nodes, "step", given, results, graph.constants)


def _fired(graph: _Graph, neurons: Neurons, state: str) -> str:
    """What neurons send."""
    if not isinstance(neurons, Binary):
        return state
    return graph.add("Cast", graph.add("GreaterOrEqual", state, float(neurons.threshold)), to=1)


def _add_scores(graph: _Graph, cost: Cost, output: str) -> None:
    """The class scores of an output, as the graph's value `scores`."""
    from onnx import helper

    if isinstance(cost, CrossEntropy):
        scores, _ = _Layer(graph, cost.readout).up(graph, output)
    else:
        groups = graph.add("Reshape", output, [-1, cost.classes, cost.copies])
        scores = graph.add("ReduceMean", groups, [2], keepdims=0)
    graph.nodes.append(helper.make_node("Identity", [scores], ["scores"]))
