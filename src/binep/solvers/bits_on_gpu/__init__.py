"""Networks of binary neurons and weights on a GPU: only bits that have changed are sent."""
