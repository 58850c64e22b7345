"""Templates of two-dimensional convolution: direct, Winograd, on bf16 and on 8-bit integers."""
