"""One sample followed through a network, and what learning has done to the weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
import torch
from hypothesis import assume, given
from matplotlib.figure import Figure
from matplotlib.text import Text
from networks import Twins, array, twins
from torch import Tensor

from binep.analysis import inspection, inspection_figures
from binep.cli import main as cli
from binep.core.network import Network, Speed
from binep.core.neurons import Binary, Real
from binep.core.optim import BinaryFlip
from binep.core.synapses import Conv, Dense
from binep.experiment.build import initial_network
from binep.experiment.config import Config, Dynamics, Layer, Learning
from binep.experiment.experiment import Experiment
from binep.runs import curves as plots
from binep.runs import folder as runs

PLAIN = Speed(off=("events", "in-cache"), precision="exact")


def random_states(twins: Twins) -> list[torch.Tensor]:
    return [torch.rand_like(s) for s in twins.network.initial_states(twins.x)]


# ---- energy


@given(twins())
def test_the_energy_is_made_of_the_products_of_the_oracle(twins: Twins) -> None:
    states = random_states(twins)
    found = inspection.energy(twins.network, twins.network.clamp(twins.x), states)
    arrays = [array(s) for s in states]
    products = oracle.phase_products(twins.synapses, twins.dynamics, array(twins.x), arrays)
    sent = [oracle.fire(twins.dynamics, s) for s in arrays]
    real = twins.dynamics.activation == "real"
    alone = sum((r**2).sum() / 2 if real else twins.dynamics.threshold * r.sum() for r in sent)
    phi = sum(
        product["scale"].sum() + (synapse.bias * product["bias"]).sum()
        for synapse, product in zip(twins.synapses, products, strict=True)
    )
    assert found.shape == (len(twins.x),)
    assert found.sum().item() == pytest.approx(alone - phi, abs=1e-9)


@given(twins("real"))
def test_real_states_move_against_the_slope_of_the_energy(twins: Twins) -> None:
    states = [s.requires_grad_() for s in random_states(twins)]
    clamped = twins.network.clamp(twins.x)
    slopes = torch.autograd.grad(inspection.energy(twins.network, clamped, states).sum(), states)
    x = array(twins.x)
    drives = oracle.preactivations(twins.synapses, twins.dynamics, [array(s) for s in states], x)
    for slope, drive, state in zip(slopes, drives, states, strict=True):
        np.testing.assert_allclose(-array(slope), drive - array(state), atol=1e-9)


@given(twins("real", convolutional=False, weights="real"))
def test_no_state_in_the_box_lies_below_the_equilibrium_of_small_weights(twins: Twins) -> None:
    network = twins.network
    with torch.no_grad():
        for synapse in network.synapses:
            synapse.values /= 2 * len(network) * synapse.values.norm()  # E is convex
        end = network.relax(twins.x, 1000, tolerance=1e-12)
        least = inspection.energy(network, end.clamped, end.states)
        for _ in range(5):
            other = inspection.energy(network, end.clamped, random_states(twins))
            assert (least <= other + 1e-9).all()


@given(twins("binary", convolutional=False))
def test_no_bit_alone_lowers_the_energy_of_settled_bits(twins: Twins) -> None:
    network = twins.network
    with torch.no_grad():
        end = network.relax(twins.x, 200)
        assume(end.residual.max() < 1e-9)  # layers that move at once may also go round for ever
        least = inspection.energy(network, end.clamped, end.states)
        for layer, states in enumerate(end.states):
            for i in range(states.shape[1]):
                turned = [s.clone() for s in end.states]
                turned[layer][:, i] = 1.0 - network.neurons[layer].fire(states[:, i])
                assert (least <= inspection.energy(network, end.clamped, turned) + 1e-9).all()


# ---- phases


@given(twins(), st.integers(1, 30), st.integers(1, 10), st.sampled_from((0.0, 1e-3)))
def test_a_sample_takes_the_steps_of_the_oracle_and_stops_where_relax_does(
    twins: Twins, free_steps: int, nudged_steps: int, tolerance: float
) -> None:
    network, beta = twins.network, 0.5
    network.speed = PLAIN
    found = inspection.follow(
        network,
        twins.x[0],
        int(twins.labels[0]),
        free_steps=free_steps,
        nudged_steps=nudged_steps,
        beta=beta,
        tolerance=tolerance,
    )
    x, target = array(twins.x[:1]), array(twins.network.cost.target(twins.labels[:1]))
    shapes = [(1, *s.output_shape) for s in network.synapses]
    path = [
        [s[t].reshape(shape) for s, shape in zip(found.states, shapes, strict=True)]
        for t in range(found.steps + 1)
    ]
    one = replace(twins, x=twins.x[:1], labels=twins.labels[:1])
    held = path[found.free_steps][-1]
    for t in range(1, found.steps + 1):
        nudge = beta if t > found.free_steps else 0.0
        expected = oracle.step(
            twins.synapses, twins.dynamics, path[t - 1], x, target, nudge, held, one.force
        )
        for layer, (state, wanted) in enumerate(zip(path[t], expected, strict=True)):
            np.testing.assert_allclose(state, wanted, atol=1e-9)
            assert found.residual[t, layer] == abs(state - path[t - 1][layer]).max()

    limits = [0.0 if n.settle_exactly else tolerance for n in network.neurons]
    for phase, most in (
        (found.residual[1 : found.free_steps + 1], free_steps),
        (found.residual[found.free_steps + 1 :], nudged_steps),
    ):
        moving = (phase > limits).any(axis=1)
        assert moving[:-1].all() or tolerance == 0
        assert len(moving) == most or (tolerance > 0 and not moving[-1])

    network.speed = Speed(off=("odd-even",))
    free = network.relax(one.x, free_steps, tolerance=tolerance)
    nudged = network.relax(
        one.x, nudged_steps, start=free, target=one.target, beta=beta, tolerance=tolerance
    )
    assert found.settled.tolist() == [free.moved.tolist(), nudged.moved.tolist()]
    for t, end in ((found.free_steps, free), (found.steps, nudged)):
        for state, expected in zip(path[t], end.states, strict=True):
            np.testing.assert_allclose(state, array(expected), atol=1e-9)
        np.testing.assert_allclose(found.residual[t], array(end.residual), atol=1e-9)
        with torch.no_grad():
            energy = inspection.energy(network, end.clamped, end.states)
            cost = network.cost.loss(end.output, one.target)
            scores = network.cost.scores(end.output, "averaged")
        assert found.energy[t] == pytest.approx(energy.item())
        assert found.cost[t] == pytest.approx(cost.item())
        np.testing.assert_allclose(found.scores[t], array(scores[0]))

    rows = found.rows()
    assert [row["step"] for row in rows] == list(range(found.steps + 1))
    nudges = [0] * (found.free_steps + 1) + [beta] * (found.steps - found.free_steps)
    assert [row["beta"] for row in rows] == nudges
    fired = [[oracle.fire(twins.dynamics, s) for s in states] for states in path]
    for layer in range(len(network)):
        assert rows[-1][f"layer{layer + 1}_residual"] == found.residual[-1, layer]
        if twins.dynamics.activation == "real":
            assert found.bits == []
            continue
        now, before = fired[-1][layer], fired[-2][layer]
        assert rows[-1][f"layer{layer + 1}_fired"] == now.sum()
        assert rows[-1][f"layer{layer + 1}_changed"] == abs(now - before).sum()


@dataclass(frozen=True)
class Spin(Binary):
    def fire(self, state: Tensor) -> Tensor:
        """−1 in the place of 0."""
        return 2 * super().fire(state) - 1


def test_spins_fire_where_they_are_up() -> None:
    torch.manual_seed(0)
    network = Network([Dense(9, 30), Dense(30, 4)], Spin(0.4))
    found = inspection.follow(
        network, torch.rand(9), 1, free_steps=6, nudged_steps=4, beta=1.0, tolerance=0.0
    )
    rows = found.rows()
    for layer, states in enumerate(found.states, start=1):
        up = states >= np.float32(0.4)
        assert [row[f"layer{layer}_fired"] for row in rows] == up.sum(axis=1).tolist()
        changed = (up[1:] != up[:-1]).sum(axis=1).tolist()
        assert [row[f"layer{layer}_changed"] for row in rows] == [None, *changed]
    assert sum(changed) > 0
    fired = inspection_figures.bits(found).axes[0].lines[:2]
    assert [line.get_ydata()[-1] for line in fired] == [  # type: ignore[index]
        pytest.approx(100 * (states[-1] >= 0.4).mean()) for states in found.states
    ]


@given(twins(), st.integers(1, 20), st.integers(1, 3))
def test_activity_counts_the_neurons_that_send_something(
    twins: Twins, free_steps: int, batch_size: int
) -> None:
    network = twins.network
    network.speed = replace(PLAIN, off=(*PLAIN.off, "odd-even"))
    options = {"free_steps": free_steps, "tolerance": 0.0}
    often, ever = inspection.activity(network, twins.x, batch_size=batch_size, **options)
    ends = [inspection.follow(network, x, 0, nudged_steps=1, beta=0.0, **options) for x in twins.x]
    for layer in range(len(network)):
        sends = np.stack(
            [oracle.fire(twins.dynamics, e.states[layer][e.free_steps]) != 0 for e in ends]
        )
        assert often[layer] == pytest.approx(sends.mean())
        assert ever[layer] == pytest.approx(sends.any(axis=0).mean())


# ---- weights


@given(st.integers(0, 2**32), st.integers(1, 3))
def test_momenta_are_those_of_the_oracle_in_units_of_a_flip(seed: int, batches: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [Dense(5, 4, generator=generator), Dense(4, 3, generator=generator)]
    network = Network(layers, Real()).double()
    groups = [
        {"params": [synapse.values], "gamma": gamma, "threshold": threshold}
        for synapse, gamma, threshold in zip(layers, (0.3, 0.7), (0.1, 0.2), strict=True)
    ]
    flip = BinaryFlip(groups)
    expected = [(array(s.values), np.zeros(s.values.shape)) for s in layers]
    for _ in range(batches):
        for i, (synapse, group) in enumerate(zip(layers, groups, strict=True)):
            gradient = torch.randn(synapse.values.shape, generator=generator, dtype=torch.float64)
            synapse.values.grad = -gradient
            sign, momentum, _ = oracle.flip(
                *expected[i], array(gradient), group["gamma"], group["threshold"]
            )
            expected[i] = sign, momentum
        flip.step()
    found = inspection.momenta(network, flip)
    assert [(m.layer, m.threshold) for m in found] == [(1, 0.1), (2, 0.2)]
    for layer, (sign, momentum) in zip(found, expected, strict=True):
        np.testing.assert_allclose(layer.push, (-sign * momentum).flatten(), atol=1e-12)
        assert layer.push.max() <= layer.threshold + 1e-12  # what passed it has flipped


DENSE = {"1": Layer(12, threshold=0.0, bias_lr=0.05), "2": Layer(10, bias_lr=0.05)}
SMALL = Config(layers=DENSE, batch_size=16, max_batches=2, epochs=1, threads=1)


def test_weights_that_differ_have_flipped_an_odd_number_of_times() -> None:
    experiment = Experiment(SMALL)
    start = initial_network(SMALL)
    for now, before in zip(experiment.network.synapses, start.synapses, strict=True):
        assert torch.equal(now.weight, before.weight)
        assert torch.equal(now.bias, before.bias)
    changes = experiment.train_epoch().layers
    found = inspection.signs(experiment.network, start)
    assert [layer.now.shape for layer in found] == [(12, 1, 28, 28), (10, 12)]
    for layer, change in zip(found, changes, strict=True):
        assert change is not None
        flipped = int(layer.flipped.sum())
        assert 0 < flipped <= change.flips
        assert (change.flips - flipped) % 2 == 0
    values = experiment.network.synapses[0].values
    assert np.array_equal(found[0].now.reshape(12, 784), array(values))
    with pytest.raises(ValueError, match="layer 1 started from other weights"):
        inspection.signs(experiment.network, initial_network(SMALL.replace(seed=1)))


def test_few_weights_above_an_image_are_no_field() -> None:
    class Summed(Dense):
        """One weight for all channels of a place, as of a layer of one's own."""

        def __init__(self) -> None:
            super().__init__(6, 4)
            self.input_shape = (2, 2, 3)

    (found,) = inspection.signs(*(Network([Summed()], Real()) for _ in range(2)))
    assert found.now.shape == (4, 6)


