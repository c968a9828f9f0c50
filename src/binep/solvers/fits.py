"""Which synapses the compiled loops compute; answered without loading them."""

from __future__ import annotations

import torch

from binep.core.synapses import Conv, Dense, Synapse


def is_compiled(synapse: Synapse) -> bool:
    """Whether it `has_layout`, and binary weights."""
    return synapse.scale is not None and has_layout(synapse)


def has_layout(synapse: Synapse) -> bool:
    """Whether it is `Dense` or `Conv` in float32 on a CPU, not pooled by the average."""
    return (
        type(synapse) in (Dense, Conv)  # a subclass may do something else
        and is_float32_on_cpu(synapse)
        and not (isinstance(synapse, Conv) and synapse.averages)
    )


def is_float32_on_cpu(synapse: Synapse) -> bool:
    """Whether it is float32 on a CPU, so that NumPy can share its memory.

    All parameters are of one type and on one device, as `Network.check` has seen.
    """
    return synapse.values.dtype == torch.float32 and synapse.values.device.type == "cpu"
