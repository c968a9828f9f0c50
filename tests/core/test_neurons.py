"""Rules of neurons, one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.speed import Speed
from binep.core.synapses import Dense

unit = st.floats(0, 1, width=32)


@given(st.floats(0, 1, width=32, exclude_min=True))
def test_a_neuron_fires_from_exactly_its_threshold_on(threshold: float) -> None:
    below, above = (math.nextafter(threshold, to) for to in (0, 1))
    states = torch.tensor([below, threshold, above], dtype=torch.float64)
    fired = Binary(threshold).fire(states)
    assert fired.dtype == torch.int8
    assert fired.tolist() == [0, 1, int(above >= threshold)]


@pytest.mark.parametrize("off", [(), ("events",)])
def test_in_a_network_a_state_exactly_at_the_threshold_fires(off: tuple[str, ...]) -> None:
    """Biases hold the first layer at its threshold; what the second hears says whether it fires."""
    network = Network([Dense(1, 4), Dense(4, 2)], Binary(), speed=Speed(off=off))
    with torch.no_grad():
        for synapse in network.synapses:
            synapse.values.fill_(1)
            assert synapse.scale is not None
            synapse.scale.fill_(0.125)
            synapse.bias.zero_()
        network.synapses[0].bias.fill_(0.5 - 0.25)  # and 0.25 from the two neurons above
        network.synapses[1].bias.fill_(0.25)
    network.neurons = [Binary(initial=0.5), Binary(initial=0.5)]
    end = network.relax(torch.zeros(1, 1), 9)
    assert end.states[0].tolist() == [[0.5] * 4]
    assert end.output.min() > 0.5  # 0.25 without what fires below
    assert end.moved.tolist() == [0, 0]


@given(st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3), st.booleans())
def test_real_neurons_by_hand(values: list[float], clip: bool) -> None:
    s, p, nudge = (torch.tensor([v], dtype=torch.float64) for v in values)

    def rho(u: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(u, torch.zeros(1)), torch.ones(1))

    assert Real().fire(s) is s
    assert torch.equal(Real().update(s, p), rho(p))
    assert torch.equal(Real(nudge="inside").update(s, p, nudge), rho(p + nudge))
    outside = rho(p) + nudge
    wanted = rho(outside) if clip else outside
    assert torch.equal(Real(clip_nudged=clip).update(s, p, nudge), wanted)


@given(unit, st.floats(-2, 2, width=32), st.floats(-2, 2, width=32) | st.none(), unit)
def test_binary_neurons_by_hand(s: float, p: float, nudge: float | None, step: float) -> None:
    step = max(step, 2**-20)
    push = 0.0 if nudge is None else nudge
    wanted = min(1.0, max(0.0, (1 - step) * s + step * (p + push)))
    state, drive = (torch.tensor([v], dtype=torch.float64) for v in (s, p))
    given_ = None if nudge is None else torch.tensor([nudge], dtype=torch.float64)
    found = Binary(filter=step).update(state, drive, given_)
    assert found.item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (Real, {"nudge": "sideways"}, "nudge = 'sideways': must be 'outside' or 'inside'"),
        (Real, {"initial": 1.5}, r"initial = 1.5: must be in \[0, 1\]"),
        (Real, {"initial": -0.1}, "initial = -0.1"),
        (Real, {"initial": math.nan}, "initial = nan"),
        (Binary, {"threshold": 2}, r"threshold = 2: must be in \(0, 1\]"),
        (Binary, {"threshold": 0}, "threshold = 0"),
        (Binary, {"threshold": math.nan}, "threshold = nan"),
        (Binary, {"filter": 5}, r"filter = 5: must be in \(0, 1\]"),
        (Binary, {"filter": 0.0}, "filter = 0"),
        (Binary, {"filter": -1}, "filter = -1"),
        (Binary, {"initial": 7}, r"initial = 7: must be in \[0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**settings)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    assert Real(initial=0).initial == 0
    assert Real(initial=1, nudge="inside").nudge == "inside"
    assert Binary(threshold=1, filter=1, initial=0).filter == 1


def test_defaults_are_those_of_the_paper_s_dense_networks() -> None:
    assert Real() == Real(initial=0.0, nudge="outside", clip_nudged=True)
    assert Binary() == Binary(threshold=0.5, filter=0.5, initial=1.0, hold_nudge=False)
