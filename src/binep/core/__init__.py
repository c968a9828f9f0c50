"""The science, in torch alone: neurons, synapses, costs, the network, estimators, optimizers."""
