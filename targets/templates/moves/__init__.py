"""Templates that move data and compute nothing."""
