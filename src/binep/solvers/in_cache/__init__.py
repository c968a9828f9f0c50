"""Small dense networks of real activations: each sample settles in cache."""
