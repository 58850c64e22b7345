"""Products with constant weights of which whole blocks are zero and left out."""
