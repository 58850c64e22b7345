"""Templates of scaled dot-product attention."""
