"""Templates that work on whole rows: softmax, layer normalization and reductions."""
