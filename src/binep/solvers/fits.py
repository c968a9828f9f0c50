"""What compiled loops can stand for, asked without loading them."""

from __future__ import annotations

import torch

from binep.core.network import Network
from binep.core.synapses import Conv, Dense, Synapse


def is_compiled(synapse: Synapse) -> bool:
    """Whether the loops know it: signs in float32 on a CPU, pooled by the maximum."""
    return (
        type(synapse) in (Dense, Conv)  # a subclass may do something else
        and synapse.scale is not None
        and is_float32_on_cpu(synapse)
        and (not isinstance(synapse, Conv) or synapse.max_pooled)
    )


def is_float32_on_cpu(synapse: Synapse) -> bool:
    """Whether its parameters are what NumPy can look at."""
    return all(p.dtype == torch.float32 and p.device.type == "cpu" for p in synapse.parameters())


def has_ties(network: Network) -> bool:
    """Whether a synapse joins several layers."""
    return len(set(network.synapses)) < len(network.synapses)
