"""Templates of windows that treat every channel alone: pooling, and what depthwise convolution shares with it."""
