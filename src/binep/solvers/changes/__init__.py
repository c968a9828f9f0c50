"""Real weights in convolutions: neurons that have moved send by how much."""
