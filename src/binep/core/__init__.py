"""The model and its learning rules: neurons, synapses, costs, phases, gradients, optimizers.

Depends on PyTorch only.
"""