def test_kernels_are_fields_and_real_weights_have_no_signs() -> None:
    conv = Conv((2, 6, 6), 3, kernel=5)
    network = Network([conv, Dense(conv.output_shape, 4, weights="real")], Real())
    (kernels,) = inspection.signs(network, network)
    assert (kernels.layer, kernels.now.shape) == (1, (3, 2, 5, 5))
    assert not kernels.flipped.any()


# ---- the command

CONV = {"1": Layer(3, "conv", threshold=1e-9), "2": Layer(4, "conv", threshold=1e-9)}
BITS = Dynamics("heaviside", 1.0, free_steps=8, nudged_steps=4)
REAL = Dynamics(initial_state=0.5, free_steps=8, nudged_steps=4)
KINDS = {
    "dense": SMALL,
    "dense bits": SMALL.replace(
        dynamics=BITS,
        learning=Learning(output_copies=2),
        layers=DENSE | {"2": Layer(20, threshold=1e-9)},
    ),
    "conv": SMALL.replace(dynamics=REAL, layers=CONV | {"3": Layer(10)}),
    "conv bits": SMALL.replace(
        dynamics=BITS,
        learning=Learning(hold_nudge=True, momentum_noise=True),
        layers=CONV | {"3": Layer(10)},
    ),
    "real weights": SMALL.replace(learning=Learning(synapses="real", cost="cross-entropy")),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder of each kind."""
    folders = {kind: tmp_path_factory.mktemp(kind.replace(" ", "-")) for kind in KINDS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "rendered", lambda figure: b"")  # slow
        for kind, config in KINDS.items():
            runs.train(Experiment(config), folders[kind])
    return folders


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures, in the place of their files, which are slow."""
    figures: list[Figure] = []

    def rendered(figure: Figure, kind: str) -> bytes:
        figures.append(figure)
        return kind.encode()

    monkeypatch.setattr(plots, "rendered", rendered)
    return figures


def test_without_an_index_a_misread_image_is_shown(
    trained: dict[str, Path],
    drawn: list[Figure],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = next(iter(trained.values()))
    assert cli.main(["inspect", str(folder), "--output", str(tmp_path)]) == 0
    found = re.match(
        r"test image (\d+) of mnist5k: label (\d), read as (\d)", capsys.readouterr().out
    )
    assert found is not None
    experiment = runs.load(folder)
    scores, labels = experiment.class_scores()
    wrong = (scores.argmax(dim=1) != labels).nonzero()
    assert int(found[1]) == int(wrong[0])
    assert found[2] != found[3]
    ticks = drawn[0].axes[0].get_xticks()
    assert list(ticks) == [round(tick) for tick in ticks]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_network_is_inspected(
    trained: dict[str, Path],
    drawn: list[Figure],
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = trained[kind]
    beside = folder / ".metrics.csv.1.tmp"  # another process may be training there
    beside.touch()
    output = tmp_path / "new" / "figures"
    line = f"inspect {folder} --index 3 --neurons 5 --format svg --output {output}"
    assert cli.main(line.split()) == 0
    names = ["phases"]
    names += ["bits"] if "bits" in kind else []
    names += ["momenta", "flips"] if kind != "real weights" else []
    said = capsys.readouterr().out.splitlines()
    label = int(Experiment(SMALL).data.test.labels[3])
    assert said[0].startswith(f"test image 3 of mnist5k: label {label}, read as ")
    layers = len(KINDS[kind].layers) - (kind == "real weights")
    share = r"(\d+\.\d )" + f"{{{layers}}}%"
    told = (
        rf"of 500 test images, one activates {share} of the layers' neurons, all together {share}"
    )
    assert re.fullmatch(told, said.pop(1))
    paths = [output / "phases.csv", *(output / f"{name}.svg" for name in names)]
    assert [line for line in said[1:] if not line.startswith("no ")] == [str(p) for p in paths]
    assert {path.name for path in output.iterdir()} == {path.name for path in paths}
    assert len(said[1:]) == 5  # what there is and, with the reason, what there is not
    assert {path.read_bytes() for path in paths[1:]} == {b"svg"}
    assert beside.exists()

    assert len(drawn) == len(names)
    for figure in drawn:
        written = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_text()]
        assert min(t.get_fontsize() for t in written) >= 7
        assert figure.get_figwidth() == 7
    lines = (output / "phases.csv").read_text().splitlines()
    phases = drawn[0]
    assert any(len(line.get_xdata()) == len(lines) - 1 for line in phases.axes[0].lines)
    assert f"layer{layers}_residual" in lines[0].split(",")
    assert (f"layer{layers}_fired" in lines[0].split(",")) == ("bits" in kind)


def test_figures_are_vectors_with_fonts_that_publishers_take(trained: dict[str, Path]) -> None:
    folder = trained["dense bits"]
    assert cli.main(["inspect", str(folder)]) == 0
    for name in ("phases", "bits", "momenta", "flips"):
        content = (folder / "inspect" / f"{name}.pdf").read_bytes()
        assert content.startswith(b"%PDF")
        assert b"/Type3" not in content


@pytest.mark.usefixtures("drawn")
def test_what_cannot_be_shown_is_said_with_the_reason(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text(SMALL.replace(seed=1).to_toml())
    model = (trained["dense"] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(model)
    assert cli.main(["inspect", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "no bits.pdf: its neurons fire no bits\n" in said
    assert "no momenta.pdf: there is no checkpoint.safetensors, which holds" in said
    assert "no flips.pdf: layer 1 started from other weights than these" in said


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_file_shows_what_its_run_shows(
    trained: dict[str, Path], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "end.safetensors", trained[kind]
    assert cli.main(["export", str(run), "--output", str(file)]) == 0
    said = {}
    for source, folder in ((run, tmp_path / "run"), (file, tmp_path / "inspect")):
        capsys.readouterr()
        to = ["--output", str(folder)] if source == run else []  # beside the file without it
        assert cli.main(["inspect", str(source), *to]) == 0
        said[source] = capsys.readouterr().out.replace(f"{folder}/", "")
    assert (tmp_path / "run/phases.csv").read_bytes() == (
        tmp_path / "inspect/phases.csv"
    ).read_bytes()
    flips = KINDS[kind].learning.synapses == "binary"
    no = "no momenta.pdf: there is no checkpoint.safetensors, which holds the momenta"
    assert said[file] == (said[run].replace("momenta.pdf", no) if flips else said[run])


BAD = {
    "": "RUN is missing: a run folder",
    "missing": "missing: no run folder, no file, and none of the networks that come with binep: ",
    "runs/missing0.5": "runs/missing0.5: not a run folder: ",
    "missing.safetensors": "missing.safetensors: cannot be read: No such file",
    "RUN --index -1": "--index -1: must be from 0 to 999, the test images of mnist5k",
    "RUN --index 1000": "--index 1000: must be from 0 to 999, the test images of mnist5k",
    "RUN --neurons 0": "--neurons 0: must be a whole number from 1",
    "RUN --format jpg": "--format jpg: must be one of pdf, svg, png",
    "RUN --output RUN/config.toml": "RUN/config.toml: cannot be made: ",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_ends_with_one_line_before_any_file(
    trained: dict[str, Path], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained["conv"]
    before = sorted(folder.rglob("*"))
    arguments = line.replace("RUN", str(folder)).split()
    assert cli.main(["inspect", *arguments]) == 2
    said = capsys.readouterr()
    expected = BAD[line].replace("RUN", str(folder)) if line else BAD[line]
    assert said.err.startswith(f"binep: {expected}")
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert sorted(folder.rglob("*")) == before
