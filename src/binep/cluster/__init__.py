"""Many networks on many machines, with Ray: sweeps of settings, and the rows of tables."""
